"""The run of a pipeline: started by the training, resumed by later stages, rebuilt when lost.

The store may be away at any moment. A training goes on without it; what it missed is sent from the
training's own record as soon as somebody asks: the training itself, the flow's end, or
``danceflow sync``.
"""

import fcntl
import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from danceflow.errors import StoreAwayError, TrackingError
from danceflow.ops.files import write_json
from danceflow.ops.tracking.address import without_login
from danceflow.ops.tracking.store import (
    Store,
    TrackingSettings,
    open_store,
    source_tags,
    store_errors,
)
from danceflow.ops.tracking.tracker import (
    LateTracker,
    MlflowTracker,
    NoTracker,
    Tracker,
    dataset_input,
    flatten,
    log_params,
)
from danceflow.ops.tracking.training import (
    SENT_TAG,
    Known,
    TrainingRecord,
    latest_moment,
    send_missing,
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
        run_id: MLflow's id of the run; None when tracking was off, or the store away.
        name: the run's name.
        key: the training stage's key; it stands for the run when there is no id.
        params: flat parameter names and values, as logged.
        token: the run's own mark in a store, given before the run is made; None: tracking was off.
        status: how the training ended, in MLflow's words; None: it has not.
    """

    run_id: str | None
    name: str
    key: str
    params: Mapping[str, str]
    token: str | None = None
    status: str | None = None

    @property
    def origin(self) -> str:
        """What the run is found by where its id is not known."""
        return self.token or self.run_id or f"key:{self.key}"

    def write(self, path: Path) -> None:
        """Write the pointer (atomically) as JSON."""
        write_json(
            path,
            {
                "run_id": self.run_id,
                "name": self.name,
                "key": self.key,
                "params": dict(self.params),
                "token": self.token,
                "status": self.status,
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
            return RunPointer(
                data["run_id"],
                data["name"],
                data["key"],
                data["params"],
                data.get("token"),
                data.get("status"),
            )
        except FileNotFoundError:
            raise TrackingError(f"{path}: no such run pointer; run the stage distill") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrackingError(f"{path}: is no run pointer: {error!r}") from None


def start_run(
    settings: TrackingSettings, pointer: Path, *, name: str, key: str, params: Mapping[str, Any]
) -> Tracker:
    """Return a tracker for a training, and write its pointer.

    What DVC keeps below ``data/`` is recorded as the run's inputs, with DVC's digests.

    A pointer that is already there belongs to the same training, interrupted: its run goes on, and
    gets what it lacks of the record beside the pointer. Where the store is away, the training goes
    on without it, and the tracker looks for it from time to time.

    Args:
        settings: where to record.
        pointer: the pointer file; between interruptions it lies with the checkpoints.
        name: the run's name.
        key: the training stage's key.
        params: everything that decides the run.

    Raises:
        TrackingError: the store cannot be used; nothing has been written then.
    """
    flat = flatten(params)
    if not settings.enabled:
        RunPointer(None, name, key, flat).write(pointer)
        return NoTracker()
    if pointer.is_file():
        record = replace(RunPointer.read(pointer), status=None)
    else:
        record = RunPointer(None, name, key, flat, token=secrets.token_hex(16))

    def connect() -> MlflowTracker:
        return _connect(settings, pointer, record)

    def ended(status: str) -> None:
        _note_end(pointer, status)

    try:
        return connect()
    except StoreAwayError as error:
        record.write(pointer)
        _LOG.warning("%s; the training goes on without it", error)
        return LateTracker(connect, ended)


def resume_run(settings: TrackingSettings, pointer: Path) -> Tracker:
    """Return a tracker for a later stage of the pipeline that the pointer belongs to.

    Args:
        settings: where to record.
        pointer: what the training left, beside its record.

    Raises:
        TrackingError: the store cannot be reached, or the pointer or the metrics are unusable.
    """
    if not settings.enabled:
        return NoTracker()
    store = open_store(settings)
    run_id = _sent(store, pointer, settings.root)
    with store_errors(store.uri):
        store.client.update_run(run_id, status="RUNNING")
        after = latest_moment(store, run_id)
    return MlflowTracker(store, run_id, after=after)


def send_run(settings: TrackingSettings, pointer: Path) -> str | None:
    """Return the id of a training's run, complete; None where tracking is off.

    What the store lacks is sent: the run itself, parameters, points, images, its status. A run that
    is complete is not touched.

    Args:
        settings: where to record.
        pointer: what the training left, beside its record; nobody trains there now.

    Raises:
        TrackingError: the store cannot be reached, or the pointer or the metrics are unusable.
    """
    return _sent(open_store(settings), pointer, settings.root) if settings.enabled else None


def _connect(settings: TrackingSettings, pointer: Path, record: RunPointer) -> MlflowTracker:
    """Return a tracker of a training's run, which is made when it is missing."""
    store = open_store(settings)
    training = TrainingRecord(pointer.parent)
    # By hand the lock file need not be about these inputs.
    inputs = dvc_digests(settings.root, "data") if "DVC_STAGE" in os.environ else {}

    with store_errors(store.uri):
        found = _find(store, record)
        if found is None:
            record.write(pointer)
            tags = {**source_tags(settings.root), "stage.key": record.key}
            run_id = _create(store, record, tags)
        else:
            run_id = found
        replace(record, run_id=run_id).write(pointer)
        known = _complete(store, run_id, record, inputs)
        try:
            send_missing(store, run_id, training, known)
        except TrackingError as error:  # what the training itself drops as it goes on
            _LOG.warning("not mirrored: %s", error)
        store.client.update_run(run_id, status="RUNNING")

    def mend() -> Known:
        found = Known.of(store, run_id)
        send_missing(store, run_id, training, found)
        return found

    def ended(status: str) -> None:
        _note_end(pointer, status)

    return MlflowTracker(store, run_id, known=known, mend=mend, ended=ended)


def _sent(store: Store, pointer: Path, root: Path) -> str:
    """Return the id of the pointer's run once the store has all of it."""
    record, training = RunPointer.read(pointer), TrainingRecord(pointer.parent)
    training.points()  # which must be readable before anything is made
    is_whole = training.curves.is_file()
    # Parallel stages resume through one pointer: only one of them rebuilds the run.
    with store_errors(store.uri), pointer.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_id = _find(store, record)
        if run_id is None:
            run_id = _create(store, record, {RESTORED_TAG: "true", "stage.key": record.key})
            shown = without_login(store.uri)
            _LOG.info("run %s is unknown at %s: rebuilt as %s", record.origin, shown, run_id)
        run, digest = store.client.get_run(run_id), training.digest()
        if run.data.tags.get(SENT_TAG) != digest:
            inputs = dvc_digests(root, "data") if RESTORED_TAG in run.data.tags else {}
            known = _complete(store, run_id, record, inputs)
            if count := send_missing(store, run_id, training, known):
                _LOG.info("run %s: sent %d points and images that it lacked", run_id, count)
            store.client.set_tag(run_id, SENT_TAG, digest)
        status = record.status or ("FINISHED" if is_whole else None)
        if status is None and run.info.status == "RUNNING":
            status = "KILLED"  # nobody works on it, and it did not come to its end
        if status not in (None, run.info.status):
            store.client.set_terminated(run_id, status)
        return run_id


def _note_end(pointer: Path, status: str) -> None:
    """Write into a pointer how the training ended."""
    replace(RunPointer.read(pointer), status=status).write(pointer)


def _create(store: Store, record: RunPointer, tags: Mapping[str, str]) -> str:
    """Return the id of a new run.

    It is found by its origin from the moment it is there, so that no second one is made for it.
    """
    marked = {**tags, ORIGIN_TAG: record.origin}
    run = store.client.create_run(store.experiment_id, run_name=record.name, tags=marked)
    return str(run.info.run_id)


def _complete(store: Store, run_id: str, record: RunPointer, inputs: Mapping[str, str]) -> Known:
    """Log the parameters and inputs that a run lacks, and return what it has of the rest.

    Args:
        store: where the run is.
        run_id: the run; it may have been made a moment ago, or been left half-made.
        record: holds its parameters.
        inputs: DVC's digests by path.
    """
    run = store.client.get_run(run_id)
    params = {k: v for k, v in record.params.items() if k not in run.data.params}
    log_params(store.client, run_id, params)
    there = {item.dataset.digest for item in run.inputs.dataset_inputs}
    entries = [
        dataset_input(path.removeprefix("data/"), digest, path, "training")
        for path, digest in inputs.items()
        if digest not in there
    ]
    if entries:
        store.client.log_inputs(run_id, entries)
    return Known.of(store, run_id)


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
