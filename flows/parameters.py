"""The parameters of the flows as Prefect's page shows them and its server checks them.

A run that is asked for with a value that cannot be right is refused before it exists: the server
holds every name and value against the schema of ``params.yaml``. Rules that tie sections together
are checked when the run begins, before any stage.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from danceflow.params.sections import Params

_OPEN = "[^.]+"  # a name that the user has given, such as a capability's

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seconds = Annotated[float, Field(gt=0)]
AtOnce = Annotated[int, Field(ge=1)]


def override_schema() -> dict[str, Any]:
    """Return the JSON schema of new parameter values by dotted name."""
    whole = Params.model_json_schema()
    fixed: dict[str, Any] = {}
    open_: dict[str, Any] = {}
    for name, schema in _leaves(whole, whole["$defs"]):
        if _OPEN in name:
            open_[f"^{name}$"] = schema
        else:
            plain = name.replace("\\.", ".")
            fixed[plain] = {**schema, "title": plain}
    return {
        "type": "object",
        "properties": fixed,
        "patternProperties": open_,
        "additionalProperties": False,
    }


def _leaves(
    schema: Mapping[str, Any], known: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every dotted name below a section, as a pattern, and what its value may be."""
    schema = _whole(schema, known)
    for name, inner in schema.get("properties", {}).items():
        yield from _named(prefix + re.escape(name), inner, known)
    for inner in schema.get("patternProperties", {}).values():
        yield from _named(prefix + _OPEN, inner, known)


def _named(
    name: str, schema: Mapping[str, Any], known: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = _whole(schema, known)
    sections = [inner for inner in (whole, *whole.get("anyOf", ())) if _is_section(inner)]
    if not _is_section(whole):
        yield name, whole
    for section in sections:
        yield from _leaves(section, known, rf"{name}\.")
    for inner in (whole, *whole.get("anyOf", ())):
        if isinstance(inner.get("additionalProperties"), dict):  # values by a name
            yield rf"{name}\.{_OPEN}", inner["additionalProperties"]


def _is_section(schema: Mapping[str, Any]) -> bool:
    return "properties" in schema or "patternProperties" in schema


def _whole(schema: Any, known: Mapping[str, Any]) -> Any:
    """Return a schema with what it refers to in its place, and without names for a form."""
    if isinstance(schema, list):
        return [_whole(item, known) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _whole(known[schema["$ref"].rpartition("/")[2]], known)
    return {
        key: _whole(value, known)
        for key, value in schema.items()
        if key != "$defs" and not (key == "title" and isinstance(value, str))
    }


_YAML = {"type": "string", "pattern": r"\.ya?ml$"}
Overrides = Annotated[dict[str, Any], WithJsonSchema(override_schema())]
Recipe = Annotated[Path, WithJsonSchema({**_YAML, "examples": ["recipes/smoke.yaml"]})]
SweepFile = Annotated[Path, WithJsonSchema({**_YAML, "examples": ["sweeps/guidance.yaml"]})]
