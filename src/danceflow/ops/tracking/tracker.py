"""What a stage may record: nothing, or a mirror of it in MLflow."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from danceflow.errors import TrackingError
from danceflow.ops.tracking.address import without_login
from danceflow.ops.tracking.store import Store, store_errors
from danceflow.ops.tracking.training import Known

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)

_FLUSH_EVERY_S = 10.0
_FLUSH_AFTER_FAILURE_S = 60.0
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_MAX_DIGEST = 36
_MAX_PENDING = 200_000
_METRICS = "metrics"


class Tracker(Protocol):
    """What a stage may record. A block ``with tracker:`` ends the stage's part of the run."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None when nothing is recorded."""

    @property
    def is_complete(self) -> bool:
        """Whether the store has taken all that it was given so far."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; nested mappings get dotted names."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step (a training update)."""

    def log_image(self, key: str, image: "Image", step: int) -> None:
        """Record an image under one of a few fixed keys, such as ``grid/t2i``."""

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record an input: DVC's digest (``<md5>.dir`` fits), its path, and what it was for."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file, or a folder with all it holds."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""


class NoTracker:
    """Tracking is off: records nothing."""

    run_id: str | None = None
    is_complete = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def log_image(self, key: str, image: "Image", step: int) -> None:
        """Do nothing."""

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""


