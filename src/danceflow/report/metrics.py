"""The few numbers that runs are compared by: ``reports/metrics.json``, a column each in DVC.

Whatever else was measured stands in other files. A run in MLflow has the same under the same names.
"""

from collections.abc import Mapping
from typing import Any

from danceflow.evaluate.records import STUDENT, Evaluation
from danceflow.report.summary import own_teacher, share

_DIGITS = 4


def metrics_of(
    evaluations: Mapping[str, Evaluation], seconds: float | None, verdict: str | None = None
) -> dict[str, Any]:
    """Return plain data for ``reports/metrics.json``, in the order of its columns.

    ``score`` and ``retention`` are the student's by capability, ``field_evaluations`` is what its
    training took of networks, ``seconds`` what training and evaluations took of time. What is not
    known is left out.

    Args:
        evaluations: by capability.
        seconds: of the training; None: nothing was trained.
        verdict: the gate's, in a word; None: it was not asked.
    """
    scores = {name: item.fields[STUDENT].score for name, item in evaluations.items()}
    kept = {name: share(scores[name], own_teacher(item)) for name, item in evaluations.items()}
    training = next(iter(evaluations.values())).training
    return {
        "score": {name: round(score, _DIGITS) for name, score in scores.items()},
        "retention": {name: value for name, value in kept.items() if value is not None},
        **({} if verdict is None else {"verdict": verdict}),
        **({} if training is None else {"field_evaluations": training.field_evaluations}),
        "seconds": round((seconds or 0.0) + sum(item.seconds for item in evaluations.values())),
    }
