import json

import torch

from danceflow.ops.tracking import NoTracker
from danceflow.train.log import Meter, MetricsFile, log_losses
from flows.promote import summary_metrics, training_metrics


class Noted(NoTracker):
    """Keeps what the training logs."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics, step):
        self.metrics |= metrics


def test_a_rebuilt_run_has_the_training_s_own_names(tmp_path):
    meter, tracker = Meter(), Noted()
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for name in ("t2i", "local_edit"):
        meter.add(name, torch.tensor([0.1, 0.9]), torch.tensor([1.0, 3.0]))
    log_losses(meter, file, tracker, 4, {"grad_norm": 2.0})
    rebuilt: dict[str, float] = {}
    for line in file.path.read_text().splitlines():
        row = json.loads(line)
        assert row.pop("step") == 4
        rebuilt |= training_metrics(row)
    assert rebuilt == tracker.metrics
    assert training_metrics({"num_steps": 4, "scores": {"t2i": 0.5}}) == {"validation/t2i": 0.5}


def test_the_summary_s_numbers_are_named_by_capability():
    row = {"student": 1, "retention": None, "retention_interval": [0, 1], "num_samples": 4}
    assert summary_metrics({"capabilities": {"t2i": row}}) == {
        "summary/t2i/student": 1.0,
        "summary/t2i/num_samples": 4.0,
    }
