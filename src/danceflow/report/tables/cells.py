"""What one cell of a sweep came to: a small file in its experiment, and the same as a tracked run.

Scores have names of four parts, ``<field>/<capability>/<kind>/<name>``, such as
``student/t2i/category/counting``; the kinds are those of ``KINDS``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from danceflow.errors import DataError
from danceflow.evaluate.records import STANDARD, START, STUDENT, Evaluation, FieldResult, Record
from danceflow.ops.files import write_text
from danceflow.report.summary import gap_closed

if TYPE_CHECKING:
    from danceflow.params.sections import Params

OVERALL, CATEGORY, VARIANT, GAP_CLOSED = KINDS = ("overall", "category", "variant", "gap_closed")
OWN_TEACHER = "teacher"
FIELDS = (STUDENT, START, OWN_TEACHER)
CELL_FILE = "reports/cell.json"
TAGS = ("sweep", "cell", "variant", "seed", "targets", "code", "finished")
"""The parts of a record that become tags of its run."""


class CellRecord(Record):
    """One cell of a sweep that ended well.

    Attributes:
        sweep: the sweep's name.
        cell: the cell's name, which is its experiment's too and stands for all its parameters.
        variant: what it is called in tables.
        seed: of the training.
        targets: the stages that were asked for, joined by spaces.
        code: digest of the code and the data that it ran with.
        finished: seconds since 1970.
        scores: numbers by name.
    """

    sweep: str
    cell: str
    variant: str
    seed: int
    targets: str
    code: str
    finished: float
    scores: Mapping[str, float]


def scores_of(params: "Params", evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Return the numbers that tables are made of.

    Beside the scores, and the student's share of the teacher's gap closed where there is a gap:
    ``scale/<capability>``, the best possible score; ``trained/<capability>``, 1
    or 0; ``training/num_updates`` and ``training/field_evaluations``.

    Args:
        params: the cell's parameters.
        evaluations: by capability.
    """
    scores: dict[str, float] = {}
    for capability, found in evaluations.items():
        scores[f"scale/{capability}"] = found.scale
        scores[f"trained/{capability}"] = float(params.capabilities[capability].weight > 0)
        names = {STUDENT: STUDENT, START: START, OWN_TEACHER: found.teacher}
        for field, name in names.items():
            for place, value in _scores(found.fields[name]):
                scores[f"{field}/{capability}/{place}"] = value
        for name, share in gap_closed(found).items():
            if share is not None:
                scores[f"{STUDENT}/{capability}/{GAP_CLOSED}/{name}"] = share
        if found.training is not None:
            for name, count in found.training.model_dump().items():
                scores[f"training/{name}"] = float(count)
    return scores


def write_cell(path: Path, record: CellRecord) -> None:
    """Write a record (atomically) as JSON."""
    write_text(path, json.dumps(record.model_dump(), indent=2, allow_nan=False) + "\n")


def read_cell(text: str, source: str) -> CellRecord:
    """Return the record in a text.

    Args:
        text: the content of a cell's file.
        source: where it comes from, for messages.

    Raises:
        DataError: it is none.
    """
    try:
        return CellRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{source}: {place}: {first['msg']}") from error


def tags_of(record: CellRecord) -> dict[str, str]:
    """Return a record's tags, without its scores."""
    values = record.model_dump()
    return {f"sweep.{tag}": str(values[tag]) for tag in TAGS}


def from_tags(tags: Mapping[str, str], scores: Mapping[str, float], source: str) -> CellRecord:
    """Return the record that a run's tags and metrics hold.

    Raises:
        DataError: a tag is missing or spoilt.
    """
    values = {tag: tags.get(f"sweep.{tag}") for tag in TAGS}
    try:
        return CellRecord.model_validate({**values, "scores": dict(scores)})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{source}: sweep.{place}: {first['msg']}") from error


def _scores(result: FieldResult) -> Iterator[tuple[str, float]]:
    yield f"{OVERALL}/{OVERALL}", result.score
    for name, value in result.categories.items():
        yield f"{CATEGORY}/{name}", value
    for name, value in result.variants.items():
        if name != STANDARD:
            yield f"{VARIANT}/{name}", value
