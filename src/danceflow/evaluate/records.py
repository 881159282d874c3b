"""What the evaluation of one capability leaves on disk, and how it is read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from danceflow.errors import DataError
from danceflow.ops.files import write_text

STUDENT = "student"
START = "start"
TEACHER = "teacher:"

STANDARD = "standard"
HELD_OUT_PAIR = "held_out_pair"
HELD_OUT_VARIANTS = ("reworded", HELD_OUT_PAIR)
UNKNOWN_WORDS = "unknown_words"

# In the folder of an evaluation's pictures.
TILES = "tiles.png"
TILES_INDEX = "tiles.json"
LOST = "lost"
"""Kind of the rows on which the student falls behind its teacher."""


class Record(BaseModel):
    """A part of an evaluation file; numbers are finite and no key is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Answer(Record):
    """One field's answer to one row; ``sc`` and ``pq`` belong to edits."""

    uid: str
    category: str
    variant: str
    seed: int
    score: float
    sc: float | None = None
    pq: float | None = None


class FieldResult(Record):
    """One field's scores; ``score`` and ``categories`` are about the standard rows."""

    score: float
    categories: Mapping[str, float]
    variants: Mapping[str, float]
    metrics: Mapping[str, float]
    field_gap: Mapping[str, float]
    rows: tuple[Answer, ...]


class Training(Record):
    """What the student's training took: updates made, and field evaluations of all networks."""

    num_updates: int
    field_evaluations: int


class LeftOut(Record):
    """A row that no field is judged by, since a judge gave no usable answer about one of them.

    Attributes:
        uid: of the row in the data.
        category: of the prompt.
        variant: of the row.
        seed: of the noise.
        reasons: field, question, key of the question and what the judge said.
    """

    uid: str
    category: str
    variant: str
    seed: int
    reasons: tuple[str, ...]


class OfCapability(Record):
    """What a file says of one capability."""

    capability: str


T = TypeVar("T", bound=OfCapability)


class Evaluation(OfCapability):
    """The scores of every field on one capability.

    Attributes:
        capability: its name.
        scale: the best possible score.
        teacher: name, among ``fields``, of the capability's own teacher.
        num_steps: Euler steps of every sample.
        extractor: the feature extractor behind FID and KID.
        training: what the student's training took; ``None`` where the student does not tell.
        student: SHA-256 of the manifest of the student that was asked; ``None``: an earlier
            version did not write it.
        seconds: how long the evaluation took.
        notes: what was not measured and why, and what measuring cost.
        left_out: rows that a judge left out of every field that it judged.
        fields: by name: ``student``, ``start`` and ``teacher:<name>``.
    """

    scale: float
    teacher: str
    num_steps: int
    extractor: str
    training: Training | None = None
    student: str | None = None
    seconds: float
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    fields: Mapping[str, FieldResult]


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation (atomically) as JSON, one answer a line."""
    write_text(path, _json(evaluation.model_dump(mode="json", exclude_none=True)) + "\n")


def read_evaluation(path: Path, capability: str) -> Evaluation:
    """Return the evaluation of a capability.

    Raises:
        DataError: the file is missing, truncated, or lacks the student, the start student or the
            capability's own teacher.
    """
    found = read_of(Evaluation, path, capability)
    missing = [name for name in (STUDENT, START, found.teacher) if name not in found.fields]
    if missing:
        again = evaluate_again(capability)
        raise DataError(f"{path}: there are no scores of {', '.join(missing)}; {again}")
    return found


def read_of(kind: type[T], path: Path, capability: str) -> T:
    """Return what a file of an evaluation says of a capability.

    Args:
        kind: of what it says.
        path: the file.
        capability: its name.

    Raises:
        DataError: the file is missing, damaged, or about another capability.
    """
    again = evaluate_again(capability)
    try:
        found = kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {again}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}: {place}: {first['msg']}; {again}") from error
    if found.capability != capability:
        raise DataError(f"{path}: is about {found.capability!r}, not {capability!r}; {again}")
    return found


def evaluate_again(capability: str) -> str:
    """Return what to do about a file of an evaluation that cannot be used."""
    return f"run the stage: dvc repro evaluate@{capability}"


def _json(value: Any, indent: str = "") -> str:
    """Return JSON in which an object of plain values stands on one line."""
    if not isinstance(value, dict | list) or not value or _is_flat(value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_json(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _json(item, inner) for item in value) + f"\n{indent}]"


def _is_flat(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return not any(isinstance(item, dict | list) for item in items)
