"""The application: what is at which address, who may ask, and what is answered."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from danceflow import __version__
from danceflow.data.sizes import shown
from danceflow.pictures import png_base64, png_bytes
from danceflow.service.asking import (
    FORM_TYPE,
    JSON_TYPE,
    EditFields,
    GenerateFields,
    NotesFields,
    check_numbers,
    check_prompts,
    read_body,
    read_fields,
    rows_of,
)
from danceflow.service.batching import Batcher, Job, QueueFullError
from danceflow.service.examples import ANSWER, EDIT, GENERATE, form_schema
from danceflow.service.limits import Limits, RequestError
from danceflow.service.live import Live, Served, Source
from danceflow.service.metrics import Metrics
from danceflow.service.served import ServedLog, ServedRow, now
from danceflow.service.token import Token, is_from_here

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)
_OPEN = ("/healthz", "/readyz")  # whoever runs the process asks these without a token
_ASKED = ("/v1/generate", "/v1/edit")
_PATHS = (
    *_OPEN,
    *_ASKED,
    "/v1/notes",
    "/v1/progress/<name>",
    "/v1/model",
    "/metrics",
    "/openapi.json",
)
_GONE = 499  # as proxies say that the client closed the connection
_NUM_DECODERS = 2
_PNG_TYPE = "image/png"
NAME_HEADER = "x-danceflow-request"
"""Names a request, so that its progress can be asked for."""

_NAME = re.compile(r"[A-Za-z0-9-]{16,64}")  # long ones are not guessed


class Service:
    """One model, one queue and what is counted."""

    def __init__(
        self,
        source: Source,
        limits: Limits,
        log: ServedLog,
        *,
        token: Token | None = None,
        poll_s: float = 10.0,
        window_s: float = 0.01,
    ) -> None:
        """Put the parts together; the model is loaded when the application starts.

        Args:
            source: where the student comes from.
            limits: of requests.
            log: takes samples of what is asked.
            token: who has it may ask; None: everybody who can reach the address.
            poll_s: seconds between two looks for a newer model.
            window_s: seconds that a picture waits for others to be computed with.
        """
        self.limits = limits
        self.log = log
        self.token = token
        self.metrics = Metrics(lambda: len(self.batcher))
        self.live = Live(source, poll_s, self.metrics.changed, self.metrics.failed)
        self.batcher = Batcher(limits.queue, window_s, self.metrics.computed, self.metrics.dropped)
        self._num_requests = 0
        self._named: dict[str, Job] = {}
        self._decoders = anyio.CapacityLimiter(_NUM_DECODERS)

    @property
    def served(self) -> Served:
        """The student of now.

        Raises:
            RequestError: none is loaded.
        """
        if (served := self.live.served) is None:
            raise RequestError(503, f"there is no model yet: {self.live.problem}", _retry(5))
        return served

    async def answer(self, request: Request, kind: type[GenerateFields | EditFields]) -> Response:
        """Return the pictures that a request asks for.

        Raises:
            RequestError: it cannot be answered.
        """
        began = time.perf_counter()
        served = self.served
        if self._num_requests >= self.limits.queue:
            raise _busy(self.batcher.full())
        self._num_requests += 1
        try:
            body = await read_body(request, self.limits)
            fields = await read_fields(request, body, kind)
            del body
            check_numbers(fields, self.limits)
            as_png = _wants_png(request, len(fields.prompts))
            rows = await anyio.to_thread.run_sync(
                rows_of, fields, served.student, self.limits, limiter=self._decoders
            )
            is_edit = rows[0].source is not None
            steps = fields.steps or served.student.steps(is_edit=is_edit)
            answer: asyncio.Future[list[Image]] = asyncio.get_running_loop().create_future()
            job = Job(served, rows, steps, fields.guidance, answer)
            with self._told(request, job):
                pictures = await self._pictures(request, job)
            if pictures is None:
                return Response(status_code=_GONE)
            files = await anyio.to_thread.run_sync(_encoded, pictures, limiter=self._decoders)
            if self.log.wants():
                samples = self._samples(job, files, time.perf_counter() - began)
                await anyio.to_thread.run_sync(self.log.write, samples)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            self._num_requests -= 1
        headers = {"X-Danceflow-Model": f"{served.name}/{served.version}"}
        if as_png:
            return Response(files[0], media_type=_PNG_TYPE, headers=headers)
        told = await anyio.to_thread.run_sync(
            _told, job, fields.seed, files, limiter=self._decoders
        )
        return JSONResponse(told, headers=headers)

    @contextlib.contextmanager
    def _told(self, request: Request, job: Job) -> Iterator[None]:
        """Let ``progress`` tell of a job while it is worked on, where its request has a name."""
        name = request.headers.get(NAME_HEADER, "")
        if not _NAME.fullmatch(name):
            yield
            return
        self._named[name] = job
        try:
            yield
        finally:
            self._named.pop(name, None)

    def progress(self, name: str) -> dict[str, int]:
        """Return how many steps of a request are begun, over all its pictures, and of how many.

        Raises:
            RequestError: no request of that name is worked on.
        """
        if (job := self._named.get(name)) is None:
            raise RequestError(404, "no request of this name is worked on now")
        steps = job.steps * len(job.rows)
        return {"begun": min(job.num_steps_begun, steps), "steps": steps}

    async def notes(self, request: Request) -> Response:
        """Return what the model would not see of prompts; no picture is made.

        Raises:
            RequestError: it cannot be told.
        """
        student = self.served.student
        try:
            body = await read_body(request, self.limits)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        fields = await read_fields(request, body, NotesFields)
        check_prompts(fields.prompts, self.limits)

        def told() -> list[list[str]]:
            return [student.notes(prompt, is_edit=fields.edits) for prompt in fields.prompts]

        found = await anyio.to_thread.run_sync(told, limiter=self._decoders)
        return JSONResponse({"notes": [[f"the prompt {note}" for note in one] for one in found]})

    async def _pictures(self, request: Request, job: Job) -> "list[Image] | None":
        """Return a job's pictures, None where the client did not wait for them."""
        try:
            self.batcher.submit(job)
        except QueueFullError as error:
            raise _busy(error) from None
        gone = asyncio.create_task(_until_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {job.answer, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not job.answer.done():
                return None
            if (failure := job.answer.exception()) is not None:
                raise RequestError(
                    500, "the model failed on this request; the service's log says why"
                ) from failure
            return job.answer.result()
        finally:
            gone.cancel()
            if not job.answer.done():
                job.answer.cancel()
                self.batcher.give_up(job)

    def _samples(self, job: Job, files: Sequence[bytes], seconds: float) -> list[ServedRow]:
        keeps = self.log.keeps_pictures
        return [
            ServedRow(
                time=now(),
                version=job.served.version,
                digest=job.served.digest,
                prompt=row.prompt,
                is_edit=row.source is not None,
                steps=job.steps,
                guidance=job.guidance,
                seconds=round(seconds, 4),
                source=png_base64(png_bytes(row.source)) if keeps and row.source else None,
                image=png_base64(file) if keeps else None,
                further=tuple(png_base64(png_bytes(p)) for p in row.further) if keeps else (),
            )
            for row, file in zip(job.rows, files, strict=True)
        ]

    def described(self) -> dict[str, Any]:
        """Return what a client may want to know before it asks.

        Raises:
            RequestError: no model is loaded.
        """
        served = self.served
        return {
            **served.described(),
            "steps": served.student.steps(is_edit=False),
            "edit_steps": served.student.steps(is_edit=True),
            "sizes": [shown(size) for size in served.student.image_sizes],
            "framing": served.student.framing,
            "max_sources": served.student.max_sources,
            "computed_together": served.student.together,
            "limits": {
                "prompts": self.limits.rows,
                "steps": self.limits.steps,
                "body_bytes": self.limits.body,
                "picture_pixels": self.limits.pixels,
                "prompt_characters": self.limits.prompt,
                "waiting_pictures": self.limits.queue,
            },
        }


def build_app(service: Service) -> FastAPI:
    """Return the application of a service; its model is loaded and followed while it runs."""

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        if service.live.served is None:
            await anyio.to_thread.run_sync(service.live.start)
        try:
            yield
        finally:
            service.live.stop()
            await anyio.to_thread.run_sync(service.batcher.close)

    bearer = HTTPBearer(auto_error=False, description="The token, where the service has one.")
    app = FastAPI(
        title="danceflow",
        version=__version__,
        description="Pictures from prompts, and pictures changed as told, by the student that the "
        "model registry calls champion.",
        lifespan=running,
        docs_url=None,  # the pages would load scripts from elsewhere
        redoc_url=None,
    )

    async def alive() -> dict[str, str]:
        """Return that the process answers; a model need not be there."""
        return {"status": "alive"}

    async def ready() -> JSONResponse:
        """Return which model answers, or 503 and why there is none."""
        if (served := service.live.served) is None:
            content = {"status": "not ready", "reason": service.live.problem}
            return JSONResponse(content, 503)
        return JSONResponse({"status": "ready", "model": served.described()})

    async def metrics() -> Response:
        """Return what was counted, for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def model() -> dict[str, Any]:
        """Return which model answers, what it makes, and what may be asked."""
        return service.described()

    async def generate(request: Request) -> Response:
        """Return one picture per prompt.

        The answer is JSON; ``Accept: image/png`` with one prompt asks for the file alone.
        """
        return await service.answer(request, GenerateFields)

    async def edit(request: Request) -> Response:
        """Return every picture changed as its prompt says.

        The answer is JSON; ``Accept: image/png`` with one prompt asks for the file alone.
        """
        return await service.answer(request, EditFields)

    async def notes(request: Request) -> Response:
        """Return what the model would not see of each prompt; no picture is made."""
        return await service.notes(request)

    async def progress(name: str) -> dict[str, int]:
        """Return how far a request is that was sent with this name in ``X-Danceflow-Request``."""
        return service.progress(name)

    guarded = [Depends(bearer)] if service.token is not None else []
    app.get("/healthz", tags=["health"])(alive)
    app.get("/readyz", tags=["health"])(ready)
    app.get("/metrics", tags=["health"], dependencies=guarded)(metrics)
    app.get("/v1/model", tags=["pictures"], dependencies=guarded)(model)
    for path, handler, kind, examples in (
        ("/v1/generate", generate, GenerateFields, GENERATE),
        ("/v1/edit", edit, EditFields, EDIT),
    ):
        app.post(
            path,
            tags=["pictures"],
            dependencies=guarded,
            responses=_responses(),
            openapi_extra={"requestBody": _body(kind, examples)},
        )(handler)
    app.get("/v1/progress/{name}", tags=["pictures"], dependencies=guarded)(progress)
    app.post(
        "/v1/notes",
        tags=["pictures"],
        dependencies=guarded,
        openapi_extra={"requestBody": _notes_body()},
    )(notes)
    app.exception_handler(RequestError)(_refused)
    app.exception_handler(HTTPException)(_no_such)
    app.exception_handler(Exception)(_failed)
    app.add_middleware(Guard, token=service.token)
    app.add_middleware(_Counting, metrics=service.metrics)
    return app


class Guard:
    """Lets through who has the token; without one, what a browser sends for no other site."""

    def __init__(self, app: ASGIApp, token: Token | None) -> None:
        """Stand before an application.

        Args:
            app: what answers.
            token: who has it may ask; None: everybody who can reach the address.
        """
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what may be answered."""
        app = self._app
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            headers = dict(scope["headers"])
            if self._token is None:
                if not is_from_here(headers):
                    app = _told_error(RequestError(403, "pages of other sites may not ask"))
            elif not self._token.fits(headers.get(b"authorization", b"")):
                app = _told_error(
                    RequestError(
                        401,
                        "send the service's token: Authorization: Bearer <token>",
                        {"WWW-Authenticate": "Bearer", "Connection": "close"},
                    )
                )
        await app(scope, receive, send)


class _Counting:
    """Counts every request with its status and seconds."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.answered(path, status, time.perf_counter() - began)


async def _until_gone(request: Request) -> None:
    """Return when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wants_png(request: Request, num_prompts: int) -> bool:
    """Return whether the file alone is asked for.

    Raises:
        RequestError: it is, with several prompts.
    """
    if request.headers.get("accept", "").partition(";")[0].strip().lower() != _PNG_TYPE:
        return False
    if num_prompts > 1:
        raise RequestError(
            406, f"accept: {_PNG_TYPE} answers one prompt, {num_prompts} are sent; ask for JSON"
        )
    return True


def _encoded(pictures: "Sequence[Image]") -> list[bytes]:
    """Return pictures as PNG files, as ``danceflow generate`` and MLflow's server write them."""
    return [png_bytes(picture, compress_level=6) for picture in pictures]


def _told(job: Job, seed: int, files: Sequence[bytes]) -> dict[str, Any]:
    notes = [
        job.served.student.notes(row.prompt, is_edit=row.source is not None) for row in job.rows
    ]
    return {
        "model": job.served.described(),
        "seed": seed,
        "steps": job.steps,
        "guidance": job.guidance,
        "images": [
            {
                "image": png_base64(file),
                "size": shown(row.size),
                "notes": [f"the prompt {note}" for note in found],
            }
            for row, file, found in zip(job.rows, files, notes, strict=True)
        ],
    }


def _busy(error: QueueFullError) -> RequestError:
    return RequestError(503, str(error), _retry(error.retry_s))


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def _told_error(error: RequestError) -> JSONResponse:
    return JSONResponse({"error": error.reason}, error.status, dict(error.headers))


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _told_error(error)


async def _no_such(request: Request, error: Exception) -> Response:
    """Answer an unknown address, or another method, with a sentence."""
    assert isinstance(error, HTTPException)
    reason = str(error.detail)
    if error.status_code == 404:
        reason = f"there is nothing at this address; there is {', '.join(_PATHS)}"
    elif error.status_code == 405:
        reason = f"{request.method} is not answered here"
    return _told_error(RequestError(error.status_code, reason, error.headers or {}))


async def _failed(_: Request, error: Exception) -> Response:
    _LOG.error("a request failed", exc_info=error)
    return _told_error(RequestError(500, "the service failed; its log says why"))


def _body(kind: type[GenerateFields | EditFields], examples: dict[str, Any]) -> dict[str, Any]:
    schema = partial(kind.model_json_schema, mode="validation")()
    return {
        "required": True,
        "content": {
            JSON_TYPE: {"schema": _as_text(schema), "examples": examples},
            FORM_TYPE: {"schema": form_schema(schema)},
        },
    }


def _notes_body() -> dict[str, Any]:
    example = {"value": {"prompts": ["a red unicorn"], "edits": False}}
    schema = NotesFields.model_json_schema(mode="validation")
    return {
        "required": True,
        "content": {JSON_TYPE: {"schema": schema, "examples": {"one": example}}},
    }


def _as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in which pictures are base64 text, as JSON has them."""
    properties = dict(schema["properties"])
    if "images" in properties:
        text = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}
        properties["images"] = {**properties["images"], "items": text}
    return {**schema, "properties": properties}


def _responses() -> dict[int | str, dict[str, Any]]:
    refused = {
        400: "The body cannot be read.",
        401: "The token is missing, or another one.",
        403: "A page of another site asks, and there is no token.",
        406: "The file alone was asked for, with several prompts.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        415: "The body is of another type.",
        422: "A field is unknown, missing or out of bounds, or a picture cannot be used.",
        503: "No model is loaded yet, or too many requests wait; Retry-After says how long.",
    }
    content = {JSON_TYPE: {"example": {"error": "steps: 500 are asked for, at most 100 are made"}}}
    made = {
        JSON_TYPE: {"example": ANSWER},
        _PNG_TYPE: {"schema": {"type": "string", "format": "binary"}},
    }
    return {
        200: {"description": "The pictures.", "content": made},
        **{status: {"description": text, "content": content} for status, text in refused.items()},
    }
