"""What clients send: JSON or a form with files, of fields that are known, and nothing else.

Both become the same ``Ask``. What is wrong is told by field and place, in words.
"""

import asyncio
import contextlib
import io
import json
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from danceflow.data.sizes import read_size
from danceflow.errors import DanceflowError, DataError, UsageError, brief, unknown_name
from danceflow.pictures import FORMATS, decode, read_base64
from danceflow.registry.student import Row, Student
from danceflow.service.limits import Limits, RequestError

JSON_TYPE, FORM_TYPE = "application/json", "multipart/form-data"
FURTHER = ("images_2", "images_3")
"""Fields of further pictures of an edit, in order."""
SEVERAL = ("prompts", "images", *FURTHER)
"""Fields that a form may hold more than once."""

_Kind = TypeVar("_Kind", bound=BaseModel)
_MAX_SEED = 2**63 - 1
_MAX_GUIDANCE = 100.0
_DRAIN_S = 2.0
_NUMBER = re.compile(r"[+-]?\d{1,19}")

Prompts = Annotated[
    list[str], Field(min_length=1, description="What to show, or to change; one picture for each.")
]
Seed = Annotated[
    int, Field(ge=0, le=_MAX_SEED, description="Decides the noise, with a picture's place.")
]
Steps = Annotated[
    int | None, Field(ge=1, description="Solver steps; null: what the student was made for.")
]
Guidance = Annotated[
    float,
    Field(ge=0.0, le=_MAX_GUIDANCE, allow_inf_nan=False, description="1 is a single pass."),
]


Further = Annotated[
    Sequence[str | bytes],
    Field(description="Further pictures of the edits, likewise; for a student that takes them."),
]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    prompts: Prompts
    seed: Seed = 0
    steps: Steps = None
    guidance: Guidance = 1.0


class GenerateFields(_Fields):
    """A request for pictures from prompts."""

    size: Annotated[
        str | None, Field(description="WIDTHxHEIGHT that the student makes; null: the usual one.")
    ] = None


class EditFields(_Fields):
    """A request for changed pictures."""

    images: Annotated[
        list[str | bytes],
        Field(
            min_length=1,
            description="Base64 text of picture files: one for each prompt, or one for all.",
        ),
    ]
    images_2: Further = ()
    images_3: Further = ()

    @property
    def columns(self) -> dict[str, Sequence[str | bytes]]:
        """The pictures of the edits by field, in order."""
        named: dict[str, Sequence[str | bytes]] = {
            "images": self.images, "images_2": self.images_2, "images_3": self.images_3,
        }  # fmt: skip
        return {name: pictures for name, pictures in named.items() if pictures}


class NotesFields(BaseModel):
    """A question what the model would not see of prompts."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    prompts: Prompts
    edits: Annotated[bool, Field(description="Whether they are to change a picture.")] = False


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return a request's body; what is too long is not held, and hardly read.

    Raises:
        RequestError: it is too long, or does not come.
        ClientDisconnect: the client went away.
    """
    declared = request.headers.get("content-length", "")
    parts: list[bytes] = []
    count = 0
    stream = request.stream()
    try:
        async with asyncio.timeout(limits.body_s):
            is_long = declared.isdecimal() and int(declared) > limits.body
            async for part in stream:
                count += len(part)
                if is_long or count > limits.body:
                    is_long = True
                    break
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            408, f"the body did not come within {limits.body_s:g} seconds", {"Connection": "close"}
        ) from None
    if is_long:
        await _drain(stream, limits.body)
        raise RequestError(
            413,
            f"the body is too large: at most {limits.body:,} bytes are read",
            {"Connection": "close"},
        )
    return b"".join(parts)


async def _drain(stream: AsyncIterator[bytes], limit: int) -> None:
    """Read on a little: who is still writing would not see why it is refused."""
    count = 0
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for part in stream:
                count += len(part)
                if count > limit:
                    return
    except (TimeoutError, ClientDisconnect):
        return


async def read_fields(request: Request, body: bytes, kind: type[_Kind]) -> _Kind:
    """Return what a body says.

    Raises:
        RequestError: it says something else, or in another way.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == JSON_TYPE:
        return checked(_parse_json(body), kind)
    if content_type == FORM_TYPE:
        return checked(await _parse_form(request, body, kind), kind)
    found = brief(content_type) or "none"
    raise RequestError(415, f"content-type: send {JSON_TYPE} or {FORM_TYPE}, found {found}")


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {brief(str(error))}") from None
    if not isinstance(found, dict):
        raise RequestError(400, f"the body should be a JSON object, found {_kind_of(found)}")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


async def _parse_form(request: Request, body: bytes, kind: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a form: lists where several may stand, numbers where they are asked."""
    async with open_form(request, body) as form:
        return await _form_fields(form, kind)


@contextlib.asynccontextmanager
async def open_form(request: Request, body: bytes) -> AsyncIterator[FormData]:
    """Give the form in a body that was read; its files are closed when the block is left.

    Raises:
        RequestError: it cannot be read.
    """
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    again = Request(request.scope, receive)
    try:
        async with again.form(max_part_size=len(body) + 1) as form:
            yield form
    except (HTTPException, AssertionError, ValueError, UnicodeError, KeyError) as error:
        reason = error.detail if isinstance(error, HTTPException) else str(error)
        raise RequestError(400, f"the form cannot be read: {brief(reason)}") from None


