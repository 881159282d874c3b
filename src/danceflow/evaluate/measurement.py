"""How answers are measured: evaluators, row by row or of all images, and means over categories."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Protocol

from torch import Tensor

from danceflow.evaluate.task import Task


@dataclass(frozen=True)
class Measurement:
    """One number about a field's images.

    Attributes:
        name: of the metric.
        value: over all rows: the mean over categories where it has rows.
        rows: its value for every row, or ``None`` where it is about all images together.
    """

    name: str
    value: float
    rows: tuple[float, ...] | None = None


class Evaluator(Protocol):
    """Measures a field's answers to a task, whatever sizes its rows have."""

    def __call__(self, task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        """Yield measurements of the images [3, H, W] that a field gave to the rows of ``task``."""
        ...


RowEvaluator = Callable[[Task, Tensor], Iterator[Measurement]]
"""Measures answers [B, 3, H, W] to rows of one size, row by row."""


def over_sizes(
    evaluator: RowEvaluator, task: Task, images: Sequence[Tensor]
) -> Iterator[Measurement]:
    """Yield what an evaluator measures row by row, size by size, as measurements of all rows.

    A measurement that it cannot make at every size is left out.

    Args:
        evaluator: sees the rows of each size apart.
        task: rows of any sizes.
        images: an answer to every row.
    """
    values: dict[str, dict[int, float]] = {}
    for part, (one_size, batch) in zip(task.parts, task.of_sizes(images), strict=True):
        for item in evaluator(one_size, batch):
            found = zip(part.places, item.rows or (), strict=True)
            values.setdefault(item.name, {}).update(found)
    for name, rows in values.items():
        if len(rows) == task.num_rows:
            yield by_rows(task, name, [rows[place] for place in range(task.num_rows)])


def row_by_row(evaluator: RowEvaluator) -> Evaluator:
    """Return an evaluator of rows of any sizes, from one of rows of one size."""

    @wraps(evaluator)
    def measured(task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        return over_sizes(evaluator, task, images)

    return measured


def category_means(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean of each category of (category, value) pairs, in order of appearance."""
    values: dict[str, list[float]] = {}
    for category, value in rows:
        values.setdefault(category, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}


def mean_of_categories(rows: Iterable[tuple[str, float]]) -> float:
    """Return the mean over categories of (category, value) pairs: each category counts alike.

    Raises:
        ValueError: there are no rows.
    """
    means = category_means(rows)
    if not means:
        raise ValueError("there is nothing to take the mean of")
    return sum(means.values()) / len(means)


def by_rows(task: Task, name: str, values: Sequence[float]) -> Measurement:
    """Return the measurement of one value per row of ``task``."""
    categories = (row.category for row in task.rows)
    return Measurement(
        name, mean_of_categories(zip(categories, values, strict=True)), tuple(values)
    )
