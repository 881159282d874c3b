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
from danceflow.ops.tracking.store import Store, store_errors, without_login

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

_LOG = logging.getLogger(__name__)

_FLUSH_EVERY_S = 10.0
_FLUSH_AFTER_FAILURE_S = 60.0
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
_MAX_DIGEST = 36
_MAX_PENDING = 200_000


class Tracker(Protocol):
    """What a stage may record. A block ``with tracker:`` ends the stage's part of the run."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, None when nothing is recorded."""

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
    """Mirrors a stage's records into one MLflow run; metrics are sent in batches."""

    def __init__(
        self, store: Store, run_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.store = store
        self.run_id: str | None = run_id
        self._id = run_id
        self._clock = clock
        self._pending: list[tuple[str, float, int, int]] = []
        self._next_flush = clock() + _FLUSH_EVERY_S
        self._lost: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()
        status = "FINISHED"
        if kind is not None:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        self._mirror("the end of the run", lambda: self._end(status))
        if self._lost or self._pending:
            _LOG.warning(
                "MLflow at %s did not take everything (%s); the files of the run are complete",
                without_login(self.store.uri),
                ", ".join(dict.fromkeys([*self._lost, *(["metrics"] * bool(self._pending))])),
            )

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
        now = int(time.time() * 1000)
        self._pending += [(name, float(value), now, step) for name, value in metrics.items()]
        if self._clock() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Send the metrics that wait; what the store does not take waits on."""
        self._next_flush = self._clock() + _FLUSH_EVERY_S
        while self._pending:
            batch = self._pending[:_METRICS_PER_BATCH]
            if not self._mirror("metrics", partial(self._send, batch), retried=True):
                self._next_flush = self._clock() + _FLUSH_AFTER_FAILURE_S
                if len(self._pending) > _MAX_PENDING:
                    self._pending.clear()
                    self._lost.append("metrics")
                return
            del self._pending[: len(batch)]

    def log_image(self, key: str, image: "Image", step: int) -> None:
        """Record an image; it is in MLflow's image grid when the call returns."""
        self._mirror(
            f"image {key}",
            lambda: self.store.client.log_image(
                self._id, image, key=key, step=step, synchronous=True
            ),
        )

    def log_dataset(self, name: str, digest: str, source: str, context: str) -> None:
        """Record an input with its DVC digest.

        Raises:
            TrackingError: the digest is longer than MLflow takes.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if len(digest) > _MAX_DIGEST:
            raise TrackingError(f"dataset {name}: digest {digest!r} is longer than {_MAX_DIGEST}")
        entry = DatasetInput(
            Dataset(name, digest, source_type="dvc", source=json.dumps({"uri": source})),
            [InputTag("mlflow.data.context", context)],
        )
        self._mirror(f"dataset {name}", lambda: self.store.client.log_inputs(self._id, [entry]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a file or a folder."""
        log = self.store.client.log_artifacts if path.is_dir() else self.store.client.log_artifact
        self._mirror(f"file {path.name}", lambda: log(self._id, str(path), folder))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._mirror("tags", lambda: self._tag(tags))

    def _tag(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        if tags:
            entries = [RunTag(name, value) for name, value in tags.items()]
            self.store.client.log_batch(self._id, tags=entries)

    def _send(self, batch: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        self.store.client.log_batch(self._id, metrics=[Metric(*entry) for entry in batch])

    def _end(self, status: str) -> None:
        self.store.client.set_terminated(self._id, status)

    def _mirror(self, what: str, send: Callable[[], None], *, retried: bool = False) -> bool:
        """Send something and return whether the store took it; training goes on if it did not."""
        try:
            with store_errors(self.store.uri):
                send()
        except TrackingError as error:
            _LOG.warning("not mirrored: %s: %s", what, error)
            if not retried:
                self._lost.append(what)
            return False
        return True


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as dotted names; words stay as they are, other values become JSON."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Send flat parameters in batches that MLflow takes."""
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in params.items()]
    for start in range(0, len(entries), _PARAMS_PER_BATCH):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_BATCH])
