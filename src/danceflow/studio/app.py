"""The studio's addresses: pages, parts of pages, pictures, and what a designer does."""

import contextlib
import io
import json
import logging
import random
import re
import secrets
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.staticfiles import StaticFiles

from danceflow.errors import DanceflowError, UsageError
from danceflow.pictures import decode, plain, png_bytes, read_base64
from danceflow.report.page.difference import difference
from danceflow.service.app import Service, build_app
from danceflow.service.asking import (
    EditFields,
    GenerateFields,
    check_numbers,
    checked,
    open_form,
    read_body,
    require_few_pixels,
)
from danceflow.service.limits import Limits, RequestError
from danceflow.studio.guard import PERSON, SESSION, Guard, Sessions
from danceflow.studio.models import Models, Wish
from danceflow.studio.pages import STATIC, Pages
from danceflow.studio.pixels import animated, digest_of, kept
from danceflow.studio.recipe import PAPER, Carried, embedded, read_recipe
from danceflow.studio.tasks import Task, Tasks
from danceflow.studio.tree import Made, Node, Tree

if TYPE_CHECKING:
    from PIL.Image import Image

    from danceflow.service.token import Token
    from danceflow.studio.words import Words

_LOG = logging.getLogger(__name__)
_NUM_SUGGESTIONS, _NUM_HISTORY = 6, 40
_MAX_NEW_SEED = 2**31
_DECODERS = 2
_GONE = 499
_FURTHER = ("second", "third")
"""Fields of pictures beside the source."""

_YEAR_S = 31_536_000
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


