import importlib.util

import pytest

from danceflow.errors import TrackingError
from danceflow.ops.tracking.address import (
    Login,
    holds_login,
    require_driver,
    take_apart,
    without_login,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:secret@host:5000/x", "http://***@host:5000/x"),
        ("http://ann:se@cret@host", "http://***@host"),
        ("https://secret@host", "https://***@host"),
        ("http://ann:se/cret@host", "http://***@host"),
        ("postgresql+psycopg2://ann:secret@db/x", "postgresql+psycopg2://***@db/x"),
        ("postgresql://db/x?user=ann&password=secret", "postgresql://db/x?user=ann&password=***"),
        ("GET http://h/p?api_token=secret&a=1 failed", "GET http://h/p?api_token=***&a=1 failed"),
        ("http://h/runs?viewStateShareKeyring=secret", "http://h/runs?viewStateShareKeyring=***"),
        ("https://s3/x?X-Amz-Signature=secret", "https://s3/x?X-Amz-Signature=***"),
        ("two: http://a:secret@h and http://b:secret@h", "two: http://***@h and http://***@h"),
        ('{"uri": "http://a:secret@h"}', '{"uri": "http://***@h"}'),
    ],
)
def test_no_login_is_shown(text: str, shown: str) -> None:
    assert without_login(text) == shown
    assert holds_login(text)
    assert without_login(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/me@work/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning",
        "http://h/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=danceflow",
        "a@b: tokens: 3, key=value",
    ],
)
def test_what_holds_none_stays(text: str) -> None:
    assert without_login(text) == text
    assert not holds_login(text)


@pytest.mark.parametrize(
    ("uri", "address", "login"),
    [
        ("http://host:5000/x", "http://host:5000/x", None),
        ("http://ann:p%40s%2Fs@host:5000/x", "http://host:5000/x", Login("ann", "p@s/s")),
        ("https://ann:a:b@host", "https://host", Login("ann", "a:b")),
        ("http://tok_123@[::1]:5000", "http://[::1]:5000", Login("tok_123", "")),
        ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db", None),
        ("postgresql://ann:secret@db/x", "postgresql://ann:secret@db/x", None),
    ],
)
def test_a_server_s_login_is_taken_apart(uri, address, login) -> None:
    assert take_apart(uri) == (address, login)
    assert "ann" not in repr(login)


@pytest.mark.parametrize("uri", ["http://ann:se/cret@host", "http://", "http://host:port"])
def test_what_is_no_address_is_told_without_its_login(uri: str) -> None:
    with pytest.raises(TrackingError, match="is no address of a server.*write / as %2F") as caught:
        take_apart(uri)
    assert "cret" not in str(caught.value)


def test_a_store_that_cannot_be_opened_here_is_told_with_what_to_do(monkeypatch) -> None:
    for uri in ("sqlite:////x.db", "http://host", "https://host"):
        require_driver(uri)
    with pytest.raises(TrackingError, match=r"mysql is not supported; write sqlite:///") as caught:
        require_driver("mysql://ann:secret@db/x")
    assert "secret" not in str(caught.value)
    with pytest.raises(TrackingError, match="write postgresql:// in place of postgres://"):
        require_driver("postgres://db/x")
    monkeypatch.setattr("danceflow.ops.tracking.address.find_spec", lambda _: None)
    for scheme, driver in (("postgresql", "psycopg2"), ("postgresql+psycopg", "psycopg")):
        with pytest.raises(TrackingError, match=rf"{driver} is not.*danceflow\[postgres\]") as told:
            require_driver(f"{scheme}://ann:secret@db/x")
        assert "secret" not in str(told.value)
    assert importlib.util.find_spec("psycopg2")  # here it is, and the check goes by the same name
