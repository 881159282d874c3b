"""A line of the doctor's."""

import pytest

from flows.doctor.finding import Finding, Level, fail, ok, warn


def test_a_line_says_how_bad_what_and_what_to_do() -> None:
    assert str(ok("disk", "5 GiB free")) == "ok   disk         5 GiB free"
    assert str(warn("git", "dirty", "git commit")) == "warn git          dirty -> git commit"
    assert fail("x", "y", "z").as_data() == {
        "check": "x",
        "level": "fail",
        "text": "y",
        "advice": "z",
    }


@pytest.mark.parametrize("make", [warn, fail])
def test_no_login_is_shown(make: type[Finding]) -> None:
    address = "https://me:Planted-1@host/x"
    found = make("store", f"{address} is away", f"start {address}")  # type: ignore[call-arg, arg-type]
    assert "Planted" not in str(found)
    assert found.level in set(Level)