@dataclass
class Studio:
    """What the pages show and change.

    Attributes:
        tree: of pictures.
        models: make pictures.
        limits: of requests.
        words: what is suggested.
        max_variants: pictures of one wish and one model.
    """

    tree: Tree
    models: Models
    limits: Limits
    words: "Words"
    max_variants: int = 8
    tasks: Tasks = field(init=False)

    def __post_init__(self) -> None:
        """Open the queue."""
        self.tasks = Tasks(self.tree, self.models, self.limits.queue)
        self.pages = Pages()
        self.decoders = anyio.CapacityLimiter(_DECODERS)

    # -----------------------------------------------------------------------------------------
    # What pages need

    async def page(self, request: Request) -> Response:
        """Return the whole page, with a picture and perhaps a comparison on it."""
        query = request.query_params
        node = self._node(query.get("node", ""))
        choices = self.models.known()
        about = None
        if not self.models.is_loading:
            with contextlib.suppress(RequestError):
                about = await self.models.about(choices[0].key)
        shown = await self._stage(node, query.get("with", ""))
        html = self.pages.page(
            stage=shown,
            node=node,
            models=self.pages.models(choices, "", full=False),
            sizes=about.sizes if about else (),
            steps=about.usual_steps if about else None,
            max_variants=self.max_variants,
            **self._tree(node, archived=False),
            **self._queue(request),
        )
        return HTMLResponse(html)

    async def models_part(self) -> Response:
        """Return all models that can be chosen, and what is known of the usual one once it is."""
        choices, problem = await self.models.choices()
        about = None
        with contextlib.suppress(RequestError):
            about = await self.models.about(choices[0].key)
        html = self.pages.models(choices, problem, full=True)
        html += self.pages.usual(
            sizes=about.sizes if about else (), steps=about.usual_steps if about else None
        )
        return HTMLResponse(html, headers={"HX-Trigger-After-Settle": "model-known"})

    async def further(self, request: Request) -> Response:
        """Return fields for pictures beside the source, where the model takes several."""
        query = request.query_params
        count = 0
        if query.get("source") and not self.models.is_loading:
            with contextlib.suppress(RequestError):
                count = (await self.models.about(query.get("model", ""))).max_sources - 1
        fields = [(name, query.get(name, "")) for name in _FURTHER[: max(0, count)]]
        nodes = self.tree.nodes(archived=False) if fields else []
        return HTMLResponse(self.pages.further(fields=fields, nodes=nodes))

    async def stage(self, request: Request, name: str = "") -> Response:
        """Return what stands in the middle, and with it which picture is changed next."""
        node = self._node(name)
        shown = await self._stage(node, request.query_params.get("with", ""))
        return HTMLResponse(shown + self.pages.source(node, oob=True))

    async def tree_part(self, request: Request) -> Response:
        """Return the tree."""
        node = self._node(request.query_params.get("source", ""))
        archived = request.query_params.get("archived") == "on"
        return HTMLResponse(self.pages.tree(**self._tree(node, archived=archived)))

    async def queue_part(self, request: Request) -> Response:
        """Return the queue, and the tree where it has changed since the page last had it."""
        return HTMLResponse(self._queue_html(request, request.query_params))

    async def hints(self, request: Request) -> Response:
        """Return suggestions for a prompt, and what the model would not see of it."""
        query = request.query_params
        text = query.get("prompt", "")[: self.limits.prompt]
        is_edit = bool(query.get("source", ""))
        history = [prompt for prompt, was_edit in self.tree.prompts() if was_edit == is_edit]
        found = self.words.suggest(text, history, _NUM_SUGGESTIONS, is_edit=is_edit)
        notes: Sequence[str] = ()
        if text.strip() and not self.models.is_loading:
            try:
                notes = await self.models.notes(query.get("model", ""), text, is_edit=is_edit)
            except RequestError as error:
                notes = (f"cannot be checked now: {error.reason}",)
        return HTMLResponse(self.pages.hints(suggestions=found, notes=notes, is_edit=is_edit))

    async def history(self, request: Request) -> Response:
        """Return prompts of before that hold what is searched."""
        wanted = request.query_params.get("search", "").lower().split()
        found = [
            (prompt, is_edit)
            for prompt, is_edit in self.tree.prompts()
            if all(word in prompt.lower() for word in wanted)
        ]
        return HTMLResponse(self.pages.history(found=found[:_NUM_HISTORY], more=len(found)))

    def _node(self, name: str) -> Node | None:
        return self.tree.node(name) if name else None

    async def _stage(self, node: Node | None, other: str) -> str:
        if node is None:
            return self.pages.empty(is_new=not self.tree.nodes(archived=True))
        lineage = self.tree.lineage(node.id)
        if not other:
            return self.pages.stage(node=node, lineage=lineage)
        first = self.tree.node(other)
        stays, problem = None, ""
        try:
            stays = await anyio.to_thread.run_sync(lambda: kept(*self._pair(first, node)))
        except DanceflowError as error:
            problem = str(error)
        others = [item for item in self.tree.nodes(archived=True) if item.id != node.id]
        return self.pages.compare(
            first=first,
            node=node,
            kept=stays,
            problem=problem,
            others=others,
            is_source=first.id == node.parent and node.seen is not None,
        )

    def _pair(self, first: Node, node: Node) -> "tuple[Image, Image]":
        """Return two pictures to compare; a source is taken as the model saw it."""
        is_source = first.id == node.parent and node.seen is not None
        one = node.seen if is_source and node.seen else first.picture
        return self.tree.picture(one), self.tree.picture(node.picture)

    def _tree(self, node: Node | None, *, archived: bool) -> dict[str, Any]:
        nodes = self.tree.nodes(archived=archived)
        below: dict[str | None, list[Node]] = {}
        for item in nodes:
            below.setdefault(item.parent, []).append(item)
        roots = below.get(None, [])[::-1]
        return {
            "roots": sorted(roots, key=lambda item: not item.pinned),
            "pinned": [item for item in nodes if item.pinned and item.parent is not None],
            "below": below,
            "current": node.id if node else "",
            "revision": self.tree.revision,
        }

    def _queue(self, request: Request) -> dict[str, Any]:
        person = request.cookies.get(PERSON, "")
        tasks = self.tasks.seen_by(person)
        return {
            "tasks": tasks,
            "person": person,
            "is_busy": any(not task.is_over for task, _ in tasks),
        }

    def _queue_html(self, request: Request, sent: Mapping[str, Any]) -> str:
        html = self.pages.queue(**self._queue(request), revision=self.tree.revision)
        if sent.get("revision") != self.tree.revision:
            node = None
            with contextlib.suppress(UsageError):  # somebody may have undone it
                node = self._node(str(sent.get("source", "")))
            archived = sent.get("archived") == "on"
            html += self.pages.tree(**self._tree(node, archived=archived), oob=True)
        return html

    # -----------------------------------------------------------------------------------------
    # What designers do

    async def make(self, request: Request) -> Response:
        """Begin a task, and return the queue."""
        async with self._form(request) as form:
            sent = {name: str(value) for name, value in form.multi_items()}
        await self._begin(request, sent)
        return HTMLResponse(self._queue_html(request, sent))

    async def _begin(self, request: Request, sent: Mapping[str, str]) -> None:
        node = self._node(sent.get("source", ""))
        count = _number(sent, "variants", 1)
        if not 1 <= count <= self.max_variants:
            raise RequestError(422, f"variants: at most {self.max_variants} are made at once")
        seed = _number(sent, "seed", random.randrange(_MAX_NEW_SEED))
        fields: dict[str, Any] = {
            "prompts": [sent.get("prompt", "")],
            "seed": seed + count - 1,
            "steps": _number(sent, "steps", None),
            "guidance": _decimal(sent, "guidance", 1.0),
        }
        if node is None:
            ask: Any = checked({**fields, "size": sent.get("size") or None}, GenerateFields)
        else:
            ask = checked({**fields, "images": [b""]}, EditFields)
        _named(lambda: check_numbers(ask, self.limits))
        source = mask = None
        further: list[Image] = []
        if node is not None:
            for name in filter(None, map(sent.get, _FURTHER)):
                other = self.tree.node(str(name))
                further.append(await anyio.to_thread.run_sync(self.tree.picture, other.picture))
            source = await anyio.to_thread.run_sync(self.tree.picture, node.picture)
            if sent.get("mask"):
                mask = await anyio.to_thread.run_sync(
                    self._mask, sent["mask"], limiter=self.decoders
                )
        keys = list(dict.fromkeys(key for key in (sent.get("model"), sent.get("beside")) if key))
        if not keys:
            raise RequestError(422, "model: choose one")
        wish = Wish(
            ask.prompts[0],
            source,
            tuple(range(seed, seed + count)),
            ask.steps,
            ask.guidance,
            None if node is not None else ask.size,
            tuple(further),
        )
        person = request.cookies.get(PERSON, "")
        self.tasks.begin(Task(person, keys, wish, node.id if node else None, mask))

    def _mask(self, text: str) -> "Image":
        try:
            data = read_base64(text)
            require_few_pixels(data, self.limits.pixels)
            return plain(decode(data), "#000000").convert("L")
        except DanceflowError as error:
            raise RequestError(422, f"mask: {error}") from None

    async def cancel(self, request: Request, name: str) -> Response:
        """End a task, and return the queue."""
        self.tasks.cancel(name, request.cookies.get(PERSON, ""))
        return HTMLResponse(self._queue_html(request, {"revision": self.tree.revision}))

    async def bring(self, request: Request) -> Response:
        """Take a picture into the tree, and tell which it is and what it says of its making.

        A file of a studio restores prompt, seed and source; the source joins the tree where it is
        not there.
        """
        async with self._form(request) as form:
            file = form.get("picture")
            if not isinstance(file, UploadFile) or not file.size:
                raise RequestError(422, "choose a picture to bring")
            data, title = await file.read(), Path(file.filename or "").stem
        person = request.cookies.get(PERSON, "")
        node, carried = await anyio.to_thread.run_sync(
            self._bring, data, title, person, limiter=self.decoders
        )
        told: dict[str, Any] = {"node": node.id}
        if carried is not None:
            recipe = carried.recipe
            told |= {
                "recipe": recipe.model_dump(mode="json"),
                "source": self._source_of(node, carried),
                "mask": carried.mask,
            }
        return JSONResponse(told)

    def _bring(self, data: bytes, title: str, by: str) -> tuple[Node, Carried | None]:
        try:
            require_few_pixels(data, self.limits.pixels)
            image = decode(data)
            carried = read_recipe(image)
            picture = plain(image, PAPER)
            sources = [embedded(text) for text in carried.sources] if carried else []
            mask = embedded(carried.mask).convert("L") if carried and carried.mask else None
        except DanceflowError as error:
            raise RequestError(422, f"this picture {error}") from None
        if (known := self.tree.by_picture(digest_of(picture))) is not None and carried:
            masks = [mask.convert("RGB")] if mask else []
            self.tree.mend(known, [picture, *sources, *masks])
            return known, carried
        if carried is None:
            return self.tree.add(None, [Made(picture, title=title)], by)[0], None
        parent = None
        for source in sources[:1]:
            found = self.tree.by_picture(digest_of(source))
            parent = found or self.tree.add(None, [Made(source, title="source of a file")], by)[0]
        seen = sources[0] if sources else None
        made = Made(picture, carried.recipe, seen, mask, further=sources[1:])
        return self.tree.add(parent.id if parent else None, [made], by)[0], carried

    def _source_of(self, node: Node, carried: Carried) -> str:
        """Return the node that a recipe changes, empty where it makes a new picture."""
        if node.parent is not None:
            return node.parent
        for digest in carried.recipe.sources:
            if (found := self.tree.by_picture(digest)) is not None:
                return found.id
        return ""

    async def change(self, request: Request, name: str, what: str) -> Response:
        """Pin, archive or rename a node; return the middle of the page."""
        person = request.cookies.get(PERSON, "")
        changes: dict[str, Callable[[str, str], Node]] = {
            "pin": self.tree.pin,
            "archive": self.tree.archive,
        }
        if what == "rename":
            async with self._form(request) as form:
                title = str(form.get("title", ""))
            node = self.tree.rename(name, title, person)
        elif what in changes:
            node = changes[what](name, person)
        else:
            raise RequestError(404, "there is nothing at this address")
        shown = await self._stage(node, "")
        return HTMLResponse(shown + self.pages.source(node, oob=True), headers=_CHANGED)

    async def step(self, request: Request, what: str) -> Response:
        """Undo one's own last change, or do it again; return what that was."""
        person = request.cookies.get(PERSON, "")
        text = self.tree.undo(person) if what == "undo" else self.tree.redo(person)
        told = f"taken back: {text}" if what == "undo" else f"done again: {text}"
        return HTMLResponse(told, headers=_CHANGED)

    @contextlib.asynccontextmanager
    async def _form(self, request: Request) -> AsyncIterator[FormData]:
        body = await read_body(request, self.limits)
        async with open_form(request, body) as form:
            yield form

    # -----------------------------------------------------------------------------------------
    # Files

    async def picture(self, name: str, request: Request) -> Response:
        """Return a node's file; it carries its recipe."""
        node = self.tree.node(name)
        file = await anyio.to_thread.run_sync(self.tree.file, node)
        headers = dict(_FOREVER)
        if "download" in request.query_params:
            headers["Content-Disposition"] = f'attachment; filename="{_file_name(node)}.png"'
        return Response(file, media_type="image/png", headers=headers)

    async def seen(self, name: str, place: int = 0) -> Response:
        """Return the source of a node as the model saw it, or the picture at a place beside it."""
        node = self.tree.node(name)
        if node.seen is None:
            raise RequestError(404, "this picture was made from nothing but its prompt")
        names = (node.seen, *node.further)
        if not 0 <= place < len(names):
            raise RequestError(404, f"this picture was made from {len(names)} pictures")
        picture = await anyio.to_thread.run_sync(self.tree.picture, names[place])
        file = await anyio.to_thread.run_sync(partial(png_bytes, picture, compress_level=6))
        return Response(file, media_type="image/png", headers=_FOREVER)

    async def difference(self, first: str, name: str) -> Response:
        """Return where two pictures differ."""
        one, other = self.tree.node(first), self.tree.node(name)

        def made() -> bytes:
            buffer = io.BytesIO()
            difference(*self._pair(one, other)).save(buffer, format="PNG")
            return buffer.getvalue()

        file = await anyio.to_thread.run_sync(made)
        return Response(file, media_type="image/png", headers=_FOREVER)

    async def lineage(self, name: str, kind: str) -> Response:
        """Return a node and what it came from: a folder, or an animated strip."""
        nodes = self.tree.lineage(name)
        stem = _file_name(nodes[-1])
        if kind == "png":
            pictures = [self.tree.picture(node.picture) for node in nodes]
            file = await anyio.to_thread.run_sync(animated, pictures)
            return _attached(file, "image/png", f"{stem}-strip.png")
        file = await anyio.to_thread.run_sync(partial(self._folder, nodes, stem))
        return _attached(file, "application/zip", f"{stem}.zip")

    def _folder(self, nodes: Sequence[Node], stem: str) -> bytes:
        buffer = io.BytesIO()
        told = []
        with zipfile.ZipFile(buffer, "w") as folder:
            for place, node in enumerate(nodes):
                name = f"{place:02d}-{_file_name(node)}.png"
                folder.writestr(f"{stem}/{name}", self.tree.file(node))
                recipe = None if node.recipe is None else node.recipe.model_dump(mode="json")
                told.append({"file": name, "name": node.name, "made": node.made, "recipe": recipe})
            folder.writestr(f"{stem}/lineage.json", json.dumps(told, indent=2) + "\n")
        return buffer.getvalue()


