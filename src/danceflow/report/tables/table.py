"""A sweep's results side by side: mean and 95 % interval over seeds, as Markdown, CSV and picture.

Every table shows every capability of the runs, also one that was not trained (the anchor): what a
method costs elsewhere is part of its result.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import DataError
from danceflow.evaluate.records import START, STUDENT
from danceflow.ops.files import atomic_file, write_text
from danceflow.report.tables.cells import (
    CATEGORY,
    FIELDS,
    GAP_CLOSED,
    OVERALL,
    OWN_TEACHER,
    VARIANT,
    CellRecord,
)

SORT_RULE = (
    "sorted by the mean over the trained capabilities of score / best possible score, best first"
)
MEAN = "trained"
DIFFERENCE = "difference"
_TAIL = 0.975


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds' values.
        half: half the width of its 95 % t interval; ``None`` where one seed ran.
        num: of seeds.
    """

    mean: float
    half: float | None
    num: int

    @staticmethod
    def of(values: Sequence[float]) -> "Estimate":
        """Return the mean of at least one value, with its interval."""
        num = len(values)
        mean = math.fsum(values) / num
        if num < 2:
            return Estimate(mean, None, num)
        variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
        return Estimate(mean, t_quantile(num - 1) * math.sqrt(variance / num), num)


@dataclass(frozen=True)
class Row:
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
    rows: tuple[Row, ...]
    capabilities: tuple[str, ...]
    trained: frozenset[str]
    scale: Mapping[str, float]
    num_codes: int = 1

    def names(self, capability: str, kind: str) -> list[str]:
        """Return the names of a capability's categories or variants, in order of appearance."""
        start = f"{STUDENT}/{capability}/{kind}/"
        found = (name for row in self.rows for name in row.estimates if name.startswith(start))
        return list(dict.fromkeys(name.removeprefix(start) for name in found))


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

    def rank(row: Row) -> tuple[float, str]:
        shares = [row.estimates[_overall(name)].mean / scale[name] for name in trained]
        return -math.fsum(shares) / len(shares), row.variant

    num_codes = len({cell.code for cell in cells})
    return Table(sweep, tuple(sorted(rows, key=rank)), capabilities, trained, scale, num_codes)


def markdown(table: Table, missing: Sequence[str] = (), against: str | None = None) -> str:
    """Return the table as Markdown: all capabilities, then each with its categories.

    The last columns tell what share of the way from the start to the teacher was gone, in the score
    and, where it was measured, in realism.

    Args:
        table: the results.
        missing: cells that are not finished.
        against: the variant that the others are compared with, seed by seed.

    Raises:
        DataError: no variant has the name ``against``.
    """
    lines = [f"# {table.sweep}", "", *_notes(table, missing), ""]
    heads = ["variant", "n", *(_head(table, name) for name in table.capabilities)]
    heads += ["updates", "field evaluations"]
    lines += _grid(
        heads,
        [
            [
                row.variant,
                str(len(row.seeds)),
                *(_text(row.get(_overall(name)), table.scale[name]) for name in table.capabilities),
                _count(row.get("training/num_updates")),
                _count(row.get("training/field_evaluations")),
            ]
            for row in table.rows
        ]
        + [
            [label, "", *(_shared(table, field, name) for name in table.capabilities), "", ""]
            for label, field in (("*own teachers*", OWN_TEACHER), ("*start*", START))
        ],
    )
    if against is not None:
        lines += ["", *_difference_lines(table, against)]
    for capability in table.capabilities:
        categories = table.names(capability, CATEGORY)
        variants = table.names(capability, VARIANT)
        lines += ["", f"## {_head(table, capability)}", ""]
        names = [f"{CATEGORY}/{name}" for name in categories]
        names += [f"{VARIANT}/{name}" for name in variants]
        heads = ["variant", "n", "overall", *categories, *(f"*{name}*" for name in variants)]
        gaps = table.names(capability, GAP_CLOSED)
        heads += [f"gap closed, {name}" for name in gaps]
        lines += _grid(
            heads,
            [
                [
                    row.variant,
                    str(len(row.seeds)),
                    _text(row.get(_overall(capability)), table.scale[capability]),
                    *(
                        _text(row.get(f"{STUDENT}/{capability}/{name}"), table.scale[capability])
                        for name in names
                    ),
                    *(
                        _text(row.get(f"{STUDENT}/{capability}/{GAP_CLOSED}/{name}"), 1)
                        for name in gaps
                    ),
                ]
                for row in table.rows
            ],
        )
    return "\n".join(lines) + "\n"


def _difference_lines(table: Table, against: str) -> list[str]:
    """Return the differences to one variant; bold is what its interval tells from 0."""
    names = [MEAN, *table.capabilities]
    heads = ["variant", "pairs", "mean over trained", *table.capabilities]
    rows = []
    for variant, found in differences(table, against).items():
        cells = []
        for estimate in (found[name] for name in names):
            text = f"{100 * estimate.mean:+.1f}"
            if estimate.half is not None:
                text += f" ± {100 * estimate.half:.1f}"
            certain = estimate.half is not None and abs(estimate.mean) > estimate.half > 0
            cells.append(f"**{text}**" if certain else text)
        rows.append([variant, str(found[MEAN].num), *cells])
    return [
        f"## Difference to {against} with the same seed",
        "",
        "In percent of the best possible score; bold where the 95 % interval excludes 0.",
        "",
        *_grid(heads, rows),
    ]


