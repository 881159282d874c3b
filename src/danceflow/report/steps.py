"""What is kept in few steps: student and own teacher by the number of steps, and its cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from danceflow.evaluate.by_steps import BySteps, FieldBySteps
from danceflow.report.bootstrap import PairedScores, interval, pair, ratio
from danceflow.report.summary import share

_DIGITS = 4
_TEACHER = "teacher"
_STUDENT = "student in "


def retention_by_steps(found: BySteps, num_bootstrap: int) -> dict[str, Any]:
    """Return plain data for ``reports/summary.json``: a row for every number of steps, most first.

    ``share`` is a score divided by the teacher's in its own number of steps, on the same prompts
    with the same noise; it is null where that is 0. ``interval`` is the 95 % paired bootstrap
    interval of the student's. ``passes`` are the evaluations of the network that an answer takes.

    Args:
        found: scores of student and teacher.
        num_bootstrap: number of bootstrap replicates.
    """
    student, teacher = found.student, found.teacher
    paired = _paired(found)
    reference = float(paired.overall()[paired.index(_TEACHER)])
    rows = []
    for number in sorted({*student.scores, *teacher.scores}, reverse=True):
        row: dict[str, Any] = {"steps": number, "student": None, "teacher": None}
        if number in student.scores:
            row["student"] = _row(found, student, number, reference)
            ends = interval(paired, ratio(paired, f"{_STUDENT}{number}", _TEACHER), num_bootstrap)
            row["student"]["interval"] = None if ends is None else [*map(_round, ends)]
        if number in teacher.scores:
            row["teacher"] = _row(found, teacher, number, reference)
        rows.append(row)
    return {
        "student_steps": student.own_steps,
        "teacher_steps": teacher.own_steps,
        "seed": found.seed,
        "num_samples": paired.num_prompts,
        "rows": rows,
    }


def numbers_by_steps(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores in few steps by the names that a run has them under in MLflow.

    Such as ``t2i/score_in_4_steps``, ``t2i/retention_in_4_steps`` and
    ``t2i/teacher_score_in_4_steps``. A capability that was asked in no further number has none.

    Args:
        steps: ``retention_by_steps`` of every capability.
    """
    return {
        f"{capability}/{name}_in_{row['steps']}_steps": float(value)
        for capability, found in steps.items()
        if len(found["rows"]) > 1
        for row in found["rows"]
        for name, value in _numbers(row)
        if value is not None
    }


def _numbers(row: Mapping[str, Any]) -> Sequence[tuple[str, float | None]]:
    student, teacher = row["student"] or {}, row["teacher"] or {}
    return (
        ("score", student.get("score")),
        ("retention", student.get("share")),
        ("teacher_score", teacher.get("score")),
    )


def _row(found: BySteps, field: FieldBySteps, number: int, reference: float) -> dict[str, Any]:
    score = float(_pair(found, {"": field.scores[number]}).overall()[0])
    return {
        "score": _round(score),
        "share": share(score, reference),
        "passes": number * field.passes_per_step,
    }


def _paired(found: BySteps) -> PairedScores:
    """Return the student's scores in every number of steps, and the teacher's in its own."""
    scores = {f"{_STUDENT}{number}": scores for number, scores in found.student.scores.items()}
    return _pair(found, {**scores, _TEACHER: found.teacher.scores[found.teacher.own_steps]})


def _pair(found: BySteps, scores: Mapping[str, Sequence[float]]) -> PairedScores:
    return pair(
        {
            name: [
                (category, uid, found.seed, score)
                for (category, uid), score in zip(found.rows, values, strict=True)
            ]
            for name, values in scores.items()
        }
    )


def _round(value: float) -> float:
    return round(value, _DIGITS)
