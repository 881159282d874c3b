"""A sweep's table as Markdown, to read, and as CSV, one number a line."""

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape

from danceflow.evaluate.records import START, STUDENT
from danceflow.report.tables.cells import (
    CATEGORY,
    FIELDS,
    GAP_CLOSED,
    OVERALL,
    OWN_TEACHER,
    VARIANT,
)
from danceflow.report.tables.statistics import Estimate
from danceflow.report.tables.table import MEAN, SORT_RULE, Table, differences, overall

DIFFERENCE = "difference"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|")


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
                *(_text(row.get(overall(name)), table.scale[name]) for name in table.capabilities),
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
                    _text(row.get(overall(capability)), table.scale[capability]),
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

    With ``against``, too, what ``differences`` gives, as the field ``difference``.
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
                words = map(no_formula, (table.sweep, row.variant, field, *place))
                writer.writerow([*words, *_numbers(found)])
    if against is not None:
        for variant, shares in differences(table, against).items():
            for name, found in shares.items():
                place = [DIFFERENCE, name, OVERALL, f"to {against}"]
                words = map(no_formula, (table.sweep, variant, *place))
                writer.writerow([*words, *_numbers(found)])
    return buffer.getvalue()


def no_formula(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: such a one gets an apostrophe first.

    Names of categories come from a user's rows, and a table is opened by others.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def _numbers(found: Estimate) -> list[str]:
    """Return n, mean and the ends of the interval."""
    ends = ["", ""]
    if found.half is not None:
        ends = [f"{found.mean - found.half:.6g}", f"{found.mean + found.half:.6g}"]
    return [str(found.num), f"{found.mean:.6g}", *ends]


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
    found = table.common(field, capability)
    return "differs" if found is None else _figure(found, table.scale[capability])


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
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_plain, cells))} |"

    return [line(heads), line(["---", *["--:"] * (len(heads) - 1)]), *map(line, rows)]


def _plain(text: str) -> str:
    """Return a cell that stays one cell and is text, whatever a name holds."""
    return escape(" ".join(text.split()), quote=False).replace("|", "\\|")
