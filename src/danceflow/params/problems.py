"""How everything that is wrong in a params file is told: all at once, each with its place."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from danceflow.errors import UsageError, brief, unknown_name
from danceflow.params.defaults import line_to_add
from danceflow.params.meaning import meaning_of


class Problem(NamedTuple):
    """One thing that is wrong in a params file."""

    path: str
    text: str


def message(source: str, problems: Sequence[Problem]) -> str:
    """Return the message about a file: one line, or a line for each of several problems."""
    lines = [f"{problem.path}: {problem.text}" for problem in problems]
    if len(lines) == 1:
        return f"{source}: {lines[0]}"
    return "\n  ".join([f"{source}: {len(lines)} problems", *lines])


def explain(section: str, annotation: Any, errors: Sequence[ErrorDetails]) -> Iterator[Problem]:
    """Yield pydantic's errors in plain words; a mistyped key is one problem, not two."""
    mistyped = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            *parent, key = error["loc"]
            siblings = _fields_at(annotation, parent)
            mistyped.add((*parent, nearest(str(key), siblings)))
            yield Problem(_dotted(section, error["loc"]), unknown_key(str(key), siblings))
    for error in errors:
        if error["type"] == "missing" and error["loc"] not in mistyped:
            name = _dotted(section, error["loc"])
            yield Problem(name, missing(name))
        elif error["type"] not in {"extra_forbidden", "missing"}:
            yield Problem(_dotted(section, error["loc"]), _plain(error))


def missing(name: str, what: str = "is missing") -> str:
    """Return what is said of a parameter or a section that is not there: which line to add."""
    if line := line_to_add(name):
        return f"{what}: add `{line}`"
    try:
        meaning_of(name)
    except UsageError:  # a file of another kind
        return what
    return f"{what}: `danceflow explain {name}` tells what it takes"


def nearest(name: str, known: Mapping[str, Any]) -> str | None:
    """Return the known key that a mistyped one probably stands for, None without any."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return close[0] if close else None


def unknown_key(name: str, known: Mapping[str, Any]) -> str:
    """Return what is said of a key that is not among the known ones."""
    return unknown_name("parameter", name, known)


def kind_of(value: Any) -> str:
    """Return what was found where something else should be."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else brief(json.dumps(value, default=repr))


def _plain(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "value_error":
        return str(context["error"])
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return unknown_name("value", str(error["input"]), known)
    text = re.sub(r"^\w+ should", "should", error["msg"]).replace("an object", "a mapping")
    return f"{text}, found {kind_of(error['input'])}"


def _dotted(section: str, loc: Sequence[int | str]) -> str:
    return ".".join([section, *(str(part) for part in loc if part != "[key]")])


def _fields_at(annotation: Any, loc: Sequence[int | str]) -> Mapping[str, Any]:
    """Return the keys that a model knows, some places below an annotation."""
    for part in loc:
        fields = _fields(annotation)
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        annotation = fields[str(part)].annotation if fields else get_args(annotation)[-1]
    return _fields(annotation)


def _fields(annotation: Any) -> Mapping[str, Any]:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation.model_fields if is_model else {}
