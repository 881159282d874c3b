"""Who is told of what becomes of a student: Prefect's notification blocks, and addresses.

A request to an address follows the Standard Webhooks (https://www.standardwebhooks.com): the body
is JSON with ``type``, ``timestamp`` and ``data``; the signature is HMAC-SHA256 over
``<webhook-id>.<webhook-timestamp>.<body>``.

Whoever cannot be told is a warning and no failure. Neither a secret nor what a server answered,
which may repeat one, is ever shown.
"""

import base64
import contextvars
import hashlib
import hmac
import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from danceflow.errors import DanceflowError, UsageError
from danceflow.params.sections import NotifyParams, WebhookParams
from danceflow.registry.history import now

Event = Literal["registered", "promoted", "rolled back", "refused", "approval wanted"]

_TIMEOUT_S = 10.0  # of one try
_PATIENCE_S = 45.0  # with all of them together
_WAITS_S = (1.0, 3.0)  # before the second and the third try
_IN_BASE64 = "whsec_"  # so the Standard Webhooks begin the text of a secret

_Task = tuple[str, Callable[[], None]]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class News:
    """What is told.

    Attributes:
        event: what happened.
        model: the registered model's name.
        version: the version that it is about.
        text: a sentence or more.
        details: plain data for machines.
    """

    event: Event
    model: str
    version: int | None
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """Return its headline."""
        return f"{self.model}: {self.event}" + (
            f" (version {self.version})" if self.version else ""
        )

    def body(self) -> bytes:
        """Return it as the JSON that addresses get."""
        data = {"model": self.model, "version": self.version, "text": self.text, **self.details}
        kind = f"student.{self.event.replace(' ', '_')}"
        return json.dumps({"type": kind, "timestamp": now(), "data": data}).encode()


def tell(news: News, section: NotifyParams, root: Path) -> None:
    """Tell everybody whom the parameters name; who cannot be told is a warning.

    Args:
        news: what happened.
        section: ``notify`` of the parameters.
        root: the checkout, whose Prefect server knows the blocks where none is configured.
    """
    tasks: list[_Task] = [
        *((f"block {slug}", partial(_use_block, slug, news)) for slug in section.blocks),
        *((f"webhook {_shown(hook.url)}", partial(_post, hook, news)) for hook in section.webhooks),
    ]
    if not tasks:
        return
    needs_prefect = section.blocks or any(hook.secret_block for hook in section.webhooks)
    try:
        if needs_prefect:
            from flows.home import at_home

            with at_home(root):
                _run(tasks)
        else:
            _run(tasks)
    except Exception as error:  # whatever it is, the student is registered or promoted
        _LOG.warning("notify: Prefect cannot be used (%s); nobody was told", _named(error))


def _run(tasks: Sequence[_Task]) -> None:
    """Do all of them at once; what takes too long is left to itself."""

    def attempt(name: str, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:
            _LOG.warning("notify: %s was not told: %s", name, _named(error))

    threads = []
    for name, task in tasks:
        context = contextvars.copy_context()  # Prefect's settings are in it
        threads.append(
            threading.Thread(
                target=context.run, args=(attempt, name, task), daemon=True, name=f"notify {name}"
            )
        )
        threads[-1].start()
    deadline = time.monotonic() + _PATIENCE_S
    for (name, _), thread in zip(tasks, threads, strict=True):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            _LOG.warning("notify: %s does not answer", name)


def _use_block(slug: str, news: News) -> None:
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    try:
        block = Block.load(slug)
    except ValueError:
        raise UsageError(
            "there is no such block on this Prefect server; `prefect block ls` shows them"
        ) from None
    if not isinstance(block, NotificationBlock):
        raise UsageError("the block sends no notifications")
    block.notify(news.text, news.subject)  # type: ignore[unused-coroutine]  # no loop runs here


def _post(hook: WebhookParams, news: News) -> None:
    """Send news to an address; a server that is busy or away is asked again."""
    body = news.body()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "danceflow",
        **_credentials(hook, body),
    }
    for wait_s in (*_WAITS_S, None):
        try:
            _send(hook.url, body, headers)
            return
        except urllib.error.HTTPError as error:
            if wait_s is None or error.code < 500:
                raise
        except OSError:
            if wait_s is None:
                raise
        time.sleep(wait_s)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address was not named in the parameters, and gets neither news nor token."""

    def redirect_request(self, *_: Any) -> None:
        """Return None: the answer counts as an error."""


def _send(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S):
        pass


def _credentials(hook: WebhookParams, body: bytes) -> dict[str, str]:
    """Return the headers that say who sends a body; raises ``UsageError`` without a secret."""
    identity, moment = f"msg_{uuid.uuid4().hex}", str(int(time.time()))
    headers = {"webhook-id": identity, "webhook-timestamp": moment}
    if hook.auth == "none":
        return headers
    secret = _secret(hook)
    if hook.auth in ("signature", "both"):
        signed = f"{identity}.{moment}.".encode() + body
        digest = hmac.new(_signing_key(secret), signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    if hook.auth in ("bearer", "both"):
        headers["Authorization"] = f"Bearer {secret}"
    return headers


def _secret(hook: WebhookParams) -> str:
    if hook.secret_variable is not None:
        found = os.environ.get(hook.secret_variable, "").strip()
        place = f"the environment variable {hook.secret_variable}"
    else:
        from prefect.blocks.system import Secret

        place = f"Prefect's block secret/{hook.secret_block}"
        try:
            block: Any = Secret.load(str(hook.secret_block))
            found = str(block.get()).strip()
        except ValueError:
            found = ""
    if not found:
        raise UsageError(f"{place} is not there, or is empty")
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise UsageError(f"{place} holds what no secret can: spaces, line breaks or no ASCII")
    return found


def _signing_key(secret: str) -> bytes:
    if not secret.startswith(_IN_BASE64):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_IN_BASE64), validate=True)
    except ValueError:
        raise UsageError("the secret begins with whsec_ and is no base64 text") from None


def _shown(url: str) -> str:
    """Return an address without its path, which is a secret of many services."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _named(error: BaseException) -> str:
    """Return what may be shown of an error: its own words may hold an address or a secret."""
    if isinstance(error, DanceflowError):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        return error.reason.strerror or type(error.reason).__name__
    if isinstance(error, http.client.HTTPException | OSError):
        return type(error).__name__
    return f"{type(error).__name__} (its words may hold a secret and are not shown)"
