"""The experiments of a checkout in a table that a terminal has room for.

``dvc exp show`` shows every parameter and every input as a column of its own. Here is what a person
compares runs by, and which parameters an experiment has otherwise than the commit it started from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from flows import dvc_graph

WIDTH = 120

_SCORE, _RETENTION = "score.", "retention."
_ALONE = ("verdict", "field_evaluations", "seconds")
_HEADINGS = ("experiment", "verdict", "evaluations", "seconds", "changed")
_TEXT = ("experiment", "verdict", "changed")
_GAP = "  "
_BELOW = " " * 6


def experiments_table(root: Path) -> str:
    """Return the present state, the last commit and its experiments, a line each.

    A capability's column holds the student's score and its share of the teacher's. Changed
    parameters for which a line has no room stand below it.

    Args:
        root: the checkout.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    rows = dvc_graph.experiments(root)
    capabilities = list(
        dict.fromkeys(
            name.removeprefix(_SCORE) for row in rows for name in row if name.startswith(_SCORE)
        )
    )
    heads = [_HEADINGS[0], *capabilities, *_HEADINGS[1:]]
    base: Mapping[str, Any] = next((row for row in reversed(rows) if row["typ"] == "baseline"), {})
    lines = [
        [
            _name(row),
            *(_cell(row, name) for name in capabilities),
            *(_figure(row.get(name)) for name in _ALONE),
            _changed(row, base),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads) - 1)]
    return "\n".join(_line(line, heads, widths) for line in [heads, *lines]) + "\n"


def _line(cells: Sequence[str], heads: Sequence[str], widths: Sequence[int]) -> str:
    parts = [
        cell.ljust(width) if head in _TEXT else cell.rjust(width)
        for cell, head, width in zip(cells, heads, widths, strict=False)
    ]
    text = _GAP.join([*parts, cells[-1]]).rstrip()
    if len(text) <= WIDTH:
        return text
    figures = _GAP.join(parts).rstrip()
    cut = figures if len(figures) <= WIDTH else f"{figures[: WIDTH - 1]}…"
    below = wrap(cells[-1], WIDTH - len(_BELOW), break_on_hyphens=False)
    return "\n".join([cut, *(_BELOW + line for line in below)])


def _name(row: Mapping[str, Any]) -> str:
    name = str(row["Experiment"] or row["rev"])
    return name if row["typ"] == "baseline" else f"  {name}"


def _cell(row: Mapping[str, Any], capability: str) -> str:
    score, kept = row.get(f"{_SCORE}{capability}"), row.get(f"{_RETENTION}{capability}")
    text = "-" if score is None else f"{score:.3g}"
    return text if kept is None else f"{text} {kept:4.0%}"


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.0f}"


def _changed(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Return the parameters that an experiment has with other values than its commit."""
    if row["typ"] == "baseline":
        return ""
    return ", ".join(
        f"{name}={value}"
        for name, value in row.items()
        if "." in name
        and "/" not in name
        and not name.startswith((_SCORE, _RETENTION))
        and value != base.get(name)
    )
