"""What the student and its teacher score by the number of steps: a record beside the evaluation.

An answer in half of the steps costs half, so these scores say what hosting a student may save.
"""

from collections.abc import Mapping
from pathlib import Path

from danceflow.errors import DataError
from danceflow.evaluate.records import OfCapability, Record, evaluate_again, read_of
from danceflow.ops.files import write_text


class FieldBySteps(Record):
    """One field's scores by the number of steps.

    Attributes:
        own_steps: the number that the evaluation itself asks it in.
        passes_per_step: evaluations of its network; guidance takes two.
        scores: by number of steps, the most first: a score for every row.
    """

    own_steps: int
    passes_per_step: int
    scores: Mapping[int, tuple[float, ...]]


class BySteps(OfCapability):
    """Scores of a capability's standard rows by the number of steps, all with the same noise.

    Attributes:
        capability: its name.
        seed: of the noise, the first of the evaluation's.
        rows: category and uid of every row.
        student: its scores.
        teacher: those of the capability's own teacher.
    """

    seed: int
    rows: tuple[tuple[str, str], ...]
    student: FieldBySteps
    teacher: FieldBySteps


def write_by_steps(path: Path, found: BySteps) -> None:
    """Write the scores (atomically) as JSON."""
    write_text(path, found.model_dump_json() + "\n")


def read_by_steps(path: Path, capability: str) -> BySteps:
    """Return the scores of a capability by the number of steps.

    Raises:
        DataError: the file is missing, damaged, or about another capability.
    """
    found, again = read_of(BySteps, path, capability), evaluate_again(capability)
    for name, field in (("student", found.student), ("teacher", found.teacher)):
        if field.own_steps not in field.scores:
            raise DataError(
                f"{path}: {name}: there is no score in {field.own_steps} steps; {again}"
            )
        if any(len(scores) != len(found.rows) for scores in field.scores.values()):
            raise DataError(f"{path}: {name}: there is not one score for every row; {again}")
    return found
