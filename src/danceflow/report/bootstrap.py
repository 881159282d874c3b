"""Confidence intervals by paired bootstrap: every field is resampled with the same prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedScores:
    """Scores of several fields on the same prompts.

    Attributes:
        fields: names of the fields.
        categories: for each category the scores of its prompts, [prompts, fields]; a prompt asked
            with several noise seeds stands there once, with its mean, as its answers are not
            independent.
    """

    fields: tuple[str, ...]
    categories: Mapping[str, Array]

    @property
    def num_prompts(self) -> int:
        """The number of prompts of all categories."""
        return sum(len(scores) for scores in self.categories.values())

    def overall(self) -> Array:
        """Return each field's mean over categories, [fields]."""
        means: Array = np.mean([scores.mean(axis=0) for scores in self.categories.values()], axis=0)
        return means

    def resampled(self, num_resamples: int, seed: int) -> Array:
        """Return bootstrap replicates of :meth:`overall`, [num_resamples, fields].

        Prompts are drawn with replacement within each category, the same for every field (Efron
        and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and 8).

        Args:
            num_resamples: number of replicates.
            seed: decides the draws.
        """
        generator = np.random.default_rng(seed)
        total = np.zeros((num_resamples, len(self.fields)))
        for scores in self.categories.values():
            counts = generator.multinomial(
                len(scores), np.full(len(scores), 1 / len(scores)), size=num_resamples
            )
            total += counts @ scores / len(scores)
        result: Array = total / len(self.categories)
        return result

    def index(self, field: str) -> int:
        """Return the column of ``field``."""
        return self.fields.index(field)


def pair(
    rows_of_field: Mapping[str, Sequence[tuple[str, str, int, float]]],
) -> PairedScores:
    """Return the paired scores of fields.

    Args:
        rows_of_field: by field, (category, uid, seed, score) of each answer.

    Raises:
        ValueError: the fields were not asked the same.
    """
    tables = {
        field: {(category, uid, seed): score for category, uid, seed, score in rows}
        for field, rows in rows_of_field.items()
    }
    first, *others = tables.values()
    if not first or any(table.keys() != first.keys() for table in others):
        raise ValueError("the fields were not asked the same prompts with the same seeds")
    by_prompt: dict[str, dict[str, list[tuple[str, str, int]]]] = {}
    for key in first:
        by_prompt.setdefault(key[0], {}).setdefault(key[1], []).append(key)
    categories = {
        category: np.array(
            [
                [np.mean([table[key] for key in keys]) for table in tables.values()]
                for keys in prompts.values()
            ]
        )
        for category, prompts in by_prompt.items()
    }
    return PairedScores(tuple(tables), categories)


def interval(
    paired: PairedScores,
    statistic: Callable[[Array], Array],
    num_resamples: int,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a statistic of the fields' overall scores.

    Args:
        paired: the scores.
        statistic: maps overall scores [..., fields] to the statistic [...].
        num_resamples: number of bootstrap replicates.
        seed: decides the draws.

    Returns:
        Both ends, or ``None`` where some replicate has no finite statistic (a ratio to 0).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        replicates = statistic(paired.resampled(num_resamples, seed))
    if not np.isfinite(replicates).all():
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def ratio(paired: PairedScores, above: str, below: str) -> Callable[[Array], Array]:
    """Return the statistic "overall score of one field divided by another's"."""
    one, other = paired.index(above), paired.index(below)
    return lambda overall: overall[..., one] / overall[..., other]


def difference(paired: PairedScores, first: str, second: str) -> Callable[[Array], Array]:
    """Return the statistic "overall score of one field less another's"."""
    one, other = paired.index(first), paired.index(second)
    return lambda overall: overall[..., one] - overall[..., other]