def csv_text(table: Table, against: str | None = None) -> str:
    """Return the table in long form, one number a line, the start and the teachers included.

    With ``against``, too, the differences of :func:`differences`, as the field ``difference``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["sweep", "variant", "field", "capability", "kind", "name", "n", "mean", "low", "high"]
    )
    for row in table.rows:
        for name, found in row.estimates.items():
            field, *place = name.split("/")
            if field in FIELDS:
                writer.writerow([table.sweep, row.variant, field, *place, *_numbers(found)])
    if against is not None:
        for variant, shares in differences(table, against).items():
            for name, found in shares.items():
                place = [DIFFERENCE, name, OVERALL, f"to {against}"]
                writer.writerow([table.sweep, variant, *place, *_numbers(found)])
    return buffer.getvalue()


def _numbers(found: Estimate) -> list[str]:
    """Return n, mean and the ends of the interval."""
    ends = ["", ""]
    if found.half is not None:
        ends = [f"{found.mean - found.half:.6g}", f"{found.mean + found.half:.6g}"]
    return [str(found.num), f"{found.mean:.6g}", *ends]


def write_table(
    folder: Path, table: Table, missing: Sequence[str] = (), against: str | None = None
) -> list[Path]:
    """Write ``<sweep>.md``, ``.csv`` and ``.png`` to a folder and return their paths."""
    from danceflow.report.tables.chart import draw_table

    paths = [folder / f"{table.sweep}{suffix}" for suffix in (".md", ".csv", ".png")]
    text = markdown(table, missing, against)
    write_text(paths[0], text)
    write_text(paths[1], csv_text(table, against))
    with atomic_file(paths[2]) as partial:
        draw_table(table, partial)
    return paths


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, by bisection of its distribution function.

    Args:
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1e3
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, degrees) < _TAIL else (low, middle)
    return high


def _t_distribution(t: float, degrees: int) -> float:
    """Return P(T <= t) for t >= 0 (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(theta), degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if degrees == 1:
        total = 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = math.sin(theta) * total
    both = (theta + inside) * 2 / math.pi if odd else inside
    return 0.5 + both / 2


def _capabilities(cell: CellRecord) -> tuple[str, ...]:
    names = (name for name in cell.scores if name.startswith("scale/"))
    return tuple(name.removeprefix("scale/") for name in names)


def _row(variant: str, cells: Sequence[CellRecord]) -> Row:
    names = dict.fromkeys(name for cell in cells for name in cell.scores)
    return Row(
        variant,
        tuple(cell.seed for cell in cells),
        {
            name: Estimate.of([cell.scores[name] for cell in cells if name in cell.scores])
            for name in names
        },
        {cell.seed: cell.scores for cell in cells},
    )


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
                (row.values[seed][_overall(name)] - base.values[seed][_overall(name)])
                / table.scale[name]
                for seed in seeds
            ]
            for name in table.capabilities
        }
        trained = [shares[name] for name in table.capabilities if name in table.trained]
        shares[MEAN] = [math.fsum(pair) / len(pair) for pair in zip(*trained, strict=True)]
        found[row.variant] = {name: Estimate.of(values) for name, values in shares.items()}
    return found


def _overall(capability: str, field: str = STUDENT) -> str:
    return f"{field}/{capability}/{OVERALL}/{OVERALL}"


def _notes(table: Table, missing: Sequence[str]) -> list[str]:
    lines = [f"Mean ± half of the 95 % t interval over n seeds; {SORT_RULE}."]
    anchors = [name for name in table.capabilities if name not in table.trained]
    if anchors:
        lines.append(f"Scored but not trained: {', '.join(anchors)}.")
    if missing:
        lines.append(f"Not finished: {', '.join(missing)}.")
    if table.num_codes > 1:
        lines.append(
            f"The cells ran with {table.num_codes} states of code and data; danceflow sweep runs "
            "those again whose state is not the present one."
        )
    return lines


def _head(table: Table, capability: str) -> str:
    return f"{capability} (of {table.scale[capability]:g})"


def _shared(table: Table, field: str, capability: str) -> str:
    """Return the score of a field that is no student, where all variants have the same one."""
    found = {
        round(estimate.mean, 4)
        for row in table.rows
        if (estimate := row.get(_overall(capability, field))) is not None
    }
    return _figure(next(iter(found)), table.scale[capability]) if len(found) == 1 else "differs"


def _text(found: Estimate | None, scale: float) -> str:
    if found is None:
        return "-"
    if found.half is None:
        return _figure(found.mean, scale)
    return f"{_figure(found.mean, scale)} ± {_figure(found.half, scale)}"


def _figure(value: float, scale: float) -> str:
    return f"{value:.3f}" if scale <= 1 else f"{value:.2f}"


def _count(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.mean:,.0f}"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line: Callable[[Sequence[str]], str] = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
    return [line(heads), line(["---", *["--:"] * (len(heads) - 1)]), *map(line, rows)]
