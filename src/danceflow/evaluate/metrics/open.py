"""The metrics of the table as evaluators, as far as their weights are there.

Weights lie on this machine, at the paths of ``evaluate.weights``. A metric without them is left
out, and the report says so; a path that leads nowhere is an error.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.evaluate.measurement import Evaluator, Measurement
from danceflow.evaluate.metrics import METRICS
from danceflow.evaluate.task import Task

if TYPE_CHECKING:
    from danceflow.params.sections import WeightsParams


def open_metrics(weights: "WeightsParams", root: Path) -> tuple[list[Evaluator], list[str]]:
    """Return the metrics whose weights are there, and a line for every one that is left out.

    Args:
        weights: the paths.
        root: the checkout, where relative ones start.

    Raises:
        WeightsError: a file is missing or holds something else.
    """
    evaluators: list[Evaluator] = []
    left_out = []
    for metric in METRICS:
        module, _, name = metric.maker.partition(":")
        evaluator = getattr(import_module(f"danceflow.evaluate.metrics.{module}"), name)
        if metric.weights is not None:
            place = f"evaluate.weights.{metric.weights}"
            path = getattr(weights, metric.weights)
            if path is None:
                left_out.append(f"{metric.label}: not measured, as {place} names no weights")
                continue
            evaluator = _made(evaluator, root / path, place)
        evaluators.append(_of_edits(evaluator) if metric.only_edits else evaluator)
    return evaluators, left_out


def _made(maker: Callable[[Path], Any], path: Path, place: str) -> Any:
    if not path.exists():
        raise WeightsError(f"{place}: {path}: there is no such file or folder")
    try:
        return maker(path)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{place}: {path}: cannot be used: {reason}") from error


def _of_edits(evaluator: Evaluator) -> Evaluator:
    """Return an evaluator that yields nothing about rows that are no edits."""

    def measured(task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        return evaluator(task, images) if task.is_edit else iter(())

    return measured