_CHANGED = {"HX-Trigger": "tree-changed"}


def build_studio(
    studio: Studio, service: Service | None, token: "Token | None", *, is_open: bool
) -> FastAPI:
    """Return the application: the studio's pages, and the model service's addresses beside them.

    Args:
        studio: what the pages show.
        service: the model service of this process; None: it is elsewhere.
        token: who has it may come in.
        is_open: whether others than this machine can reach the address, and need the token.
    """
    inner = None if service is None else build_app(service)
    sessions = Sessions(token if is_open else None)

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            if inner is not None:
                await stack.enter_async_context(inner.router.lifespan_context(inner))
            stack.callback(studio.tree.close)
            stack.push_async_callback(studio.models.close)
            stack.push_async_callback(studio.tasks.close)
            yield

    app = FastAPI(title="danceflow studio", lifespan=running, openapi_url=None)

    async def page(request: Request) -> Response:
        answer = await studio.page(request)
        if PERSON not in request.cookies:
            answer.set_cookie(
                PERSON, secrets.token_hex(16), _YEAR_S, httponly=True, samesite="strict"
            )
        return answer

    async def login_page() -> Response:
        return HTMLResponse(studio.pages.login(problem=""))

    async def login(request: Request) -> Response:
        body = await read_body(request, studio.limits)
        async with open_form(request, body) as form:
            session = sessions.open(str(form.get("token", "")))
        if session is None:
            return HTMLResponse(studio.pages.login(problem="This is not the token."), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(SESSION, session, httponly=True, samesite="strict")
        return answer

    async def step(request: Request) -> Response:
        return await studio.step(request, request.url.path.strip("/"))

    async def folder(name: str) -> Response:
        return await studio.lineage(name, "zip")

    async def strip(name: str) -> Response:
        return await studio.lineage(name, "png")

    asked: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("/", page),
        ("/login", login_page),
        ("/part/stage", studio.stage),
        ("/part/stage/{name}", studio.stage),
        ("/part/models", studio.models_part),
        ("/part/further", studio.further),
        ("/part/tree", studio.tree_part),
        ("/part/queue", studio.queue_part),
        ("/part/hints", studio.hints),
        ("/part/history", studio.history),
        ("/picture/{name}.png", studio.picture),
        ("/seen/{name}.png", studio.seen),
        ("/difference/{first}/{name}.png", studio.difference),
        ("/lineage/{name}.zip", folder),
        ("/lineage/{name}.png", strip),
    )
    for path, handler in asked:
        app.get(path)(handler)
    posted: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("/login", login),
        ("/make", studio.make),
        ("/bring", studio.bring),
        ("/cancel/{name}", studio.cancel),
        ("/node/{name}/{what}", studio.change),
        ("/undo", step),
        ("/redo", step),
    )
    for path, handler in posted:
        app.post(path)(handler)
    app.mount("/static", StaticFiles(directory=STATIC))
    if inner is not None:
        app.mount("", inner)

    async def refused(request: Request, error: Exception) -> Response:
        status, reason = 500, "the studio failed; its log says why"
        if isinstance(error, RequestError):
            status, reason = error.status, error.reason
        elif isinstance(error, ClientDisconnect):
            return Response(status_code=_GONE)
        elif isinstance(error, DanceflowError):
            status, reason = 404 if isinstance(error, UsageError) else 422, str(error)
        else:
            _LOG.error("a request failed", exc_info=error)
        if "text/html" in request.headers.get("accept", "") and request.method == "GET":
            return HTMLResponse(studio.pages.error(reason=reason), status)
        return JSONResponse({"error": reason}, status)

    for kind in (RequestError, ClientDisconnect, DanceflowError, Exception):
        app.exception_handler(kind)(refused)
    app.add_middleware(Guard, sessions=sessions)
    return app


def _attached(file: bytes, kind: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(file, media_type=kind, headers=headers)


def _file_name(node: Node) -> str:
    """Return a name that every system takes."""
    plain_text = re.sub(r"[^a-z0-9]+", "-", node.name.lower())
    return plain_text[:60].strip("-") or node.id


def _number(sent: Mapping[str, str], name: str, usual: Any) -> Any:
    text = sent.get(name, "").strip()
    if not text:
        return usual
    if not text.lstrip("-").isdecimal() or len(text) > 19:
        raise RequestError(422, f"{name}: write a whole number, found {text[:20]}")
    return int(text)


def _decimal(sent: Mapping[str, str], name: str, usual: float) -> float:
    text = sent.get(name, "").strip()
    try:
        return float(text) if text else usual
    except ValueError:
        raise RequestError(422, f"{name}: write a number, found {text[:20]}") from None


def _named(check: Callable[[], None]) -> None:
    """Tell of a page's one prompt what the service tells of many."""
    try:
        check()
    except RequestError as error:
        reason = error.reason.replace("prompts[0]", "the prompt").replace("prompts", "the prompt")
        raise RequestError(error.status, reason.replace("the prompt: ", "the prompt ")) from None
