"""A model service over HTTP in place of weights of one's own."""

import asyncio
import base64
import logging
import os
import secrets
import time
from typing import TYPE_CHECKING, Any

import anyio
import httpx

from danceflow.errors import DanceflowError, UsageError, brief
from danceflow.ops.tracking import holds_login
from danceflow.pictures import FIT, PAPER, Frame, decode, fit_picture, plain, png_base64, png_bytes
from danceflow.service.app import NAME_HEADER
from danceflow.service.asking import FURTHER
from danceflow.service.limits import RequestError
from danceflow.service.token import VARIABLE, is_loopback
from danceflow.studio.models import About, Answer, Choice, Progress, Wish

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)
_CONNECT_S = 5.0
_ANSWER_S = 600.0
_FRESH_S = 5.0
_LOOK_S = 0.3
_TRIES = 5
_MAX_WAIT_S = 5.0
_TOLD = {"name", "version", "digest", "steps", "sizes"}


class RemoteModels:
    """The student of a model service (``danceflow serve-model``) at an address."""

    def __init__(self, url: str) -> None:
        """Take the address; the token is that of the environment.

        Raises:
            UsageError: it is no address, or holds a login.
        """
        if holds_login(url):
            raise UsageError(f"--url: leave the login out; the token is read from {VARIABLE}")
        try:
            parsed = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise UsageError(f"--url {brief(url)}: {error}") from None
        if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query:
            raise UsageError(f"--url {brief(url)}: write it as http://127.0.0.1:8080")
        self.url = str(parsed)
        token = os.environ.get(VARIABLE, "").strip()
        if token and parsed.scheme == "http" and not is_loopback(parsed.host):
            _LOG.warning("%s: the token travels unencrypted; https would hide it", self.url)
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
        )
        self._known: tuple[float, dict[str, Any]] | None = None

    @property
    def is_loading(self) -> bool:
        """Nothing is loaded here."""
        return False

    def known(self) -> list[Choice]:
        """Return the one model there."""
        return [Choice(self.url, f"the service at {self.url}", "Service")]

    async def choices(self) -> tuple[list[Choice], str]:
        """Return the one model there, also while it does not answer."""
        try:
            about, problem = await self.about(self.url), ""
        except RequestError as error:
            return self.known(), error.reason
        label = f"{about.name} v{about.version}" if about.version else about.name
        return [Choice(self.url, f"{label} at {self.url}", "Service")], problem

    async def about(self, key: str) -> About:
        """Return what the service says of its model."""
        del key
        found = await self._described()
        return _about(found["name"], found["version"], found["digest"], found)

    async def notes(self, key: str, prompt: str, *, is_edit: bool) -> tuple[str, ...]:
        """Return what the model would not see of a prompt; a service of before says nothing."""
        del key
        try:
            found = await self._ask("/v1/notes", {"prompts": [prompt], "edits": is_edit})
        except RequestError as error:
            if error.status == 404:
                return ()
            raise
        return tuple(str(note).removeprefix("the prompt ") for note in found["notes"][0])

    async def make(self, key: str, wish: Wish, progress: Progress) -> Answer:
        """Return pictures, a request for each seed, so that each can be made again by its own."""
        del key
        progress.state = "waits for the service"
        found = await self._described()
        seen = None
        further: list[Image] = []
        if wish.source is not None:
            seen = await anyio.to_thread.run_sync(_framed, wish.source, found)
            size = seen.size
            further = [
                await anyio.to_thread.run_sync(_framed, image, found, size)
                for image in wish.further
            ]
        began = time.monotonic()
        pictures: list[Image] = []
        model: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        steps = 0
        for seed in wish.seeds:
            fields: dict[str, Any] = {
                "prompts": [wish.prompt],
                "seed": seed,
                "steps": wish.steps,
                "guidance": wish.guidance,
            }
            name = secrets.token_hex(16)
            watching = asyncio.create_task(self._watch(name, progress, len(wish.seeds)))
            try:
                if seen is None:
                    answer = await self._ask("/v1/generate", {**fields, "size": wish.size}, name)
                else:
                    names = ("images", *FURTHER)
                    files = {
                        column: [png_base64(png_bytes(image))]
                        for column, image in zip(names, (seen, *further), strict=False)
                    }
                    answer = await self._ask("/v1/edit", {**fields, **files}, name)
            finally:
                watching.cancel()
            model, steps = answer["model"], int(answer["steps"])
            (image,) = answer["images"]
            notes = tuple(str(note).removeprefix("the prompt ") for note in image["notes"])
            pictures.append(await anyio.to_thread.run_sync(_picture, image["image"]))
            progress.num_done += 1
        about = _about(model["name"], model["version"], model["digest"], found)
        seconds = (time.monotonic() - began) / len(pictures)
        return Answer(about, pictures, seen, tuple(further), steps, notes, seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _watch(self, name: str, progress: Progress, num_seeds: int) -> None:
        """Note how far a request is, as long as the service tells."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                found = (await self._client.get(f"/v1/progress/{name}")).json()
                begun, steps = int(found["begun"]), int(found["steps"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                continue  # not begun yet, or a service of before, which does not tell
            progress.state = "is made"
            progress.told = progress.num_done * steps + begun, num_seeds * steps

    async def _described(self) -> dict[str, Any]:
        if self._known is None or time.monotonic() - self._known[0] > _FRESH_S:
            found = await self._ask("/v1/model", None)
            if not found.keys() >= _TOLD:
                raise RequestError(502, f"at {self.url} answers no danceflow model service")
            self._known = time.monotonic(), found
        return self._known[1]

    async def _ask(
        self, path: str, fields: dict[str, Any] | None, name: str = ""
    ) -> dict[str, Any]:
        """Return an answer; a service that is busy is asked again a few times.

        Raises:
            RequestError: it does not answer, or refuses.
        """
        for attempt in range(_TRIES):
            try:
                if fields is None:
                    answer = await self._client.get(path)
                else:
                    headers = {NAME_HEADER: name} if name else {}
                    answer = await self._client.post(path, json=fields, headers=headers)
                found = answer.json()
            except httpx.HTTPError as error:
                reason = brief(str(error) or type(error).__name__)
                raise RequestError(
                    502, f"the model service at {self.url} does not answer: {reason}"
                ) from None
            except ValueError:
                raise RequestError(
                    502, f"at {self.url} answers no danceflow model service"
                ) from None
            if answer.status_code == 200 and isinstance(found, dict):
                return found
            wait = answer.headers.get("retry-after", "")
            if answer.status_code == 503 and wait.isdecimal() and attempt < _TRIES - 1:
                await asyncio.sleep(min(float(wait), _MAX_WAIT_S))
                continue
            break
        told = found.get("error") if isinstance(found, dict) else None
        reason = brief(str(told or f"it answers {answer.status_code}"), 300)
        if answer.status_code == 401:
            reason = f"it wants its token: set {VARIABLE} and start the studio again"
        raise RequestError(
            answer.status_code if answer.status_code >= 400 else 502,
            f"the model service says: {reason}",
        )


def _about(name: Any, version: Any, digest: Any, found: dict[str, Any]) -> About:
    return About(
        str(name),
        int(version),
        str(digest),
        int(found["steps"]),
        int(found.get("edit_steps", found["steps"])),
        tuple(map(str, found["sizes"])),
        max(1, int(found.get("max_sources", 1))),
    )


def _framed(source: "Image", found: dict[str, Any], size: tuple[int, int] | None = None) -> "Image":
    """Return a picture as the service's model will see it; framed there again, it is the same.

    Args:
        source: as it was brought or made.
        found: what the service says of itself.
        size: width and height, of a picture beside the first one; None: by its own aspect.
    """
    framing = found.get("framing", {"fit": FIT, "paper": PAPER})
    sizes = [tuple(map(int, size.split("x"))) for size in found["sizes"]]
    frame = Frame(tuple((w, h) for w, h in sizes), framing["fit"], framing["paper"])
    image = plain(source, frame.paper)
    try:
        return fit_picture(image, size or frame.size_for(image), frame)
    except DanceflowError as error:
        raise RequestError(422, str(error)) from None


def _picture(text: Any) -> "Image":
    try:
        return plain(decode(base64.b64decode(str(text), validate=True)), PAPER)
    except (DanceflowError, ValueError) as error:
        raise RequestError(502, f"the model service sent no picture: {error}") from None
