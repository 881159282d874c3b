"""The run of a pipeline: started by the training, resumed by later stages, rebuilt when lost."""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import TrackingError
from danceflow.ops.files import write_json
from danceflow.ops.tracking.store import (
    Store,
    TrackingSettings,
    open_store,
    source_tags,
    store_errors,
    without_login,
)
from danceflow.ops.tracking.tracker import (
    MlflowTracker,
    NoTracker,
    Tracker,
    flatten,
    log_params,
)
from danceflow.params.yaml12 import read_yaml

_LOG = logging.getLogger(__name__)

ORIGIN_TAG = "danceflow.origin"
RESTORED_TAG = "restored"


@dataclass(frozen=True)
class RunPointer:
    """What a training leaves so that later stages find, or rebuild, its run.

    It names no store: the same file serves wherever the pipeline is continued.

    Attributes:
        run_id: MLflow's id of the run; None when tracking was off.
        name: the run's name.
        key: the training stage's key; it stands for the run when there is no id.
        params: flat parameter names and values, as logged.
    """

    run_id: str | None
    name: str
    key: str
    params: Mapping[str, str]

    @property
    def origin(self) -> str:
        """What a rebuilt run is found again by."""
        return self.run_id or f"key:{self.key}"

    def write(self, path: Path) -> None:
        """Write the pointer (atomically) as JSON."""
        write_json(
            path,
            {
                "run_id": self.run_id,
                "name": self.name,
                "key": self.key,
                "params": dict(self.params),
            },
        )

    @staticmethod
    def read(path: Path) -> "RunPointer":
        """Return the pointer in a file.

        Raises:
            TrackingError: the file is missing or is no pointer.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            return RunPointer(data["run_id"], data["name"], data["key"], data["params"])
        except FileNotFoundError:
            raise TrackingError(f"{path}: no such run pointer; run the stage distill") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrackingError(f"{path}: is no run pointer: {error!r}") from None


def row_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one line of a metrics file under names that tell lines apart.

    Nested mappings are joined by ``/``, and words that the line holds are appended:
    ``{"capability": "t2i", "loss": 0.5}`` gives ``loss/t2i``.
    """
    words = "".join(f"/{value}" for value in row.values() if isinstance(value, str))
    return {f"{name}{words}": value for name, value in _numbers(row)}


@dataclass(frozen=True)
class RunFiles:
    """The files that a lost run is rebuilt from.

    Attributes:
        metrics: JSON lines, each with a ``step``.
        folder: what is recorded as artifacts; None: nothing.
        metrics_of: gives the names and numbers of one line, without its step.
    """

    metrics: Path
    folder: Path | None = None
    metrics_of: Callable[[Mapping[str, Any]], Mapping[str, float]] = row_metrics


def start_run(
    settings: TrackingSettings, pointer: Path, *, name: str, key: str, params: Mapping[str, Any]
) -> Tracker:
    """Return a tracker for a training, and write its pointer.

    What DVC keeps below ``data/`` is recorded as the run's inputs, with DVC's digests.

    A pointer that is already there belongs to the same training, interrupted: its run goes on.

    Args:
        settings: where to record.
        pointer: the pointer file; between interruptions it lies with the checkpoints.
        name: the run's name.
        key: the training stage's key.
        params: everything that decides the run.

    Raises:
        TrackingError: the store cannot be reached; nothing has been written then.
    """
    flat = flatten(params)
    if not settings.enabled:
        RunPointer(None, name, key, flat).write(pointer)
        return NoTracker()
    store = open_store(settings)
    with store_errors(store.uri):
        if pointer.is_file():
            known = _find(store, RunPointer.read(pointer))
            if known is not None:
                store.client.update_run(known, status="RUNNING")
                return MlflowTracker(store, known)
        run_id = _create(store, name, {**source_tags(settings.root), "stage.key": key}, flat)
        if "DVC_STAGE" in os.environ:  # else the lock file need not be about these inputs
            _log_inputs(store, run_id, settings.root)
        RunPointer(run_id, name, key, flat).write(pointer)
    return MlflowTracker(store, run_id)


def resume_run(settings: TrackingSettings, pointer: Path, files: RunFiles) -> Tracker:
    """Return a tracker for a later stage of the pipeline that the pointer belongs to.

    Args:
        settings: where to record.
        pointer: what the training left.
        files: what the run is rebuilt from when the store does not know it.

    Raises:
        TrackingError: the store cannot be reached, or the pointer or the metrics are unusable.
    """
    if not settings.enabled:
        return NoTracker()
    store = open_store(settings)
    record = RunPointer.read(pointer)
    # Parallel stages resume through one pointer: only one of them rebuilds the run.
    with store_errors(store.uri), pointer.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_id = _find(store, record) or _rebuild(store, record, files, settings.root)
        store.client.update_run(run_id, status="RUNNING")
    return MlflowTracker(store, run_id)


def _create(store: Store, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    """Return the id of a new run with tags and parameters."""
    run = store.client.create_run(store.experiment_id, run_name=name, tags=dict(tags))
    run_id = str(run.info.run_id)
    log_params(store.client, run_id, params)
    return run_id


def _find(store: Store, pointer: RunPointer) -> str | None:
    """Return the id of the pointer's run in this store, or of the one rebuilt for it."""
    from mlflow.exceptions import MlflowException

    if pointer.run_id is not None:
        try:
            run = store.client.get_run(pointer.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active":
                return pointer.run_id
    runs = store.client.search_runs(
        [store.experiment_id], f"tags.`{ORIGIN_TAG}` = '{pointer.origin}'", max_results=1
    )
    return str(runs[0].info.run_id) if runs else None


def _rebuild(store: Store, pointer: RunPointer, files: RunFiles, root: Path) -> str:
    """Return the id of a run rebuilt from files; its origin is set last, when it is complete."""
    entries = list(_metric_lines(files))
    tags = {RESTORED_TAG: "true", "stage.key": pointer.key}
    run_id = _create(store, pointer.name, tags, pointer.params)
    tracker = MlflowTracker(store, run_id)
    for step, metrics in entries:
        tracker.log_metrics(metrics, step)
    tracker.flush()
    _log_inputs(store, run_id, root)
    if files.folder is not None:
        store.client.log_artifacts(run_id, str(files.folder))
    store.client.set_tag(run_id, ORIGIN_TAG, pointer.origin)
    shown = without_login(store.uri)
    _LOG.info("run %s is unknown at %s: rebuilt as %s", pointer.origin, shown, run_id)
    return run_id


def _log_inputs(store: Store, run_id: str, root: Path) -> None:
    """Record the pipeline's data as inputs of a run."""
    tracker = MlflowTracker(store, run_id)
    for path, digest in dvc_digests(root, "data").items():
        tracker.log_dataset(path.removeprefix("data/"), digest, path, "training")


def _metric_lines(files: RunFiles) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Yield the step and the numbers of every line of a metrics file."""
    path = files.metrics
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TrackingError(f"{path}: the metrics cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise TrackingError(f"{path}: line {number} is no JSON object with a step") from None
        yield step, files.metrics_of(values)


def dvc_digests(root: Path, folder: str) -> dict[str, str]:
    """Return DVC's digest of every output below a folder, by path, as ``dvc.lock`` has them.

    Args:
        root: the checkout.
        folder: relative to it, such as ``data``.
    """
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    stages = read_yaml(path).get("stages", {})
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return {
        out["path"]: out["md5"]
        for out in outs
        if "md5" in out and out["path"].startswith(f"{folder}/")
    }


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