class MlflowTracker:
    """Mirrors a stage's records into one MLflow run; metrics are sent in batches.

    A point or an image that the run has already is not sent again.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        known: Known | None = None,
        after: int = 0,
        mend: Callable[[], Known] | None = None,
        ended: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to mirror.

        Args:
            store: where the run is.
            run_id: the run.
            known: what it has of a training; None: what is given is new, whatever its step.
            after: time of what the run has, in milliseconds. Of two values of one step MLflow goes
                by the later one, and the clock may have been set back.
            mend: sends what the store did not take, from the training's own record, and returns
                what the run has then. The record holds every metric that is logged.
            ended: called with the status at the end, before the store is told.
            clock: seconds.
        """
        self.store = store
        self._known, self._mend, self._ended = known, mend, ended
        self.run_id: str | None = run_id
        self._id = run_id
        self._clock = clock
        self._after = after
        self._pending: list[tuple[str, float, int, int]] = []
        self._next_flush = clock() + _FLUSH_EVERY_S
        self._lost: list[tuple[str, tuple[str, int] | None]] = []  # an image with key and step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        status = status_of(kind)
        if self._ended is not None:
            self._ended(status)
        self.flush()
        if self._mend is not None and not self.is_complete:
            self._mirror("the rest", partial(self._make_good, self._mend))
        self._mirror("the end of the run", lambda: self._end(status))
        if not self.is_complete:
            lost = [what for what, _ in self._lost]
            _LOG.warning(
                "MLflow at %s did not take everything (%s); the files of the run are complete, and "
                "`danceflow sync` sends what is missing",
                without_login(self.store.uri),
                ", ".join(dict.fromkeys([*lost, *([_METRICS] * bool(self._pending))])),
            )

    @property
    def is_complete(self) -> bool:
        """Whether the store has taken all that it was given so far."""
        return not self._lost and not self._pending

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters; one that the run has with another value becomes a ``changed.`` tag.

        MLflow lets no parameter change, but an evaluation may be repeated with other settings.
        """

        def send() -> None:
            flat = flatten(params)
            known = self.store.client.get_run(self._id).data.params
            new = {name: value for name, value in flat.items() if name not in known}
            changed = {
                f"changed.{name}": value
                for name, value in flat.items()
                if name in known and known[name] != value
            }
            log_params(self.store.client, self._id, new)
            self._tag(changed)

        self._mirror("params", send)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; they are sent every few seconds."""
        now = self._now()
        self._pending += [
            (name, float(value), now, step)
            for name, value in metrics.items()
            if self._known is None or self._known.lacks(name, step)
        ]
        if self._clock() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send the metrics that wait; what the store does not take waits on."""
        self._next_flush = self._clock() + _FLUSH_EVERY_S
        while self._pending:
            batch = self._pending[:_METRICS_PER_BATCH]
            if not self._mirror(_METRICS, partial(self._send, batch), retried=True):
                self._next_flush = self._clock() + _FLUSH_AFTER_FAILURE_S
                if len(self._pending) > _MAX_PENDING:
                    self._pending.clear()
                    self._lost.append((_METRICS, None))
                return
            del self._pending[: len(batch)]

    def log_image(self, key: str, image: "Image", step: int) -> None:
        """Record an image; it is in MLflow's image grid when the call returns."""
        if self._known is not None and (key, step) in self._known.images:
            return
        self._mirror(
            f"image {key}",
            lambda: self.store.client.log_image(
                self._id, image, key=key, step=step, timestamp=self._now(), synchronous=True
            ),
            image=(key, step),
        )

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record an input with its DVC digest.

        Raises:
            TrackingError: the digest is longer than MLflow takes.
        """
        entry = dataset_input(name, digest, source, context)
        self._mirror(f"dataset {name}", lambda: self.store.client.log_inputs(self._id, [entry]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file or a folder."""
        log = self.store.client.log_artifacts if path.is_dir() else self.store.client.log_artifact
        self._mirror(f"file {path.name}", lambda: log(self._id, str(path), folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._mirror("tags", lambda: self._tag(tags))

    def _now(self) -> int:
        """Return the time of what is recorded now, in milliseconds."""
        return max(int(time.time() * 1000), self._after + 1)

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            entries = [RunTag(name, value) for name, value in tags.items()]
            self.store.client.log_batch(self._id, tags=entries)

    def _send(self, batch: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        self.store.client.log_batch(self._id, metrics=[Metric(*entry) for entry in batch])

    def _make_good(self, mend: Callable[[], Known]) -> None:
        """Let the record make good what was lost; what it does not hold stays lost."""
        known = mend()
        self._pending = [
            entry for entry in self._pending if entry[3] not in known.points.get(entry[0], ())
        ]
        self._lost = [
            (what, image)
            for what, image in self._lost
            if what != _METRICS and image not in known.images
        ]

    def _end(self, status: str) -> None:
        self.store.client.set_terminated(self._id, status)

    def _mirror(
        self,
        what: str,
        send: Callable[[], None],
        *,
        retried: bool = False,
        image: tuple[str, int] | None = None,
    ) -> bool:
        """Send something and return whether the store took it; training goes on if it did not."""
        try:
            with store_errors(self.store.uri):
                send()
        except TrackingError as error:
            _LOG.warning("not mirrored: %s: %s", what, error)
            if not retried:
                self._lost.append((what, image))
            return False
        return True


class LateTracker:
    """Mirrors a training into a store that was away when it began, from when it is back.

    What was not mirrored meanwhile is in the training's own record, and sent from there.
    """

    def __init__(
        self,
        connect: Callable[[], MlflowTracker],
        ended: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a store.

        Args:
            connect: gives the tracker, once the store has all that was recorded until then.
            ended: called with the status at the end.
            clock: seconds.
        """
        self._connect, self._ended, self._clock = connect, ended, clock
        self._tracker: MlflowTracker | None = None
        self._next_try = clock() + _FLUSH_AFTER_FAILURE_S

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None as long as the store is away."""
        return None if self._tracker is None else self._tracker.run_id

    @property
    def is_complete(self) -> bool:
        """Whether the store has taken all that it was given so far."""
        return self._tracker is not None and self._tracker.is_complete

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._next_try = self._clock()
        self._reached()
        if self._tracker is not None:
            self._tracker.__exit__(kind, error, trace)
            return
        self._ended(status_of(kind))
        _LOG.warning(
            "nothing of the run was recorded; its files are complete, and `danceflow sync` sends "
            "them when the store is back"
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record parameters where the store is back."""
        self._reached().log_params(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step where the store is back."""
        self._reached().log_metrics(metrics, step)

    def log_image(self, key: str, image: "Image", step: int) -> None:
        """Record an image where the store is back."""
        self._reached().log_image(key, image, step)

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record an input where the store is back."""
        self._reached().log_dataset(name, digest, source, context)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file or a folder where the store is back."""
        self._reached().log_artifact(path, folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run where the store is back."""
        self._reached().set_tags(tags)

    def _reached(self) -> Tracker:
        """Return the tracker of the store, or one that records nothing while it is away."""
        if self._tracker is None and self._clock() >= self._next_try:
            self._next_try = self._clock() + _FLUSH_AFTER_FAILURE_S
            try:
                self._tracker = self._connect()
            except TrackingError as error:
                _LOG.warning("%s", error)
        return NoTracker() if self._tracker is None else self._tracker


def status_of(kind: type[BaseException] | None) -> str:
    """Return in MLflow's words how a block ended that an error of this kind has left, if any."""
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


def dataset_input(name: str, digest: str, source: str, context: str) -> "DatasetInput":
    """Return an input of a run, as MLflow has it.

    Raises:
        TrackingError: the digest is longer than MLflow takes.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if len(digest) > _MAX_DIGEST:
        raise TrackingError(f"dataset {name}: digest {digest!r} is longer than {_MAX_DIGEST}")
    return DatasetInput(
        Dataset(name, digest, source_type="dvc", source=json.dumps({"uri": source})),
        [InputTag("mlflow.data.context", context)],
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted names; words stay as they are, other values become JSON.

    Logins in addresses are left out: the result is kept in files, by MLflow and by DVC.
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[f"{prefix}{name}"] = without_login(text)
    return flat


def log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Send flat parameters in batches that MLflow takes."""
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_BATCH])
