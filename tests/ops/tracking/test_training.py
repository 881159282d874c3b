import json

import torch

from danceflow.ops.tracking import NoTracker, training_metrics
from danceflow.train.log import Meter, MetricsFile, log_losses


class Noted(NoTracker):
    """Keeps what the training logs."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics, step):
        self.metrics |= metrics


def test_what_is_sent_later_has_the_training_s_own_names(tmp_path):
    meter, tracker = Meter(), Noted()
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for name in ("t2i", "local_edit"):
        meter.add(name, torch.tensor([0.1, 0.9]), torch.tensor([1.0, 3.0]))
    log_losses(meter, file, tracker, 4, {"grad_norm": 2.0})
    sent: dict[str, float] = {}
    for line in file.path.read_text().splitlines():
        row = json.loads(line)
        assert row.pop("step") == 4
        sent |= training_metrics(row)
    assert sent == tracker.metrics
    assert training_metrics({"num_steps": 4, "scores": {"t2i": 0.5}}) == {"validation/t2i": 0.5}
