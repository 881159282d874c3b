"""The kinds of values that stand in a params file, and what is said of a value that is none."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import core_schema

from danceflow.columns import COLUMN_NAMES, COLUMN_PRESETS
from danceflow.errors import unknown_name


@dataclass(frozen=True)
class OneOf:
    """The check that a word is one of the known ones.

    Attributes:
        kind: What the word stands for, for the message.
        known: All words.
    """

    kind: str
    known: tuple[str, ...]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Return what pydantic does with a value: it is a word, then one of these."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON Schema, from which editors offer the words."""
        return {**handler(schema), "enum": list(self.known)}

    def _check(self, name: str) -> str:
        if name not in self.known:
            raise ValueError(unknown_name(self.kind, name, self.known))
        return name


def _address(value: object) -> object:
    """Check an endpoint's address; what it is may hold a password, so it is never told."""
    form = "should be http:// or https://, host and path, up to and with /v1"
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        is_complete = parts is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        raise ValueError(form) from None
    if parts is None or not is_complete or parts.scheme not in ("http", "https"):
        raise ValueError(form)
    if "@" in parts.netloc:
        raise ValueError(
            "holds a user or password, which git, MLflow and the report would show; put a key into "
            "an environment variable and name it as key_variable"
        )
    has_gap = any(letter.isspace() or not letter.isprintable() for letter in str(value))
    if parts.query or parts.fragment or has_gap:
        raise ValueError(form + ", without ?, # or spaces")
    return value


def _webhook(value: object) -> object:
    """Check an address that is told something; it may hold a password, so it is never told."""
    form = (
        "should be http:// or https://, host and path, without user, ?, # or spaces; an address "
        "that holds a secret belongs into a Prefect block"
    )
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        is_complete = parts is not None and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        raise ValueError(form) from None
    if parts is None or not is_complete or parts.scheme not in ("http", "https"):
        raise ValueError(form)
    has_gap = any(letter.isspace() or not letter.isprintable() for letter in str(value))
    if "@" in parts.netloc or parts.query or parts.fragment or has_gap:
        raise ValueError(form)
    return value


def _block(value: str) -> str:
    """Check how Prefect names a block: small letters, digits and dashes."""
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*/[a-z0-9]+(-[a-z0-9]+)*", value):
        raise ValueError("should be type/name of a Prefect block, such as slack-webhook/team")
    return value


def _variable(value: object) -> object:
    """Check the name of an environment variable; what is none may be a key, so it is not told."""
    if value is None or (isinstance(value, str) and re.fullmatch("[A-Z_][A-Z0-9_]*", value)):
        return value
    raise ValueError(
        "should be the name of an environment variable in capitals, such as JUDGE_KEY, or null; "
        "the key itself belongs into that variable"
    )


def _num_queries(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value is None or value == "all" or is_count:
        return value
    raise ValueError(f"should be a number from 1, 'all' or null, found {json.dumps(value)}")


def _num_steps(value: object) -> object:
    counts = list(value.values()) if isinstance(value, dict) else [value]
    if counts and all(type(count) is int and count >= 1 for count in counts):
        return value
    raise ValueError(
        "should be a number from 1, or one for every capability such as {t2i: 16, edit: 4}, found "
        f"{json.dumps(value)}"
    )


def _columns(value: object) -> object:
    if isinstance(value, str):
        if value not in COLUMN_PRESETS:
            raise ValueError(unknown_name("preset of columns", value, COLUMN_PRESETS))
        return COLUMN_PRESETS[value]
    if not isinstance(value, dict):
        raise ValueError(f"should be a preset or a mapping, found {json.dumps(value)}")
    for name, column in value.items():
        if name not in COLUMN_NAMES:
            raise ValueError(unknown_name("content of a column", name, COLUMN_NAMES))
        if not isinstance(column, str) or not column:
            raise ValueError(f"{name}: should name a column, found {json.dumps(column)}")
    for name in ("prompt", "target"):
        if name not in value:
            raise ValueError(f"{name}: is missing; say which column holds it")
    return value


def _not_empty(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not value:
        raise ValueError("needs at least one entry")
    return value


# A name that becomes part of a path and of a stage's name.
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NumQueries = Annotated[
    int | Literal["all"] | None,
    PlainValidator(_num_queries),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"const": "all"}, {"type": "null"}]}
    ),
]
NumSteps = Annotated[
    int | Mapping[str, int],
    PlainValidator(_num_steps),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {
                    "type": "object",
                    "additionalProperties": {"type": "integer", "minimum": 1},
                    "minProperties": 1,
                },
            ]
        }
    ),
]
Address = Annotated[str, BeforeValidator(_address)]
Webhook = Annotated[str, BeforeValidator(_webhook)]
# As Prefect allows them: small letters, digits and dashes.
BlockName = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
BlockSlug = Annotated[str, AfterValidator(_block)]
# The name of an environment variable.
Variable = Annotated[str | None, BeforeValidator(_variable)]
Columns = Annotated[
    Mapping[str, str],
    PlainValidator(_columns),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": list(COLUMN_PRESETS)},
                {
                    "type": "object",
                    "properties": {name: {"type": "string"} for name in COLUMN_NAMES},
                    "required": ["prompt", "target"],
                    "additionalProperties": False,
                },
            ]
        }
    ),
]
Ratio = Annotated[str, Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")]
# A mapping with something in it.
NotEmpty = AfterValidator(_not_empty)
