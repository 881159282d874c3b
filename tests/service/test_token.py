import pytest

from danceflow.errors import UsageError
from danceflow.service.token import VARIABLE, Token, is_loopback, read_token, require_safe

WORD = "0123456789abcdef"


@pytest.mark.parametrize("value", ["short", "a" * 15, "with a space in the middle", "ä" * 20])
def test_what_can_be_no_token_is_refused_and_not_shown(monkeypatch, value) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(UsageError, match=VARIABLE) as refused:
        read_token()
    assert value not in str(refused.value)


@pytest.mark.parametrize("value", ["", "  "])
def test_no_token_is_none(monkeypatch, value) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert read_token() is None


def test_a_token_fits_its_header_alone(monkeypatch) -> None:
    monkeypatch.setenv(VARIABLE, f" {WORD}\n")
    token = read_token()
    assert token.fits(f"Bearer {WORD}".encode())
    assert token.fits(f"bearer  {WORD} ".encode())
    for header in ("", WORD, f"Basic {WORD}", f"Bearer {WORD[:-1]}", f"Bearer {WORD}{WORD}"):
        assert not token.fits(header.encode())
    assert WORD not in f"{token!r} {token}"


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.4", False), ("localhost.example", False)],
)  # fmt: skip
def test_others_can_reach_only_what_has_a_token(host, is_own) -> None:
    assert is_loopback(host) is is_own
    require_safe(host, Token(WORD))
    if is_own:
        require_safe(host, None)
    else:
        with pytest.raises(UsageError, match=f"others could reach it.*set {VARIABLE}"):
            require_safe(host, None)
