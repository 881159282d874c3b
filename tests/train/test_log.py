"""The record on disk: means by capability and noise level, and lines that a resume drops."""

import csv
import json
from pathlib import Path

import pytest
import torch

from danceflow.ops.tracking.tracker import NoTracker
from danceflow.train.log import Meter, MetricsFile, bin_name, log_losses, write_curves


class Noted(NoTracker):
    """Keeps the metrics it is given."""

    def __init__(self) -> None:
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step: int) -> None:
        self.metrics.append((step, dict(metrics)))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses_are_averaged_by_capability_and_bin() -> None:
    meter = Meter()
    sigma = torch.tensor([0.0, 0.1, 0.25, 1.0])
    meter.add("t2i", sigma, torch.tensor([1.0, 3.0, 5.0, 7.0]))
    meter.add("t2i", torch.tensor([0.24]), torch.tensor([5.0]))
    meter.add("edit", torch.tensor([0.5]), torch.tensor([0.5], requires_grad=True))
    reading = meter.read()
    assert reading["t2i"] == (
        pytest.approx(21 / 5),
        {"0.00-0.25": 3.0, "0.25-0.50": 5.0, "0.75-1.00": 7.0},
    )
    assert reading["edit"] == (0.5, {"0.50-0.75": 0.5})
    assert meter.read() == {}


def test_bins_have_names() -> None:
    assert [bin_name(i) for i in range(4)] == ["0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00"]


def test_a_meter_goes_on_where_it_was_saved() -> None:
    whole, first, second = Meter(), Meter(), Meter()
    for meter in (whole, first):
        meter.add("t2i", torch.tensor([0.3]), torch.tensor([1.0]))
    state = first.state_dict()
    first.add("t2i", torch.tensor([0.3]), torch.tensor([100.0]))
    second.add("edit", torch.tensor([0.3]), torch.tensor([100.0]))
    second.load_state_dict(state)
    for meter in (whole, second):
        meter.add("t2i", torch.tensor([0.4]), torch.tensor([3.0]))
    assert second.read() == whole.read()


def test_what_was_written_after_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "work" / "metrics.jsonl"
    first = MetricsFile(path, 0)
    first.append({"step": 1})
    size = first.size
    first.append({"step": 2})
    again = MetricsFile(path, size)
    again.append({"step": 2, "again": True})
    assert lines(path) == [{"step": 1}, {"step": 2, "again": True}]
    assert MetricsFile(path, 0).size == 0


def test_a_line_per_capability_and_the_same_to_the_tracker(tmp_path: Path) -> None:
    meter, file, tracker = Meter(), MetricsFile(tmp_path / "metrics.jsonl", 0), Noted()
    meter.add("t2i", torch.tensor([0.3]), torch.tensor([1.0]))
    meter.add("edit", torch.tensor([0.9]), torch.tensor([3.0]))
    assert log_losses(meter, file, tracker, 4, {"grad_norm": 2.0}) == 2.0
    assert lines(file.path) == [
        {
            "step": 4,
            "capability": name,
            "loss": loss,
            "sigma_bins": {sigma_bin: loss},
            "grad_norm": 2.0,
        }
        for name, loss, sigma_bin in (("t2i", 1.0, "0.25-0.50"), ("edit", 3.0, "0.75-1.00"))
    ]
    assert tracker.metrics == [
        (4, {"loss/t2i": 1.0, "loss/t2i/sigma_0.25-0.50": 1.0}),
        (4, {"loss/edit": 3.0, "loss/edit/sigma_0.75-1.00": 3.0}),
        (4, {"train/grad_norm": 2.0}),
    ]


def test_curves_are_a_table_of_the_losses(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.append({"step": 0, "scores": {"t2i": 0.5}})
    file.append({"step": 1, "capability": "t2i", "loss": 0.123456789})
    file.append({"step": 1, "capability": "edit", "loss": 2.0})
    write_curves(file.path, tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(newline="") as table:
        assert list(csv.reader(table)) == [
            ["step", "capability", "loss"],
            ["1", "t2i", "0.123457"],
            ["1", "edit", "2"],
        ]


def test_a_training_without_updates_has_an_empty_table(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.append({"step": 0, "scores": {"t2i": 0.5}})
    write_curves(file.path, tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text() == "step,capability,loss\n"
