"""A sweep's results side by side: mean and 95 % interval over seeds, by variant.

Every table holds every capability of the runs, also one that was not trained (the anchor): what a
method costs elsewhere is part of its result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from danceflow.errors import DataError
from danceflow.evaluate.records import STUDENT
from danceflow.report.tables.cells import OVERALL, CellRecord
from danceflow.report.tables.statistics import Estimate

SORT_RULE = (
    "sorted by the mean over the trained capabilities of score / best possible score, best first"
)
MEAN = "trained"


@dataclass(frozen=True)
class VariantRow:
    """One variant: its estimates by the names of scores (see ``danceflow.report.tables.cells``).

    ``values`` are what they are made of, by seed.
    """

    variant: str
    seeds: tuple[int, ...]
    estimates: Mapping[str, Estimate]
    values: Mapping[int, Mapping[str, float]]

    def get(self, name: str) -> Estimate | None:
        """Return an estimate, ``None`` where the variant has none."""
        return self.estimates.get(name)


@dataclass(frozen=True)
class Table:
    """A sweep's results.

    Attributes:
        sweep: the sweep's name.
        rows: the variants in the order of ``SORT_RULE``.
        capabilities: all of them, in the order of the runs.
        trained: those that some variant was trained on.
        scale: the best possible score of each.
        num_codes: how many states of code and data its cells ran with.
    """

    sweep: str
    rows: tuple[VariantRow, ...]
    capabilities: tuple[str, ...]
    trained: frozenset[str]
    scale: Mapping[str, float]
    num_codes: int = 1

    def names(self, capability: str, kind: str) -> list[str]:
        """Return the names of a capability's categories or variants, in order of appearance."""
        start = f"{STUDENT}/{capability}/{kind}/"
        found = (name for row in self.rows for name in row.estimates if name.startswith(start))
        return list(dict.fromkeys(name.removeprefix(start) for name in found))

    def common(self, field: str, capability: str) -> float | None:
        """Return the score of a field that is no student, ``None`` where variants differ in it."""
        found = {
            round(estimate.mean, 4)
            for row in self.rows
            if (estimate := row.get(overall(capability, field))) is not None
        }
        return next(iter(found)) if len(found) == 1 else None


def make_table(sweep: str, cells: Sequence[CellRecord]) -> Table:
    """Return the table of a sweep's cells.

    Args:
        sweep: its name.
        cells: one per variant and seed.

    Raises:
        DataError: there is no cell, or cells were scored on different capabilities.
    """
    if not cells:
        raise DataError(f"sweep {sweep!r}: no cell of it is finished; run danceflow sweep")
    capabilities = _capabilities(cells[0])
    for cell in cells:
        if set(_capabilities(cell)) != set(capabilities):
            raise DataError(
                f"cell {cell.cell}: is about {', '.join(_capabilities(cell))}, others of the "
                f"sweep about {', '.join(capabilities)}; give what is not trained the weight 0"
            )
    groups: dict[str, list[CellRecord]] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        groups.setdefault(cell.variant, []).append(cell)
    rows = [_row(variant, group) for variant, group in groups.items()]
    trained = frozenset(
        name for name in capabilities if any(cell.scores[f"trained/{name}"] for cell in cells)
    )
    scale = {name: cells[0].scores[f"scale/{name}"] for name in capabilities}

    def rank(row: VariantRow) -> tuple[float, str]:
        shares = [row.estimates[overall(name)].mean / scale[name] for name in trained]
        return -math.fsum(shares) / len(shares), row.variant

    num_codes = len({cell.code for cell in cells})
    return Table(sweep, tuple(sorted(rows, key=rank)), capabilities, trained, scale, num_codes)


def differences(table: Table, against: str) -> dict[str, dict[str, Estimate]]:
    """Return how far each variant is from ``against``, over pairs of cells with the same seed.

    A seed stands for the same routes, rows, noise and queries: what the pair shares cancels.
    By variant and capability, as a share of the best possible score; ``MEAN`` is the mean over the
    trained capabilities. A variant without a seed in common is left out.

    Raises:
        DataError: no variant has that name.
    """
    base = next((row for row in table.rows if row.variant == against), None)
    if base is None:
        known = ", ".join(row.variant for row in table.rows)
        raise DataError(f"sweep {table.sweep!r}: has no variant {against!r}; known: {known}")
    found = {}
    for row in table.rows:
        seeds = [seed for seed in row.seeds if seed in base.values]
        if row is base or not seeds:
            continue
        shares = {
            name: [
                (row.values[seed][overall(name)] - base.values[seed][overall(name)])
                / table.scale[name]
                for seed in seeds
            ]
            for name in table.capabilities
        }
        trained = [shares[name] for name in table.capabilities if name in table.trained]
        shares[MEAN] = [math.fsum(pair) / len(pair) for pair in zip(*trained, strict=True)]
        found[row.variant] = {name: Estimate.of(values) for name, values in shares.items()}
    return found


def overall(capability: str, field: str = STUDENT) -> str:
    """Return the name of a field's score of a capability, over all its categories."""
    return f"{field}/{capability}/{OVERALL}/{OVERALL}"


def _capabilities(cell: CellRecord) -> tuple[str, ...]:
    names = (name for name in cell.scores if name.startswith("scale/"))
    return tuple(name.removeprefix("scale/") for name in names)


def _row(variant: str, cells: Sequence[CellRecord]) -> VariantRow:
    names = dict.fromkeys(name for cell in cells for name in cell.scores)
    return VariantRow(
        variant,
        tuple(cell.seed for cell in cells),
        {
            name: Estimate.of([cell.scores[name] for cell in cells if name in cell.scores])
            for name in names
        },
        {cell.seed: cell.scores for cell in cells},
    )
