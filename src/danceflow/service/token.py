"""The bearer token: from the environment, compared in constant time, shown nowhere."""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from danceflow.errors import UsageError

VARIABLE = "DANCEFLOW_SERVICE_TOKEN"
MIN_LENGTH = 16


class Token:
    """A token, of which only a digest is held; ``str`` and ``repr`` do not show it."""

    __slots__ = ("_digest",)

    def __init__(self, value: str) -> None:
        """Take the token.

        Raises:
            UsageError: it is short, or holds what no header can.
        """
        if len(value) < MIN_LENGTH:
            raise UsageError(
                f"{VARIABLE}: the token has fewer than {MIN_LENGTH} characters; make one with "
                "`openssl rand -hex 32` (its value is not shown)"
            )
        if not value.isascii() or not value.isprintable() or " " in value:
            raise UsageError(
                f"{VARIABLE}: write visible ASCII characters without spaces (its value is not "
                "shown)"
            )
        self._digest = hashlib.sha256(value.encode()).digest()

    def fits(self, header: bytes) -> bool:
        """Return whether an ``Authorization`` header holds it; how long that takes tells nothing.

        Args:
            header: as it came, empty where there was none.
        """
        scheme, _, value = header.partition(b" ")
        found = hashlib.sha256(value.strip()).digest()
        return hmac.compare_digest(found, self._digest) and scheme.lower() == b"bearer"


def read_token() -> Token | None:
    """Return the token of the environment, None where there is none.

    Raises:
        UsageError: it cannot be one.
    """
    value = os.environ.get(VARIABLE, "").strip()
    return Token(value) if value else None


def require_safe(host: str, token: Token | None) -> None:
    """Check that who is not on this machine needs the token.

    Raises:
        UsageError: the address is open to others, and there is no token.
    """
    if token is None and not is_loopback(host):
        raise UsageError(
            f"--host {host}: others could reach it, and there is no token; set {VARIABLE}, or "
            "leave --host out"
        )


def is_from_here(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request names this machine, as no page of another site makes a browser do.

    A name that an attacker points at this machine stands in ``Host``; a form on a foreign page is
    sent with its ``Origin``.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin", b"").decode("latin-1")
    names = [f"//{host}", *([origin] if origin else [])]
    return all(is_loopback(_host_of(name)) for name in names)


def _host_of(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