async def _form_fields(form: FormData, kind: type[BaseModel]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        content = await value.read() if isinstance(value, UploadFile) else value
        if name in SEVERAL:
            if name == "prompts" and isinstance(content, bytes):
                raise RequestError(422, "prompts: send text, not a file")
            fields.setdefault(name, []).append(content)
        elif name in fields:
            raise RequestError(422, f"{brief(name)}: is given more than once")
        elif isinstance(content, bytes):
            _require_known([name], kind)
            raise RequestError(422, f"{brief(name)}: send text, not a file")
        elif content:  # forms send empty fields for what nobody filled in
            fields[name] = _typed(name, content)
    return fields


def _typed(name: str, text: str) -> Any:
    """Return a form's text as the type that JSON would have."""
    if name in ("seed", "steps"):
        return int(text) if _NUMBER.fullmatch(text) else text
    if name == "guidance":
        try:
            return float(text)
        except ValueError:
            return text
    return text


def checked(found: Mapping[str, Any], kind: type[_Kind]) -> _Kind:
    """Return fields that were sent, each of them known and of its type.

    Raises:
        RequestError: one is not.
    """
    _require_known(found, kind)
    try:
        return kind.model_validate(dict(found))
    except ValidationError as error:
        raise RequestError(422, _first_problem(error)) from None


def _require_known(names: "Sequence[str] | Mapping[str, Any]", kind: type[BaseModel]) -> None:
    for name in names:
        if name not in kind.model_fields:
            raise RequestError(422, unknown_name("field", brief(name), kind.model_fields))


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    places = [part for part in first["loc"] if part not in ("str", "bytes")]
    name = str(places[0]) + "".join(f"[{part}]" for part in places[1:])
    if first["type"] == "missing":
        return f"{name}: is missing"
    text = str(first["msg"])
    return f"{name}: {text[0].lower()}{text[1:]}, found {_shown(first['input'])}"


def _shown(value: Any) -> str:
    if isinstance(value, bool | int | float) or value is None:
        return brief(json.dumps(value))
    return _kind_of(value)


def _kind_of(value: Any) -> str:
    names = {str: "text", bytes: "a file", list: "a list", dict: "an object", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


def check_numbers(fields: GenerateFields | EditFields, limits: Limits) -> None:
    """Check what costs time against the limits.

    Raises:
        RequestError: it is more than may be asked for.
    """
    check_prompts(fields.prompts, limits)
    if fields.steps is not None and fields.steps > limits.steps:
        raise RequestError(
            422, f"steps: {fields.steps} are asked for, at most {limits.steps} are made"
        )
    if not math.isfinite(fields.guidance):
        raise RequestError(422, "guidance: should be a finite number")
    if not isinstance(fields, EditFields):
        return
    for name, pictures in fields.columns.items():
        if len(pictures) not in (1, len(fields.prompts)):
            raise RequestError(
                422,
                f"{name}: {len(pictures)} are sent for {len(fields.prompts)} prompts; send one "
                "for each, or one for all",
            )
    if fields.images_3 and not fields.images_2:
        raise RequestError(422, "images_3: is sent without images_2")


def check_prompts(prompts: Sequence[str], limits: Limits) -> None:
    """Check that a model can read prompts.

    Raises:
        RequestError: there are too many, or one is empty, too long or no text.
    """
    if len(prompts) > limits.rows:
        raise RequestError(422, f"prompts: {len(prompts)} are sent, at most {limits.rows} at once")
    for place, prompt in enumerate(prompts):
        if not prompt.strip():
            raise RequestError(422, f"prompts[{place}]: is empty")
        if len(prompt) > limits.prompt:
            raise RequestError(
                422,
                f"prompts[{place}]: has {len(prompt)} characters, at most {limits.prompt} are read",
            )
        if not _is_unicode(prompt):
            raise RequestError(422, f"prompts[{place}]: holds half a character (a lone surrogate)")


def rows_of(
    fields: GenerateFields | EditFields, student: Student, limits: Limits
) -> tuple[Row, ...]:
    """Return what a student shall make; pictures are decoded one by one and kept small.

    Raises:
        RequestError: a picture or a size cannot be used.
    """
    if isinstance(fields, GenerateFields):
        try:
            size = student.result_size(read_size(fields.size) if fields.size else None)
        except UsageError as error:
            raise RequestError(422, f"size: {error}") from None
        return tuple(
            Row(prompt, None, fields.seed, place, size)
            for place, prompt in enumerate(fields.prompts)
        )
    columns = fields.columns
    try:
        student.require_sources(len(columns))
    except UsageError as error:
        raise RequestError(422, f"{list(columns)[-1]}: {error}") from None
    pictures: list[list[Image.Image]] = []
    for name, contents in columns.items():
        sent = []
        for place, content in enumerate(contents):
            first = pictures[0][place % len(pictures[0])] if pictures else None
            sent.append(_source(f"{name}[{place}]", content, first, student, limits))
        pictures.append(sent)
    return tuple(
        _row(prompt, [sent[place % len(sent)] for sent in pictures], fields.seed, place)
        for place, prompt in enumerate(fields.prompts)
    )


def _row(prompt: str, pictures: Sequence[Image.Image], seed: int, place: int) -> Row:
    source, *further = pictures
    size = source.height, source.width
    return Row(prompt, source, seed, place, size, tuple(further))


def _source(
    name: str, content: str | bytes, first: Image.Image | None, student: Student, limits: Limits
) -> Image.Image:
    try:
        data = content if isinstance(content, bytes) else read_base64(content)
        require_few_pixels(data, limits.pixels)
        return student.framed(decode(data), first)
    except DanceflowError as error:
        raise RequestError(422, f"{name}: {error}") from None


def require_few_pixels(data: bytes, limit: int) -> None:
    """Look at a picture's size before its pixels; what is no picture is told by ``decode``.

    Raises:
        DataError: it has more.
    """
    try:
        width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except Exception:  # Pillow's readers raise whatever they stumble over
        return
    if width * height > limit:
        raise DataError(
            f"is too large a picture: {width} x {height} pixels, at most {limit:,} are read"
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
