"""A training's own record, and what of it a run in the store lacks.

The record is the folder that holds the run's pointer: ``metrics.jsonl``, a JSON object a line, and
``grids/<capability>-<update>.png``. The store mirrors it, and may have been away.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danceflow.errors import TrackingError
from danceflow.ops.tracking.store import Store

SENT_TAG = "training.sent"
FOLDER = "training"  # of the record itself among a run's artifacts

_METRICS_PER_BATCH = 1000
_GRID = re.compile(r"(.+)-(\d+)\.png")
_IMAGE = re.compile(r"images/(.+?)[+%]step[+%](\d+)[+%]timestamp[+%](\d+).*compressed\.webp")


@dataclass(frozen=True)
class TrainingRecord:
    """What a training wrote beside its pointer.

    Attributes:
        folder: a work folder while it trains, ``reports/distill`` afterwards.
    """

    folder: Path

    @property
    def metrics(self) -> Path:
        """JSON lines, each with a ``step``."""
        return self.folder / "metrics.jsonl"

    @property
    def curves(self) -> Path:
        """The losses as a table; it is written at the end."""
        return self.folder / "curves.csv"

    def points(self) -> dict[tuple[str, int], float]:
        """Return every number by name and step, as the training logs them.

        A last line without an end is what a killed process began to write; it does not count.

        Raises:
            TrackingError: the file cannot be read, or a line is none of a training.
        """
        path, found = self.metrics, dict[tuple[str, int], float]()
        try:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except OSError as error:
            raise TrackingError(f"{path}: the metrics cannot be read: {error.strerror}") from None
        for number, line in enumerate(lines, start=1):
            try:
                values = json.loads(line)
                step = int(values.pop("step"))
                found |= {(name, step): float(v) for name, v in training_metrics(values).items()}
            except (ValueError, KeyError, AttributeError, TypeError):
                raise TrackingError(f"{path}: line {number} is no record of a training") from None
        return found

    def grids(self) -> dict[tuple[str, int], Path]:
        """Return the image files by key and step, as the training logs them."""
        found = {}
        for path in sorted((self.folder / "grids").glob("*.png")):
            if name := _GRID.fullmatch(path.name):
                found[f"grid/{name[1]}", int(name[2])] = path
        return found

    def digest(self) -> str:
        """Return what stands for its present content."""
        digest = hashlib.sha256(self.metrics.read_bytes() if self.metrics.is_file() else b"")
        for key, step in self.grids():
            digest.update(f"{key} {step}\n".encode())
        digest.update(str(self.curves.is_file()).encode())
        return digest.hexdigest()[:16]


@dataclass
class Known:
    """What a run in the store has: what is there is not sent again.

    Attributes:
        points: steps by metric.
        images: keys and steps.
    """

    points: dict[str, set[int]] = field(default_factory=dict)
    images: set[tuple[str, int]] = field(default_factory=set)

    @staticmethod
    def of(store: Store, run_id: str) -> "Known":
        """Return what the store says of a run."""
        client = store.client
        points = {
            name: {point.step for point in client.get_metric_history(run_id, name)}
            for name in client.get_run(run_id).data.metrics
        }
        found = (_IMAGE.fullmatch(item.path) for item in client.list_artifacts(run_id, "images"))
        return Known(points, {(m[1].replace("~", "/"), int(m[2])) for m in found if m})

    def lacks(self, name: str, step: int) -> bool:
        """Return whether a point is new, and take note of it."""
        steps = self.points.setdefault(name, set())
        if step in steps:
            return False
        steps.add(step)
        return True


def latest_moment(store: Store, run_id: str) -> int:
    """Return the time of the last number or image of a run, in milliseconds; 0: it has none.

    Args:
        store: where it is.
        run_id: of the run.
    """
    client = store.client
    times = [
        int(point.timestamp)
        for name in client.get_run(run_id).data.metrics
        for point in client.get_metric_history(run_id, name)
    ]
    found = (_IMAGE.fullmatch(item.path) for item in client.list_artifacts(run_id, "images"))
    return max([0, *times, *(int(match[3]) for match in found if match)])


def training_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the training's ``metrics.jsonl`` as the training logs them.

    Args:
        row: losses of one ``capability``, or ``scores`` of all of them, without the step.
    """
    if "scores" in row:
        return {f"validation/{name}": score for name, score in row["scores"].items()}
    common = dict(row)
    loss = f"loss/{common.pop('capability')}"
    return {
        loss: common.pop("loss"),
        **{f"{loss}/sigma_{name}": mean for name, mean in common.pop("sigma_bins").items()},
        **{f"train/{name}": value for name, value in common.items()},
    }


def send_missing(store: Store, run_id: str, record: TrainingRecord, known: Known) -> int:
    """Send what a run lacks of a training's record, and return how many points and images it was.

    Whatever ends it half-way, the next call goes on: it asks the store what is there.

    Args:
        store: where the run is.
        run_id: the run.
        record: of its training.
        known: what the run has; it is brought up to date.

    Raises:
        TrackingError: the record cannot be read.
    """
    from mlflow import Image
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    points = {} if not record.metrics.is_file() else record.points()
    now = get_current_time_millis()
    missing = [
        Metric(name, value, now, step)
        for (name, step), value in points.items()
        if known.lacks(name, step)
    ]
    for batch in _batches(missing):
        store.client.log_batch(run_id, metrics=batch)
    grids = {place: path for place, path in record.grids().items() if place not in known.images}
    for (key, step), path in grids.items():
        store.client.log_image(run_id, Image(str(path)), key=key, step=step, synchronous=True)
        known.images.add((key, step))
    for path in (record.metrics, record.curves):
        if path.is_file():
            store.client.log_artifact(run_id, str(path), FOLDER)
    return len(missing) + len(grids)


def _batches(entries: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(entries), _METRICS_PER_BATCH):
        yield entries[start : start + _METRICS_PER_BATCH]
