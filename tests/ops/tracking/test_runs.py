"""A server that is away for a while: the training goes on, and the run is complete afterwards."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from danceflow.ops.tracking import (
    LateTracker,
    MlflowTracker,
    TrackingSettings,
    TrainingRecord,
    open_store,
    send_run,
    start_run,
)
from danceflow.train.log import Meter, MetricsFile, log_losses, write_curves

NAMES = ("t2i", "local_edit")
PARAMS = {"distill": {"num_updates": 6}, **{f"p{number}": number for number in range(20)}}

pytestmark = pytest.mark.pipeline


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is sent, and tried again, without a pause."""
    monkeypatch.setattr("danceflow.ops.tracking.tracker._FLUSH_EVERY_S", 0.0)
    monkeypatch.setattr("danceflow.ops.tracking.tracker._FLUSH_AFTER_FAILURE_S", 0.0)


@pytest.fixture
def settings(server, tmp_path: Path, request) -> TrackingSettings:
    return TrackingSettings(tmp_path, True, server.uri, request.node.name, "student")


class Training:
    """Writes and tells what the stage distill does, in its order."""

    def __init__(self, settings: TrackingSettings) -> None:
        self.settings, self.folder = settings, settings.root / "work"
        self.folder.mkdir(exist_ok=True)
        self.pointer = self.folder / "run.json"

    def start(self):
        return start_run(self.settings, self.pointer, name="danceopd-1", key="k", params=PARAMS)

    def updates(self, tracker, first: int, last: int, size: int | None = None) -> int:
        """Make some updates, and return the size of the record."""
        path = self.folder / "metrics.jsonl"
        kept = size if size is not None else path.stat().st_size if path.exists() else 0
        file, meter = MetricsFile(path, kept), Meter()
        for step in range(first, last + 1):
            for name in NAMES:
                meter.add(name, torch.tensor([0.1, 0.9]), torch.tensor([1.0, 3.0]) / step)
            log_losses(meter, file, tracker, step, {"grad_norm": 1.0 / step})
            picture = Image.new("RGB", (8, 8), (step, 0, 0))
            grid = self.folder / "grids" / f"t2i-{step:06d}.png"
            grid.parent.mkdir(exist_ok=True)
            picture.save(grid)
            tracker.log_image("grid/t2i", picture, step)
            tracker.log_metrics({"validation/t2i": step / 10}, step)
            file.append({"step": step, "num_steps": 4, "scores": {"t2i": step / 10}})
        return file.size

    def end(self) -> None:
        write_curves(self.folder / "metrics.jsonl", self.folder / "curves.csv")


def check_complete(settings: TrackingSettings, pointer: Path) -> str:
    """The one run of the training holds its record, every point and picture once."""
    store = open_store(settings)
    (run,) = store.client.search_runs([store.experiment_id])
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"distill.num_updates": "6", **{f"p{n}": str(n) for n in range(20)}}
    found = {
        (name, point.step, point.value)
        for name in run.data.metrics
        for point in store.client.get_metric_history(run_id, name)
    }
    count = sum(len(store.client.get_metric_history(run_id, name)) for name in run.data.metrics)
    points = TrainingRecord(pointer.parent).points()
    assert found == {(name, step, value) for (name, step), value in points.items()}
    assert count == len(points)
    images = [item.path for item in store.client.list_artifacts(run_id, "images")]
    for step in range(1, 7):
        assert len([path for path in images if f"grid~t2i+step+{step}+" in path]) == 2  # and small
    kept = {item.path for item in store.client.list_artifacts(run_id, "training")}
    assert kept == {"training/metrics.jsonl", "training/curves.csv"}
    return run_id


def away_from_the_start(server, training: Training) -> None:
    server.away()
    with training.start() as tracker:
        assert isinstance(tracker, LateTracker)
        training.updates(tracker, 1, 6)
    assert (tracker.run_id, tracker.is_complete) == (None, False)


def away_at_first_and_once_more(server, training: Training) -> None:
    server.away()
    with training.start() as tracker:
        training.updates(tracker, 1, 2)
        server.back()
        training.updates(tracker, 3, 4)
        assert tracker.run_id is not None
        server.away()
        training.updates(tracker, 5, 5)
        server.back()
        training.updates(tracker, 6, 6)


def away_until_after_the_end(server, training: Training) -> None:
    with training.start() as tracker:
        training.updates(tracker, 1, 2)
        server.away()
        training.updates(tracker, 3, 6)


def both_killed(server, training: Training) -> None:
    """The training goes on at its checkpoint, before what it had told already."""
    tracker = training.start()
    size = training.updates(tracker, 1, 2)
    training.updates(tracker, 3, 3)  # known to the server, and behind the checkpoint
    server.kill()
    training.updates(tracker, 4, 4)  # known to nobody
    with (training.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "cap')  # as far as it came
    with training.start() as tracker:
        assert isinstance(tracker, LateTracker)
        training.updates(tracker, 3, 5, size)
    server.start()
    with training.start() as tracker:  # another kill, at the same checkpoint
        assert isinstance(tracker, MlflowTracker)
        training.updates(tracker, 3, 6, size)


@pytest.mark.parametrize(
    "story",
    [
        away_from_the_start,
        away_at_first_and_once_more,
        away_until_after_the_end,
        both_killed,
    ],
)
def test_a_run_is_complete_whenever_the_server_was_away(server, settings, story) -> None:
    training = Training(settings)
    story(server, training)
    training.end()
    server.start()
    run_id = send_run(settings, training.pointer)
    assert check_complete(settings, training.pointer) == run_id
    store = open_store(settings)
    before = store.client.get_run(run_id).info.end_time
    assert send_run(settings, training.pointer) == run_id
    assert check_complete(settings, training.pointer) == run_id
    assert store.client.get_run(run_id).info.end_time == before  # what is complete is not touched


def test_a_training_that_was_left_is_told_as_killed(tracking) -> None:
    training = Training(tracking)
    tracker = training.start()
    training.updates(tracker, 1, 2)
    run_id = send_run(tracking, training.pointer)
    run = open_store(tracking).client.get_run(run_id)
    assert run.info.status == "KILLED"
    with training.start() as again:
        assert again.run_id == run_id
        assert open_store(tracking).client.get_run(run_id).info.status == "RUNNING"


def test_a_run_that_was_made_and_not_noted_is_found_again(tracking) -> None:
    """The store answered, and the process was killed before it could write the id down."""
    training = Training(tracking)
    with training.start() as first:
        training.updates(first, 1, 1)
    data = json.loads(training.pointer.read_text())
    training.pointer.write_text(json.dumps(data | {"run_id": None}))
    with training.start() as second:
        assert second.run_id == first.run_id
