"""The result of a pipeline as Prefect shows it: a table and a picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from danceflow.pictures import data_uri, png_bytes, read_own
from danceflow.registry.history import Change
from danceflow.registry.promotion import Standing
from flows.dvc_stage import StageResult

MAX_PICTURE_BYTES = 100_000  # of the whole data URI; Prefect keeps it in its database

_WIDTH = 960


@dataclass(frozen=True)
class PipelineResult:
    """What a run of the pipeline came to.

    Attributes:
        stages: what happened to each stage, in the order of their ends.
        summary: ``reports/summary.json``.
        experiment: name of the DVC experiment; None: it ran in the checkout itself.
        standing: how the student stands in the registry; None: it was not registered.
    """

    stages: tuple[StageResult, ...]
    summary: Mapping[str, Any]
    experiment: str | None
    standing: Standing | None


def result_table(
    summary: Mapping[str, Any], stages: Sequence[StageResult], standing: Standing | None
) -> str:
    """Return the result as Markdown: scores per capability, the gate's verdict, the stages.

    Args:
        summary: ``reports/summary.json``.
        stages: what happened to each stage.
        standing: how the student stands in the registry; None: it was not registered.
    """
    rows = [
        "| capability | student | teacher | start | retention | samples |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in summary["capabilities"].items():
        scores = " | ".join(_number(row.get(key)) for key in ("student", "teacher", "start"))
        samples = row.get("num_samples", "")
        rows.append(f"| {name} | {scores} | {_retention(row)} | {samples} |")
    rows += ["", _verdict(standing), "", "| stage | outcome | seconds |", "|---|---|---|"]
    rows += [f"| {stage.name} | {stage.outcome} | {stage.seconds:.1f} |" for stage in stages]
    return "\n".join(rows) + "\n"


def history_table(changes: Sequence[Change]) -> str:
    """Return the history of the champion as a table, the last change last.

    Args:
        changes: the first one first.
    """
    if not changes:
        return "There never was a champion."
    rows = [("time", "action", "version", "before", "user", "approved by", "why")]
    for change in changes:
        approval = change.approval
        why = [change.reason] if approval is None else [change.reason, approval.reason]
        rows.append(
            (
                change.time.replace("+00:00", "Z"),
                f"{change.action} ({change.mends})" if change.mends else change.action,
                "-" if change.version is None else str(change.version),
                "-" if change.previous is None else str(change.previous),
                change.user,
                "" if approval is None else approval.by,
                "; ".join(filter(None, why)),
            )
        )
    # Words of people: one line each, and nothing that a terminal would obey.
    lines = [[" ".join("".join(map(_shown, cell)).split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in lines
    )


def picture(paths: Iterable[Path]) -> str | None:
    """Return image files, one below the other, as one PNG data URI; None when there is none.

    Args:
        paths: the files; the picture is made smaller until it fits ``MAX_PICTURE_BYTES``.
    """
    sheets = [read_own(path.read_bytes()) for path in paths]
    if not sheets:
        return None
    width = min(_WIDTH, max(sheet.width for sheet in sheets))
    while True:
        uri = data_uri(png_bytes(_stack(sheets, width), 9))
        if len(uri) <= MAX_PICTURE_BYTES or width <= 16:
            return uri
        width = max(16, int(width * min(0.9, math.sqrt(MAX_PICTURE_BYTES / len(uri)))))


def sample_sheets(folder: Path) -> list[Path]:
    """Return the first image of every capability's folder below ``folder``."""
    found = (sorted(place.glob("*.png")) for place in sorted(folder.glob("*")) if place.is_dir())
    return [images[0] for images in found if images]


def _stack(sheets: Sequence[Image.Image], width: int) -> Image.Image:
    scaled = [
        sheet.resize((width, max(1, round(sheet.height * width / sheet.width)))) for sheet in sheets
    ]
    whole = Image.new("RGB", (width, sum(sheet.height for sheet in scaled)))
    top = 0
    for sheet in scaled:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else " "


def _cell(text: str) -> str:
    """Return a text that ends no cell of a table."""
    return text.replace("|", "\\|")


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "-"


def _retention(row: Mapping[str, Any]) -> str:
    value, interval = row.get("retention"), row.get("retention_interval")
    if not isinstance(value, int | float):
        return "-"
    if not interval:
        return f"{value:.0%}"
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def _verdict(standing: Standing | None) -> str:
    if standing is None:
        return "Not registered."
    answer = standing.verdict
    role = "champion" if standing.champion else "challenger"
    note = ""
    if standing.withdrawn and not standing.champion:
        note = " (it was rolled back once: `danceflow promote` makes it champion)"
    elif standing.refused and not standing.champion:
        note = " (it was not approved: `danceflow promote` makes it champion)"
    said = f"Version {standing.version} {answer.headline} and is the {role}{note}."
    if not answer.passed:
        reasons = "".join(f"\n- {reason}" for reason in answer.reasons)
        said = f"Version {standing.version} {answer.headline}:\n{reasons}"
    rows = [
        f"| {check.capability} | {check.kind} | {_cell(check.shown)} | {check.needs} | "
        f"{check.num_rows} | {check.decision} |"
        for check in answer.checks
    ]
    against = f"compared with {answer.against}" if answer.against else "there was no champion"
    table = [
        f"Every condition at {answer.confidence:.0%} confidence, one-sided; {against}.",
        "",
        "| capability | condition | found | needs | prompts | decision |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join([said, "", *table])
