"""The report as one HTML page that asks for nothing else."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import jinja2
from markupsafe import Markup

from danceflow.columns import SOURCE_COLUMNS
from danceflow.evaluate.metrics import METRICS
from danceflow.evaluate.records import LOST, STANDARD, START, STUDENT, TEACHER
from danceflow.ops.timings import Cost
from danceflow.report.curves import Curves
from danceflow.report.gate import Verdict
from danceflow.report.page.charts import line_chart
from danceflow.report.page.looks import LOOKS
from danceflow.report.page.tiles import DIFFERENCE, TARGET, TileRow

MAX_BYTES = 2_900_000
"""No page is heavier: it is sent by mail, and opened on a phone."""

_LOG = logging.getLogger(__name__)
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
    STANDARD: (
        "The first prompts",
        "The first test prompts of every category; no picture was chosen.",
    ),
    LOST: (
        "Where the student loses most",
        "Test prompts on which it falls furthest behind its teacher.",
    ),
    "reworded": ("Reworded", "Wordings that no training prompt has."),
    "held_out_pair": ("Held-out pairs", "Colour and shape pairs that no training image shows."),
}
_NUM_CONFLICT_ROWS = 2
_LOCAL = 0.5
"""Share of pixels that local edits leave alone at least."""
_TRACK_END = 1.2
"""Retention at the right end of the bars."""


@dataclass(frozen=True)
class Origin:
    """What a result was made from, names and values to show.

    Attributes:
        code: where the code comes from.
        data: DVC's digests of rows and weights, by path.
        versions: of packages.
        machine: what it computes with.
        milliseconds: of a forward pass in the training; ``None``: not known.
    """

    code: Mapping[str, str]
    data: Mapping[str, str]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    milliseconds: float | None


@dataclass(frozen=True)
class Run:
    """How the training's run is found.

    Attributes:
        name: of the run in MLflow.
        experiment: of MLflow that it belongs to.
        beside: address, relative to the page, of the links that a flow leaves there. They differ
            from run to run while the page, which DVC keeps, does not.
    """

    name: str
    experiment: str
    beside: str


@dataclass(frozen=True)
class Making:
    """How a result was made.

    Attributes:
        params_text: the parameters as they stand in their file.
        seconds: of every stage.
        costs: of the stages that ran in this checkout.
        teachers: ``reports/teachers.json``.
        data: ``reports/data.json``.
        min_retention: what the gate asks, by capability.
        origin: data, code, versions and machine.
        run: how the training's run is found; ``None``: it left no pointer.
    """

    params_text: str
    seconds: Mapping[str, float]
    costs: Mapping[str, Cost]
    teachers: Mapping[str, Any]
    data: Mapping[str, Any]
    min_retention: Mapping[str, float]
    origin: Origin
    run: Run | None


def render_page(
    summary: Mapping[str, Any],
    answer: Verdict,
    curves: Curves,
    tiles: Mapping[str, Sequence[TileRow]],
    making: Making,
) -> str:
    """Return the page; pictures are as they were made unless it would be too heavy with them.

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
        "milliseconds": milliseconds,
        "size": size,
        "combine": lambda one, other: {**one, **other},
        "bar": lambda value: round(100 * min(max(value, 0.0), _TRACK_END) / _TRACK_END, 2),
        "share": lambda value: 0 if value is None else round(100 * min(max(value, 0.0), 1.0)),
    }
    template = environment.get_template("report.html.j2")
    shown = {
        "summary": summary,
        "verdict": answer,
        "headline": headline(summary),
        "galleries": _galleries(summary["conflict"], tiles),
        "fields": list(summary["conflict"]["fields"]),
        "charts": _charts(curves, summary["conflict"]["scale"]),
        "by_steps": _by_steps(summary),
        "making": making,
    }
    page = ""
    for look in LOOKS:
        page = template.render(shown, look=look, uri=look.uri)
        if len(page.encode()) <= MAX_BYTES:
            return page
    _LOG.warning("the page has %s: there are too many pictures", size(len(page.encode())))
    return page


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


def milliseconds(value: float) -> str:
    """Return the time of an answer as a person would say it."""
    return f"{value:.3g} ms" if value < 999.5 else f"{value / 1000:.3g} s"


