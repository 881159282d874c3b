"""What a gate decides on: the rows of a version, and by which evaluation they were scored.

Means can be compared whatever they are means of; rows cannot be mistaken. So a version keeps every
answer's score, and beside it everything that decided what was asked and how it was scored, its
*identity*: two versions are compared by equal identities only.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from danceflow.errors import DataError
from danceflow.evaluate.records import STANDARD, STUDENT, Evaluation, Record, read_evaluation
from danceflow.ops.files import fingerprint, read_object
from danceflow.report.bootstrap import pair

if TYPE_CHECKING:
    from danceflow.paths import Paths

Row = tuple[str, str, int, float, float | None]
"""Category, uid, noise seed, score of the student and of its teacher (None: not asked)."""


class Scored(Record):
    """A student's standard rows of one capability.

    Attributes:
        identity: everything that decided what was asked and how it was scored, by name.
        scale: the best possible score.
        teacher: name of the capability's own teacher.
        rows: every answer.
    """

    identity: Mapping[str, Any]
    scale: float
    teacher: str
    rows: tuple[Row, ...]

    def score(self) -> float:
        """Return the student's score: the mean over categories, each of which counts alike."""
        rows = [(category, uid, seed, score) for category, uid, seed, score, _ in self.rows]
        return float(pair({STUDENT: rows}).overall()[0])

    def differs_from(self, other: "Scored") -> list[str]:
        """Return the names of what was not the same in another evaluation."""
        names = dict.fromkeys([*self.identity, *other.identity])
        return [name for name in names if self.identity.get(name) != other.identity.get(name)]


class Evidence(Record):
    """All that is known about how good one student is, by one evaluation.

    Attributes:
        capabilities: by name.
        summary: what ``reports/summary.json`` tells of each; empty where nobody made a report.
        steps: what it tells of each by the number of steps; empty where nobody measured it.
    """

    capabilities: Mapping[str, Scored]
    summary: Mapping[str, Mapping[str, Any]] = {}
    steps: Mapping[str, Mapping[str, Any]] = {}

    @property
    def identity(self) -> str:
        """16 hexadecimal digits that stand for the evaluation, and not for its outcome."""
        return fingerprint({name: dict(item.identity) for name, item in self.capabilities.items()})

    def lines(self) -> list[str]:
        """Return every capability's score as a sentence."""
        return [
            f"{name}: scores {item.score():.4g} of {item.scale:g} on {len(item.rows)} rows"
            for name, item in self.capabilities.items()
        ]

    def as_text(self) -> str:
        """Return it as JSON."""
        return self.model_dump_json() + "\n"

    @staticmethod
    def read(text: str | bytes, source: str) -> "Evidence":
        """Return the evidence in a JSON text.

        Args:
            text: what ``as_text`` gave.
            source: where it stands, for messages.

        Raises:
            DataError: it is damaged.
        """
        try:
            return Evidence.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{source}: {place}: {first['msg']}") from error


def evidence_of(
    evaluations: Mapping[str, Evaluation],
    identities: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> Evidence:
    """Return the evidence of a run.

    Args:
        evaluations: by capability.
        identities: what decided each.
        summary: ``reports/summary.json``; {}: nobody made a report.
    """
    return Evidence(
        capabilities={
            name: Scored(
                identity=identities[name],
                scale=item.scale,
                teacher=item.teacher,
                rows=tuple(_rows(item)),
            )
            for name, item in evaluations.items()
        },
        summary=summary.get("capabilities", {}),
        steps=summary.get("steps", {}),
    )


def read_evidence(paths: "Paths", names: Iterable[str], summary: Mapping[str, Any]) -> Evidence:
    """Return the evidence that the stage ``evaluate`` left in a checkout.

    Args:
        paths: of the checkout.
        names: the capabilities.
        summary: ``reports/summary.json``; {}: nobody made a report.

    Raises:
        DataError: an evaluation is missing or damaged.
    """
    found = {name: read_evaluation(paths.evaluation(name), name) for name in names}
    return evidence_of(found, {name: read_identity(paths, name) for name in found}, summary)


def read_identity(paths: "Paths", name: str) -> dict[str, Any]:
    """Return what decided the evaluation of a capability.

    Raises:
        DataError: the evaluation did not say.
    """
    advice = f"run the stage: dvc repro evaluate@{name}"
    return read_object(paths.evaluation_identity(name), advice)


def _rows(evaluation: Evaluation) -> Iterable[Row]:
    """Yield the standard rows; what the teacher said to the same question stands beside it."""
    teacher = {
        (row.uid, row.seed): row.score
        for row in evaluation.fields[evaluation.teacher].rows
        if row.variant == STANDARD
    }
    for row in evaluation.fields[STUDENT].rows:
        if row.variant == STANDARD:
            yield row.category, row.uid, row.seed, row.score, teacher.get((row.uid, row.seed))
