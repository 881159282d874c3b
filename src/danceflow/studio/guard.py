"""Who may come in: this machine, or who has the token; and no page of another site in between."""

import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danceflow.service.token import is_from_here

if TYPE_CHECKING:
    from danceflow.service.token import Token

PERSON, SESSION = "danceflow_person", "danceflow_session"
_SERVICE = ("/v1/", "/healthz", "/readyz", "/metrics", "/openapi.json")
_OPEN = ("/login", "/static/")
_SAFE = ("GET", "HEAD", "OPTIONS")
_MAX_SESSIONS = 1000
_HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; img-src 'self' blob:; style-src 'self'; script-src 'self'; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


class Sessions:
    """Browsers that have shown the token; forgotten when the process ends."""

    def __init__(self, token: "Token | None") -> None:
        """Take the token; None: everybody on this machine may come in."""
        self._token = token
        self._open: dict[str, None] = {}

    @property
    def asks(self) -> bool:
        """Whether the token must be shown."""
        return self._token is not None

    def open(self, token: str) -> str | None:
        """Return a new session's name; None: this is not the token."""
        if self._token is None or not self._token.fits(b"Bearer " + token.strip().encode()):
            return None
        name = secrets.token_urlsafe(32)
        self._open[name] = None
        while len(self._open) > _MAX_SESSIONS:
            del self._open[next(iter(self._open))]
        return name

    def admits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Return whether a request comes from a session, or brings the token itself."""
        if self._token is None or self._token.fits(headers.get(b"authorization", b"")):
            return True
        try:
            cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return False
        return SESSION in cookies and cookies[SESSION].value in self._open


class Guard:
    """Stands before every address; those of the model service have a guard of their own."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        """Stand before an application.

        Args:
            app: what answers.
            sessions: know who may come in.
        """
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what may be answered, with headers that keep a page to itself."""
        if scope["type"] != "http" or scope["path"].startswith(_SERVICE):
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        app = self._app
        if not self._sessions.asks and not is_from_here(headers):
            app = JSONResponse({"error": "pages of other sites may not ask"}, 403)
        elif scope["method"] not in _SAFE and not _is_own(headers):
            app = JSONResponse({"error": "pages of other sites may not change anything here"}, 403)
        elif not scope["path"].startswith(_OPEN) and not self._sessions.admits(headers):
            app = RedirectResponse("/login", 303)
            if b"text/html" not in headers.get(b"accept", b""):
                app = JSONResponse({"error": "sign in first: open this address anew"}, 401)
        path = scope["path"]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = list(message["headers"]) + list(_HEADERS.items())
                if not any(name.lower() == b"cache-control" for name, _ in found):
                    # Pages hold what only their reader may see; files are asked for again cheaply.
                    rule = b"no-cache" if path.startswith("/static/") else b"no-store"
                    found.append((b"cache-control", rule))
                message["headers"] = found
            await send(message)

        await app(scope, receive, sent)


def _is_own(headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request that changes something is from a page of this very address.

    Browsers tell with ``Origin`` and ``Sec-Fetch-Site``; programs send neither.
    """
    if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
        return False
    origin = headers.get(b"origin")
    if origin is None:
        return True
    try:
        host = urlsplit(origin.decode("latin-1")).netloc
    except ValueError:
        return False
    return bool(host) and host == headers.get(b"host", b"").decode("latin-1")
