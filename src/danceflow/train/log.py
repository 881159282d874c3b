"""The training's own record: ``metrics.jsonl`` on disk first, the tracker second."""

import csv
import io
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danceflow.ops.files import append_text, write_text
from danceflow.ops.group import Group
from danceflow.ops.tracking import Tracker

NUM_SIGMA_BINS = 4


def bin_name(index: int) -> str:
    """Return the name of a sigma bin, such as ``0.25-0.50``."""
    return f"{index / NUM_SIGMA_BINS:.2f}-{(index + 1) / NUM_SIGMA_BINS:.2f}"


class Meter:
    """Means of per-row losses by capability and sigma bin, since the last reading."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, NUM_SIGMA_BINS))

    def add(self, capability: str, sigma_M: Tensor, rows_M: Tensor) -> None:
        """Count the losses ``rows_M`` of states at ``sigma_M``."""
        bins = (sigma_M.cpu() * NUM_SIGMA_BINS).long().clamp(0, NUM_SIGMA_BINS - 1)
        sums = self._sums[capability]
        sums[0].index_add_(0, bins, rows_M.detach().cpu().float())
        sums[1].index_add_(0, bins, torch.ones(len(bins)))

    def read(self) -> dict[str, tuple[float, dict[str, float]]]:
        """Return (mean loss, mean loss by bin) of every capability seen, and start anew."""
        result = {}
        for name, (total, count) in self._sums.items():
            by_bin = {
                bin_name(i): float(total[i] / count[i])
                for i in range(NUM_SIGMA_BINS)
                if count[i] > 0
            }
            result[name] = (float(total.sum() / count.sum()), by_bin)
        self._sums.clear()
        return result

    def collect(self, group: Group) -> None:
        """Move what other processes have counted to the main one's meter."""
        if group.size == 1:
            return
        for counted in group.gathered(dict(self._sums))[1:]:
            for name, sums in counted.items():
                self._sums[name] += sums
        if not group.is_main:
            self._sums.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what was counted since the last reading."""
        return {name: sums.clone() for name, sums in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state`` was taken."""
        self._sums.clear()
        self._sums.update(state)


class MetricsFile:
    """Appends JSON lines; a resumed run first drops what was written after its checkpoint."""

    def __init__(self, path: Path, size: int) -> None:
        """Open ``path`` for appending after its first ``size`` bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Write one line."""
        append_text(self.path, json.dumps(row) + "\n")

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size


def log_losses(
    meter: Meter, file: MetricsFile, tracker: Tracker, step: int, common: dict[str, float]
) -> float:
    """Write the meter's reading as a line per capability and return the mean loss of all."""
    reading = meter.read()
    for capability, (loss, by_bin) in reading.items():
        row = {"step": step, "capability": capability, "loss": loss, "sigma_bins": by_bin, **common}
        file.append(row)
        tracker.log_metrics(
            {f"loss/{capability}": loss}
            | {f"loss/{capability}/sigma_{name}": value for name, value in by_bin.items()},
            step,
        )
    tracker.log_metrics({f"train/{name}": value for name, value in common.items()}, step)
    return sum(loss for loss, _ in reading.values()) / max(1, len(reading))


def write_curves(metrics: Path, curves: Path) -> None:
    """Write the losses of ``metrics.jsonl`` as a table with step, capability and loss."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["step", "capability", "loss"])
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        if "loss" in row:
            writer.writerow([row["step"], row["capability"], f"{row['loss']:.6g}"])
    write_text(curves, buffer.getvalue())
