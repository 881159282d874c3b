"""The report as one HTML page that asks for nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from danceflow.columns import SOURCE_COLUMNS
from danceflow.evaluate.metrics import METRICS
from danceflow.evaluate.records import LOST, STANDARD, START, STUDENT, TEACHER
from danceflow.report.curves import Curves
from danceflow.report.gate import Verdict
from danceflow.report.page.charts import line_chart
from danceflow.report.page.tiles import TileRow

_TEMPLATES = Path(__file__).with_name("templates")
_NAMES = {
    "t2i": "Text to image",
    "held_out_pair": "Held-out pairs",
    "unknown_words": "Unknown words",
    STUDENT: "Student",
    START: "Start student",
    **{name: text for metric in METRICS for name, text in metric.measurements.items()},
    "judge_score": "Judge: score",
    "judge_sc": "Judge: SC",
    "judge_pq": "Judge: PQ",
    "field_gap": "Field gap to the own teacher",
}
_KINDS = {
    STANDARD: ("", "The first test prompts of every category; no picture was chosen."),
    LOST: (
        "where the student loses most",
        "Test prompts on which it falls furthest behind its teacher.",
    ),
    "reworded": ("reworded", "Wordings that no training prompt has."),
    "held_out_pair": ("held-out pairs", "Colour and shape pairs that no training image shows."),
}
_NUM_CONFLICT_ROWS = 2
_TRACK_END = 1.2
"""Retention at the right end of the bars."""


@dataclass(frozen=True)
class Making:
    """How a result was made.

    Attributes:
        params_text: the parameters as they stand in their file.
        source: where the code comes from, names and values to show.
        seconds: of every stage.
        teachers: ``reports/teachers.json``.
        data: ``reports/data.json``.
        min_retention: what the gate asks, by capability.
    """

    params_text: str
    source: Mapping[str, str]
    seconds: Mapping[str, float]
    teachers: Mapping[str, Any]
    data: Mapping[str, Any]
    min_retention: Mapping[str, float]


def render_page(
    summary: Mapping[str, Any],
    answer: Verdict,
    curves: Curves,
    tiles: Mapping[str, Sequence[TileRow]],
    making: Making,
) -> str:
    """Return the page.

    Args:
        summary: ``reports/summary.json``.
        answer: the gate's verdict.
        curves: the training's record.
        tiles: example pictures, by capability.
        making: how the result was made.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "human": human,
        "percent": percent,
        "figure": figure,
        "duration": duration,
        "bar": lambda value: round(100 * min(max(value, 0.0), _TRACK_END) / _TRACK_END, 2),
        "share": lambda value: 0 if value is None else round(100 * min(max(value, 0.0), 1.0)),
    }
    return environment.get_template("report.html.j2").render(
        summary=summary,
        verdict=answer,
        headline=headline(summary),
        galleries=_galleries(summary["conflict"], tiles),
        fields=list(summary["conflict"]["fields"]),
        charts=_charts(curves, summary["conflict"]["scale"]),
        making=making,
    )


def headline(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the least shares that the student, and the best single teacher, keep of any skill."""
    fields = summary["conflict"]["fields"]
    teachers = [
        row["least_share"]
        for name, row in fields.items()
        if name.startswith(TEACHER) and row["least_share"] is not None
    ]
    return {
        "student": fields[STUDENT]["least_share"],
        "teacher": max(teachers, default=None),
        "start": fields[START]["least_share"],
    }


def human(name: str) -> str:
    """Return a name as a person would write it."""
    if name in _NAMES:
        return _NAMES[name]
    if name.startswith(TEACHER):
        return f"{name.removeprefix(TEACHER).capitalize()} teacher"
    return name.replace("_", " ").capitalize()


def percent(value: float | None) -> str:
    """Return a share in percent, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.0f} %"


def figure(value: float | None) -> str:
    """Return a number with as many digits as are worth reading."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Return seconds as a person would say them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class _Gallery:
    """A table of pictures: rows, and what stands in each column under which heading."""

    title: str
    caption: str
    columns: Mapping[str, str]
    rows: Sequence[TileRow]
    scale: float
    folded: bool = False


def _galleries(
    conflict: Mapping[str, Any], tiles: Mapping[str, Sequence[TileRow]]
) -> dict[str, list[_Gallery]]:
    """Return the tables of pictures by section: ``conflict``, ``pictures`` and ``robustness``."""
    found: dict[str, list[_Gallery]] = {"conflict": [], "pictures": [], "robustness": []}
    for name, rows in tiles.items():
        kinds = {row.kind: [r for r in rows if r.kind == row.kind] for row in rows}
        shown = {column for row in rows for column in row.pictures}
        source = {column: human(column) for column in SOURCE_COLUMNS if column in shown}
        target = {"target": "Exact target" if source else "One right answer"}
        own = {conflict["own_teacher"][name]: human(conflict["own_teacher"][name])}
        start, student = {START: human(START)}, {STUDENT: human(STUDENT)}
        scale = conflict["scale"][name]
        every = {field: human(field) for field in conflict["fields"]}
        usual = source | own | start | student | target
        found["conflict"].append(
            _Gallery(
                f"{human(name)}, as every field does it",
                "The same prompts and noise for every field.",
                source | every,
                _one_of_each(kinds.get(STANDARD, []))[:_NUM_CONFLICT_ROWS],
                scale,
            )
        )
        for kind, part in kinds.items():
            section = "pictures" if kind in (STANDARD, LOST) else "robustness"
            title = human(name) if kind == STANDARD else f"{human(name)}: {_KINDS[kind][0]}"
            columns = usual if section == "pictures" else source | own | student | target
            found[section].append(
                _Gallery(title, _KINDS[kind][1], columns, part, scale, folded=kind != STANDARD)
            )
    return found


def _one_of_each(rows: Sequence[TileRow]) -> list[TileRow]:
    """Return the first row of every category."""
    return list({row.category: row for row in reversed(rows)}.values())[::-1]


@dataclass(frozen=True)
class _Chart:
    title: str
    svg: Markup
    series: Sequence[str]


def _charts(curves: Curves, scale: Mapping[str, float]) -> list[_Chart]:
    """Return the training's charts, the capabilities in the order (and colours) of ``scale``."""
    charts = []
    scores = {
        human(name): [(step, score / scale[name]) for step, score in curves.scores[name]]
        for name in scale
        if name in curves.scores
    }
    if any(len(points) > 1 for points in scores.values()):
        title = "Validation scores while training"
        charts.append(_chart(title, scores, "share of the best score", y_range=(0.0, 1.0)))
    by_capability = {human(name): curves.losses[name] for name in scale if name in curves.losses}
    losses = {"Distance to the teacher (loss)": by_capability}
    losses |= {
        f"Loss by noise level: {human(name)}": {
            f"σ {bin_name.replace('-', ' to ')}": line
            for bin_name, line in curves.bin_losses[name].items()
        }
        for name in scale
        if name in curves.bin_losses
    }
    for title, lines in losses.items():
        if any(loss > 0 for line in lines.values() for _, loss in line):
            charts.append(_chart(title, lines, "loss", log=True))
    return charts


def _chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    y_label: str,
    *,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
) -> _Chart:
    svg = line_chart(
        series, label=title, x_label="update", y_label=y_label, log=log, y_range=y_range
    )
    return _Chart(title, Markup(svg), list(series))  # noqa: S704
