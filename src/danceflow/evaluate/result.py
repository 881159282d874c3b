"""What a field's answers come to: scores by category and variant, metrics, marks of every row."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from danceflow.evaluate import score as marks
from danceflow.evaluate.judge.judge import JUDGE, Judged
from danceflow.evaluate.measurement import Evaluator, category_means, mean_of_categories
from danceflow.evaluate.records import (
    HELD_OUT_VARIANTS,
    STANDARD,
    UNKNOWN_WORDS,
    Answer,
    FieldResult,
)
from danceflow.evaluate.task import Row, Task
from danceflow.worlds.marks import SCORE


def once(task: Task, *variants: str) -> list[int]:
    """Return the positions of the rows with the first noise seed.

    Args:
        task: what is asked.
        variants: of the rows; none: all.
    """
    return [
        place
        for place, row in enumerate(task.rows)
        if row.seed == task.rows[0].seed and (not variants or row.variant in variants)
    ]


def result_of(
    task: Task,
    images: Sequence[Tensor],
    further: Sequence[Evaluator] = (),
    judged: Mapping[Row, Judged] | None = None,
) -> FieldResult:
    """Return the scores of a field's images; the field gap is left empty.

    Args:
        task: what the field was asked.
        images: its answers, finite, in [0, 1].
        further: evaluators of the standard rows beside what the world measures.
        judged: a judge's marks of every row, in place of the scores that the data gives.
    """
    if judged is None:
        found = marks.score(task, images)
        parts = {item.name: item.rows for item in found if item.rows is not None}
    else:
        parts = _judged_rows(task, judged)
    rows = tuple(
        Answer(
            uid=row.uid,
            category=row.category,
            variant=row.variant,
            seed=row.seed,
            **{name: round(values[place], 4) for name, values in parts.items()},
        )
        for place, row in enumerate(task.rows)
    )
    scores = list(zip((row.category for row in rows), parts[SCORE], strict=True))
    standard = task.where(STANDARD)
    first = once(task, STANDARD)  # as many for every field
    variants = {
        name: mean_of_categories(scores[place] for place in task.where(name))
        for name in (STANDARD, *HELD_OUT_VARIANTS, UNKNOWN_WORDS)
        if task.where(name)
    }
    return FieldResult(
        score=variants[STANDARD],
        categories=category_means(scores[place] for place in standard),
        variants=variants,
        metrics=_metrics(task.select(first), [images[place] for place in first], further),
        field_gap={},
        rows=rows,
    )


def judged_means(judged: Mapping[Row, Judged]) -> dict[str, float]:
    """Return the means over categories of a judge's marks, as further metrics."""
    names = {mark for item in judged.values() for mark in item.marks} - {"right"}
    values = {SCORE: {row: item.score for row, item in judged.items()}} if judged else {}
    values |= {
        name: {row: item.marks[name] for row, item in judged.items()} for name in sorted(names)
    }
    return {
        JUDGE + name: round(
            mean_of_categories((row.category, value) for row, value in marks.items()), 5
        )
        for name, marks in values.items()
    }


def _metrics(
    task: Task, images: Sequence[Tensor], further: Sequence[Evaluator]
) -> dict[str, float]:
    """Return the further metrics of the standard rows."""
    return {
        item.name: round(item.value, 5)
        for evaluator in (marks.further, *further)
        for item in evaluator(task, images)
    }


def _judged_rows(task: Task, judged: Mapping[Row, Judged]) -> dict[str, tuple[float, ...]]:
    """Return a judge's scores as an evaluator would give them."""
    rows = {SCORE: tuple(judged[row].score for row in task.rows)}
    if task.is_edit:
        for kind in ("sc", "pq"):
            rows[kind] = tuple(judged[row].marks[kind] for row in task.rows)
    return rows
