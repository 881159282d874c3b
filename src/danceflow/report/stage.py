"""Stage ``report``: retention with intervals, conflict matrix, the gate's verdict and the page."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from danceflow.evaluate.by_steps import read_by_steps
from danceflow.evaluate.records import Evaluation, read_evaluation
from danceflow.ops import timings
from danceflow.ops.files import read_object, write_json, write_text
from danceflow.ops.tracking import RunPointer, dvc_digests, source_tags, without_login
from danceflow.report.curves import Curves, read_curves
from danceflow.report.evidence import evidence_of, read_identity
from danceflow.report.gate import verdict, write_verdict
from danceflow.report.metrics import metrics_of
from danceflow.report.origin import machine, milliseconds, versions
from danceflow.report.page.page import Making, Origin, Run, render_page
from danceflow.report.page.tiles import read_tiles
from danceflow.report.steps import retention_by_steps
from danceflow.report.summary import summarise

if TYPE_CHECKING:
    from pathlib import Path

    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)
_DIGITS = 12
"""Of a digest, enough to tell two apart."""
_ORDER = ("prepare", "cache", "distill", "evaluate")  # teachers are trained once, not per run


def run(params: "Params", paths: "Paths") -> None:
    """Write ``reports/{summary,gate,metrics}.json`` and ``reports/report.html``.

    Raises:
        DataError: an evaluation or the training's record is missing or damaged.
    """
    evaluations = {
        name: read_evaluation(paths.evaluation(name), name) for name in params.capabilities
    }
    tiles = {name: read_tiles(paths.evaluation_images(name)) for name in params.capabilities}
    by_steps = {
        name: read_by_steps(paths.evaluation_by_steps(name), name) for name in params.capabilities
    }
    curves = read_curves(paths.distill_metrics)
    teachers = read_object(paths.teachers_report, "run the stage teachers")
    data = read_object(paths.data_report, "run the stage prepare")
    summary = summarise(evaluations, params.evaluate.num_bootstrap)
    summary["steps"] = {
        name: retention_by_steps(found, params.evaluate.num_bootstrap)
        for name, found in by_steps.items()
    }
    summary["curve"] = {
        name: [list(point) for point in line] for name, line in curves.scores.items()
    }
    summary["notes"] = _notes(evaluations)
    training = next(iter(evaluations.values())).training
    summary["training"] = None if training is None else training.model_dump()
    costs = timings.read(paths.scratch)
    recorded = {name: cost.seconds for name, cost in costs.items()}
    summary["stages"] = stage_seconds(recorded, evaluations, curves)
    identities = {name: read_identity(paths, name) for name in evaluations}
    evidence = evidence_of(evaluations, identities, summary)
    answer = verdict(evidence, None, params.gate)
    making = Making(
        params_text=without_login(paths.params.read_text(encoding="utf-8")),
        seconds=summary["stages"],
        costs=costs,
        teachers=teachers,
        data=data,
        min_retention=params.gate.min_retention,
        origin=Origin(
            code=_source(source_tags(paths.root)),
            data=_data(paths.root),
            versions=versions(),
            machine=machine(),
            milliseconds=milliseconds(curves),
        ),
        run=_run(paths, params.tracking.experiment),
    )
    page = render_page(summary, answer, curves, tiles, making)
    write_json(paths.summary, summary)
    write_verdict(paths.gate, answer)
    said = answer.decision
    write_json(paths.metrics, metrics_of(evaluations, curves.seconds, said))
    write_text(paths.report_page, page)
    for name, row in summary["capabilities"].items():
        _LOG.info("%s: student %s, teacher %s, retention %s", name, *_figures(row))
    _LOG.info("wrote %s", paths.report_page)


def stage_seconds(
    recorded: Mapping[str, float],
    evaluations: Mapping[str, Evaluation],
    curves: Curves,
) -> dict[str, float]:
    """Return the seconds of every stage of a run before this one, in the pipeline's order.

    A stage that did not run in this checkout, as its result came from the cache, is told by what
    it left.

    Args:
        recorded: what this checkout measured.
        evaluations: by capability.
        curves: the training's record.
    """
    seconds = {f"evaluate@{name}": item.seconds for name, item in evaluations.items()}
    if curves.seconds is not None:
        seconds["distill"] = round(curves.seconds, 1)
    known = {**seconds, **recorded}
    return {
        name: known[name] for stage in _ORDER for name in known if name.partition("@")[0] == stage
    }


def _notes(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """Return every note once; one that not all capabilities share names those it is about.

    Every row that a judge left out is one, with its capability.
    """
    about: dict[str, list[str]] = {}
    for name, evaluation in evaluations.items():
        for note in evaluation.notes:
            about.setdefault(note, []).append(name)
    notes = [
        note if len(names) == len(evaluations) else f"{', '.join(names)}: {note}"
        for note, names in about.items()
    ]
    return notes + [
        f"{name}: the judge left out row {row.uid} ({row.category}, noise seed {row.seed}) of "
        f"every field: {'; '.join(row.reasons)}"
        for name, evaluation in evaluations.items()
        for row in evaluation.left_out
    ]


def _source(tags: Mapping[str, str]) -> dict[str, str]:
    """Return where the code comes from, in words."""
    found = {}
    if "git.commit" in tags:
        changed = " with local changes" if tags["git.dirty"] == "true" else ""
        found["Git commit"] = tags["git.commit"][:_DIGITS] + changed
    if "dvc.experiment" in tags:
        found["DVC experiment"] = tags["dvc.experiment"]
    return found


def _data(root: "Path") -> dict[str, str]:
    """Return DVC's digests of rows and weights by path; it has them while it runs the stages."""
    if "DVC_STAGE" not in os.environ:
        return {}
    found = {**dvc_digests(root, "data"), **dvc_digests(root, "models")}
    return {path: digest[:_DIGITS] for path, digest in found.items()}


def _run(paths: "Paths", experiment: str) -> Run | None:
    """Return how the training's run is found; what differs from run to run stands beside the page.

    Raises:
        TrackingError: the pointer to it is damaged.
    """
    if not paths.run_pointer.exists():
        return None
    pointer = RunPointer.read(paths.run_pointer)
    beside = paths.run_links(pointer.key).relative_to(paths.report_page.parent)
    return Run(pointer.name, experiment, beside.as_posix())


def _figures(row: Mapping[str, Any]) -> tuple[Any, Any, str]:
    kept = row["retention"]
    return row["student"], row["teacher"], "unknown" if kept is None else f"{kept:.1%}"
