"""What MLflow lacks of what was made here: sent once, found out by comparing with the store.

Files come first: a store that was away, was changed for another or has lost its runs gets them
again, although DVC executes no stage. What is complete is not touched.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from danceflow.errors import TrackingError, UsageError
from danceflow.ops.files import exclusive_if_free, fingerprint, read_object, sha256
from danceflow.ops.tracking import (
    TrackingSettings,
    open_store,
    resume_run,
    send_run,
    store_errors,
    without_login,
)
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.pictures import read_own
from danceflow.registry.mend import mend_evidence, mend_student
from danceflow.report.evidence import Evidence, read_evidence
from danceflow.report.steps import numbers_by_steps

_LOG = logging.getLogger(__name__)

RESULT_TAG = "result.sent"
PICTURE_TAG = "picture.sent"  # with a dot and the capability
VERDICT_TAG = "verdict"


def sync(root: Path) -> tuple[str, ...]:
    """Send what the store lacks, and return the ids of the runs that are complete in it now.

    These are the trainings of all work folders in which nobody works, those of experiments among
    them, and the result that lies in the checkout. The student's files in the registry and its
    evidence are compared with their digests, and sent again where they are damaged.

    Args:
        root: the checkout.

    Raises:
        UsageError: tracking is off.
        DataError: the result or an evaluation in the checkout is damaged.
        TrackingError: the store cannot be reached or refuses.
    """
    params, paths = load_params(Paths(root).params), Paths(root)
    settings = TrackingSettings.of(root, params.tracking)
    if not settings.enabled:
        raise UsageError("tracking.enabled is false: there is nowhere to send anything to")
    store = open_store(settings)
    found = []
    for pointer in sorted(paths.work("any").parent.glob("*/run.json")):
        with exclusive_if_free(pointer.parent) as is_free:
            if not is_free:
                _LOG.info("%s: a process trains there, and sends its own", pointer.parent)
            elif not pointer.with_name("metrics.jsonl").is_file():
                continue  # it was killed before its first update
            else:
                found.append(send_run(settings, pointer))
    if paths.run_pointer.is_file():
        found.append(send(root, params))
    if paths.student.is_dir():
        mend_student(store, settings.registered_model, paths.student)
        if (evidence := _evidence(paths)) is not None:
            mend_evidence(store, settings.registered_model, paths.student, evidence)
    return tuple(dict.fromkeys(run_id for run_id in found if run_id is not None))


def send(root: Path, params: Params) -> str | None:
    """Return the id of the run of a checkout's student, complete; None where tracking is off.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters.

    Raises:
        DataError: the metrics of the result cannot be read.
        TrackingError: the store cannot be reached or refuses, or there is no training.
    """
    paths = Paths(root)
    settings = TrackingSettings.of(root, params.tracking)
    run_id = send_run(settings, paths.run_pointer)
    if run_id is not None and paths.metrics.is_file():
        _send_result(settings, paths, params, run_id)
    return run_id


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of ``reports/metrics.json`` under the names that DVC shows them by.

    Such as ``score.t2i`` and ``field_evaluations``.
    """
    return dict(_numbers(metrics, ""))


def _send_result(settings: TrackingSettings, paths: Paths, params: Params, run_id: str) -> None:
    """Record scores, verdict, pictures and page of a student with its run, once."""
    metrics = read_object(paths.metrics, "run the stage report")
    files = [path for path in (paths.summary, paths.gate, paths.report_page) if path.is_file()]
    places = {name: paths.evaluation_images(name) / "grid.png" for name in params.capabilities}
    grids = {name: sha256(path) for name, path in places.items() if path.is_file()}
    digest = fingerprint([*map(sha256, (paths.metrics, *files)), *grids.values()])
    store = open_store(settings)
    with store_errors(store.uri):
        run = store.client.get_run(run_id).data
    if run.tags.get(RESULT_TAG) == digest:
        return
    # MLflow keeps every image that it is sent; another gate on the same pictures is a new result.
    sent = {f"{PICTURE_TAG}.{name}": content for name, content in grids.items()}
    new = [name for name in grids if run.tags.get(f"{PICTURE_TAG}.{name}") != grids[name]]
    with resume_run(settings, paths.run_pointer) as tracker:
        found = {**numbers(metrics), **_by_steps(paths)}
        changed = {name: value for name, value in found.items() if run.metrics.get(name) != value}
        tracker.log_metrics(changed, params.distill.num_updates)
        for name in new:
            tracker.log_image(f"test/{name}", read_own(places[name].read_bytes()), 0)
        for path in files:
            tracker.log_artifact(path)
        if VERDICT_TAG in metrics:
            tracker.set_tags({VERDICT_TAG: str(metrics[VERDICT_TAG])})
    if not tracker.is_complete:
        shown = without_login(store.uri)
        raise TrackingError(f"MLflow at {shown} did not take all of the result; try again later")
    with store_errors(store.uri):
        for tag, content in {**sent, RESULT_TAG: digest}.items():
            store.client.set_tag(run_id, tag, content)


def _by_steps(paths: Paths) -> dict[str, float]:
    """Return the scores in few steps that the report tells, by their names in MLflow."""
    if not paths.summary.is_file():
        return {}
    return numbers_by_steps(read_object(paths.summary, "run the stage report").get("steps", {}))


def _evidence(paths: Paths) -> Evidence | None:
    """Return the evidence that lies in a checkout; None where a stage has still to make some."""
    if not paths.summary.is_file():
        return None
    summary = read_object(paths.summary, "run the stage report")
    names = summary.get("capabilities", {})
    if not all(paths.evaluation(name).is_file() for name in names):
        return None
    return read_evidence(paths, names, summary)


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
