"""Addresses of stores: what may be shown of one, and the login that may stand in it.

No key, token or password is ever shown or kept: whoever puts an address into a message, a file or
a run passes it through ``without_login``.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit, urlunsplit

from danceflow.errors import TrackingError

SQLITE = "sqlite:///"
HTTP = ("http", "https")
POSTGRES = "postgresql"

_HIDDEN = "***"
# Up to the last @ before a slash; else, of what looks like user:password, up to the last one.
_LOGIN = re.compile(r"(?<=://)(?:[^/\s]*|[^/\s@]*:[^\s@]*)@")
# The key of a view on MLflow's page is its name.
_SECRET = re.compile(
    r"([?&;](?!viewStateShareKey=)[^=&;\s]*(?:token|passw|pwd|secret|key|sig|auth|credential)[^=&;\s]*=)[^&;\s\"'<>]+",
    re.IGNORECASE,
)
_DRIVERS = {"": "psycopg2", "psycopg2": "psycopg2", "psycopg": "psycopg"}


@dataclass(frozen=True)
class Login:
    """A name and a password; neither is part of what is printed of it."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Return nothing of what it holds."""
        return f"Login({_HIDDEN})"


def without_login(text: str) -> str:
    """Return a text in which no address holds a name, a password or a token any more."""
    return _SECRET.sub(rf"\1{_HIDDEN}", _LOGIN.sub(f"{_HIDDEN}@", text))


def holds_login(text: str) -> bool:
    """Return whether a text holds an address with a login or a token in it."""
    return without_login(text) != text


def take_apart(uri: str) -> tuple[str, Login | None]:
    """Return the address of a server without its login, and that.

    Args:
        uri: of a tracking store; of all but a server's nothing is taken.

    Raises:
        TrackingError: it is no address.
    """
    if scheme_of(uri) not in HTTP:
        return uri, None
    try:
        parts = urlsplit(uri)
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise TrackingError(
            f"tracking.uri {without_login(uri)!r}: is no address of a server; in a name or a "
            "password write / as %2F, ? as %3F, # as %23 and @ as %40"
        ) from None
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri, None
    user, _, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=host)), Login(unquote(user), unquote(password))


def scheme_of(uri: str) -> str:
    """Return what stands before the first colon, without the driver: ``http``, ``postgresql``."""
    return uri.partition(":")[0].partition("+")[0]


def require_driver(uri: str) -> None:
    """Raise TrackingError unless a store of this kind can be opened here.

    Args:
        uri: of a database or a server.
    """
    named = uri.partition(":")[0]
    scheme, _, driver = named.partition("+")
    if scheme in (*HTTP, "sqlite"):
        return
    shown = f"MLflow at {without_login(uri)}"
    if scheme == "postgres":
        raise TrackingError(f"{shown}: write postgresql:// in place of postgres://")
    if scheme != POSTGRES or driver not in _DRIVERS:
        raise TrackingError(
            f"{shown}: {named} is not supported; write sqlite:///<path of a file>, "
            "postgresql://... or the http address of an MLflow server"
        )
    if find_spec(_DRIVERS[driver]) is None:
        raise TrackingError(
            f"{shown}: PostgreSQL's driver {_DRIVERS[driver]} is not installed; "
            "`pip install 'danceflow[postgres]'` brings psycopg2"
        )
