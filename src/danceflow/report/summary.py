"""The result of a run in numbers: retention, gain, conflict matrix, categories and variants."""

from collections.abc import Mapping
from typing import Any

from danceflow.evaluate.records import (
    STANDARD,
    START,
    STUDENT,
    TEACHER,
    Evaluation,
)
from danceflow.report.bootstrap import PairedScores, difference, interval, pair, ratio
from danceflow.worlds.marks import REALISM

_DIGITS = 4
_SMALLEST_GAP = 0.05


def summarise(evaluations: Mapping[str, Evaluation], num_bootstrap: int) -> dict[str, Any]:
    """Return plain data for ``reports/summary.json``, without what other files tell.

    Retention is the student's score divided by that of the capability's own teacher; it is null
    where the teacher scores 0, and its interval where a resampled teacher does. Gain is the
    student's score less the start student's, as a share of the best possible score. Intervals are
    95 % paired bootstrap intervals over prompts, stratified by category. What part of the way from
    start to teacher was gone is ``gap_closed``.

    Args:
        evaluations: by capability.
        num_bootstrap: number of bootstrap replicates.
    """
    result: dict[str, Any] = {"capabilities": {}, "gain": {}}
    for name, evaluation in evaluations.items():
        result["capabilities"][name] = _capability(evaluation, num_bootstrap)
        result["gain"][name] = _gain(evaluation, num_bootstrap)
    result["gap_closed"] = {name: gap_closed(item) for name, item in evaluations.items()}
    result["conflict"] = conflict_matrix(evaluations)
    result["categories"] = {name: _categories(item) for name, item in evaluations.items()}
    result["variants"] = {name: _variants(item) for name, item in evaluations.items()}
    result["metrics"] = {name: _metrics(item) for name, item in evaluations.items()}
    return result


def gap_closed(evaluation: Evaluation) -> dict[str, float | None]:
    """Return the share of the teacher's gap closed, by measurement.

    (student - start) / (teacher - start) for ``score`` and, where it was measured, ``realism``;
    ``None`` where teacher and start differ by less than 5 % of the best possible value.
    """
    fields = (STUDENT, START, evaluation.teacher)
    values = {"score": [evaluation.fields[name].score / evaluation.scale for name in fields]}
    if all(REALISM in evaluation.fields[name].metrics for name in fields):
        values[REALISM] = [evaluation.fields[name].metrics[REALISM] for name in fields]
    return {
        name: _round((student - start) / (teacher - start))
        if abs(teacher - start) >= _SMALLEST_GAP
        else None
        for name, (student, start, teacher) in values.items()
    }


def conflict_matrix(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return every field's score on every capability, and as share of its own teacher's.

    ``least_share`` is a field's share where it does worst: what it would cost to deploy it alone.
    """
    names = list(dict.fromkeys(field for item in evaluations.values() for field in item.fields))
    order = [name for name in names if name.startswith(TEACHER)]
    order += [name for name in (START, STUDENT) if name in names]
    rows = {}
    for field in order:
        scores = {
            name: _round(item.fields[field].score)
            for name, item in evaluations.items()
            if field in item.fields
        }
        shares = {
            name: share(evaluations[name].fields[field].score, own_teacher(evaluations[name]))
            for name in scores
        }
        known = [value for value in shares.values() if value is not None]
        complete = len(known) == len(evaluations)
        rows[field] = {
            "scores": scores,
            "shares": shares,
            "least_share": min(known) if complete else None,
        }
    return {
        "capabilities": list(evaluations),
        "own_teacher": {name: item.teacher for name, item in evaluations.items()},
        "scale": {name: item.scale for name, item in evaluations.items()},
        "fields": rows,
    }


def own_teacher(evaluation: Evaluation) -> float:
    """Return the score of the capability's own teacher."""
    return evaluation.fields[evaluation.teacher].score


def share(score: float, teacher: float) -> float | None:
    """Return the share of a teacher's score, ``None`` where that is 0."""
    return _round(score / teacher) if teacher > 0 else None


def _paired(evaluation: Evaluation, other: str) -> PairedScores:
    """Return the student's scores and another field's, of the standard rows that both were asked.

    The student and its teacher are asked with more noise seeds than the others.
    """
    rows = {
        name: {
            (row.category, row.uid, row.seed): row.score
            for row in evaluation.fields[name].rows
            if row.variant == STANDARD
        }
        for name in (STUDENT, other)
    }
    both = [key for key in rows[STUDENT] if key in rows[other]]
    return pair({name: [(*key, found[key]) for key in both] for name, found in rows.items()})


def _capability(evaluation: Evaluation, num_bootstrap: int) -> dict[str, Any]:
    paired = _paired(evaluation, evaluation.teacher)
    student, teacher = evaluation.fields[STUDENT].score, own_teacher(evaluation)
    found = interval(paired, ratio(paired, STUDENT, evaluation.teacher), num_bootstrap)
    return {
        "student": _round(student),
        "teacher": _round(teacher),
        "start": _round(evaluation.fields[START].score),
        "retention": share(student, teacher),
        "retention_interval": _rounded(found),
        "num_samples": paired.num_prompts,
    }


def _gain(evaluation: Evaluation, num_bootstrap: int) -> dict[str, Any]:
    paired = _paired(evaluation, START)
    statistic = difference(paired, STUDENT, START)
    gain = float(statistic(paired.overall()))
    found = interval(paired, statistic, num_bootstrap)
    return {
        "value": _round(gain / evaluation.scale),
        "interval": None if found is None else [_round(end / evaluation.scale) for end in found],
    }


def _categories(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    return {
        category: {
            name: _round(result.categories[category])
            for name, result in evaluation.fields.items()
            if category in result.categories
        }
        for category in evaluation.fields[STUDENT].categories
    }


def _variants(evaluation: Evaluation) -> dict[str, dict[str, float | None]]:
    student, teacher = evaluation.fields[STUDENT], evaluation.fields[evaluation.teacher]
    return {
        name: {
            "student": _round(score),
            "teacher": _round(teacher.variants[name]),
            "retention": share(score, teacher.variants[name]),
        }
        for name, score in student.variants.items()
        if name in teacher.variants
    }


def _metrics(evaluation: Evaluation) -> dict[str, Any]:
    return {
        name: {
            **result.metrics,
            **({"field_gap": dict(result.field_gap)} if result.field_gap else {}),
        }
        for name, result in evaluation.fields.items()
    }


def _rounded(ends: tuple[float, float] | None) -> list[float] | None:
    return None if ends is None else [_round(end) for end in ends]


def _round(value: float) -> float:
    return round(value, _DIGITS)