def size(count: float) -> str:
    """Return bytes as a person would say them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@dataclass(frozen=True)
class _Gallery:
    """A table of pictures: rows, and what stands in each column under which heading."""

    title: str
    caption: str
    columns: Mapping[str, str]
    rows: Sequence[TileRow]
    scale: float


@dataclass(frozen=True)
class _Galleries:
    """What is shown of a capability.

    Attributes:
        title: its name.
        conflict: every field on some prompts.
        pictures: first prompts, and beside them the worst.
        robustness: variants of prompts.
        kept: what an edit that is local leaves alone, in a sentence.
    """

    title: str
    conflict: _Gallery
    pictures: Sequence[_Gallery]
    robustness: Sequence[_Gallery]
    kept: str


def _galleries(
    conflict: Mapping[str, Any], tiles: Mapping[str, Sequence[TileRow]]
) -> list[_Galleries]:
    """Return the tables of pictures of every capability."""
    every = {field: human(field) for field in conflict["fields"]}
    return [
        _of_capability(name, rows, every, conflict["own_teacher"][name], conflict["scale"][name])
        for name, rows in tiles.items()
    ]


def _of_capability(
    name: str, rows: Sequence[TileRow], every: dict[str, str], teacher: str, scale: float
) -> _Galleries:
    kinds = {row.kind: [r for r in rows if r.kind == row.kind] for row in rows}
    shown = {column for row in rows for column in row.pictures}
    is_local = _is_local(rows)
    source = {column: human(column) for column in SOURCE_COLUMNS if column in shown}
    changed = {DIFFERENCE: "Changes"} if is_local else {}
    target = {TARGET: "Exact target" if source else "One right answer"}
    own, student = {teacher: human(teacher)}, {STUDENT: human(STUDENT)}
    columns = source | own | {START: human(START)} | student | changed | target

    def gallery(kind: str, columns: Mapping[str, str]) -> _Gallery:
        title, caption = _KINDS[kind]
        return _Gallery(title, caption, columns, kinds[kind], scale)

    return _Galleries(
        human(name),
        _Gallery(
            f"{human(name)}, as every field does it",
            "The same prompts and noise for every field.",
            source | every,
            _one_of_each(kinds.get(STANDARD, []))[:_NUM_CONFLICT_ROWS],
            scale,
        ),
        [gallery(kind, columns) for kind in (STANDARD, LOST) if kind in kinds],
        [
            gallery(kind, source | own | student | changed | target)
            for kind in kinds
            if kind not in (STANDARD, LOST)
        ],
        _kept(kinds.get(STANDARD, rows), teacher) if is_local else "",
    )


def _is_local(rows: Sequence[TileRow]) -> bool:
    """Return whether the right answers leave at least half of most sources alone."""
    kept = [row.kept[TARGET] for row in rows if TARGET in row.kept]
    return bool(kept) and median(kept) >= _LOCAL


def _kept(rows: Sequence[TileRow], teacher: str) -> str:
    """Return how many pixels of the sources stay, by whom."""
    parts = []
    for name, who in ((STUDENT, "the student"), (teacher, "its teacher"), (TARGET, "the targets")):
        found = [row.kept[name] for row in rows if name in row.kept]
        if found:
            parts.append(f"{who} {percent(fmean(found))}")
    return f"Pixels of the source that stay as they are: {', '.join(parts)}."


def _one_of_each(rows: Sequence[TileRow]) -> list[TileRow]:
    """Return the first row of every category."""
    return list({row.category: row for row in reversed(rows)}.values())[::-1]


@dataclass(frozen=True)
class _BySteps:
    """What a capability keeps by the number of steps.

    Attributes:
        title: its name.
        teacher: name of its own teacher.
        found: what ``reports/summary.json`` tells.
        chart: the same, drawn; ``None``: the teacher scores 0.
    """

    title: str
    teacher: str
    found: Mapping[str, Any]
    chart: "_Chart | None"


def _by_steps(summary: Mapping[str, Any]) -> list[_BySteps]:
    """Return the capabilities that were asked in more than one number of steps."""
    parts = []
    for name, found in summary["steps"].items():
        if len(found["rows"]) > 1:
            teacher = human(summary["conflict"]["own_teacher"][name])
            series = {
                label: [
                    (row["steps"], row[field]["share"])
                    for row in reversed(found["rows"])
                    if row[field] is not None and row[field]["share"] is not None
                ]
                for label, field in ((human(STUDENT), "student"), (teacher, "teacher"))
            }
            marks = {human(STUDENT): found["student_steps"], teacher: found["teacher_steps"]}
            chart = _steps_chart(human(name), series, marks) if any(series.values()) else None
            parts.append(_BySteps(human(name), teacher, found, chart))
    return parts


def _steps_chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], marks: Mapping[str, float]
) -> "_Chart":
    svg = line_chart(
        series,
        label=f"{title}: share of the teacher’s score by the number of steps",
        x_label="steps of an answer",
        y_label="share of the teacher’s score",
        y_range=(0.0, max(1.0, *(y for points in series.values() for _, y in points))),
        doubling=True,
        marks=marks,
    )
    return _Chart(title, Markup(svg), list(series))  # noqa: S704


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
