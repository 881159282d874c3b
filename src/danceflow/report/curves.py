"""The training's record, read back: losses by capability and sigma bin, scores over updates."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from danceflow.errors import DataError

Curve = list[tuple[float, float]]


@dataclass
class Curves:
    """What ``metrics.jsonl`` tells.

    Attributes:
        losses: by capability, (update, loss).
        bin_losses: by capability and sigma bin, (update, loss).
        scores: by capability, (update, validation score).
        seconds: how long the training took, ``None`` where nothing was trained.
        field_evaluations: how many it had made by then, ``None`` where it does not tell.
        num_processes: that made them at the same time.
    """

    losses: dict[str, Curve] = field(default_factory=dict)
    bin_losses: dict[str, dict[str, Curve]] = field(default_factory=dict)
    scores: dict[str, Curve] = field(default_factory=dict)
    seconds: float | None = None
    field_evaluations: int | None = None
    num_processes: int = 1


def read_curves(path: Path) -> Curves:
    """Return the record of a training.

    Args:
        path: JSON lines: ``{"step", "capability", "loss", "sigma_bins", "seconds", ...}`` for
            losses and ``{"step", "num_steps", "scores": {capability: score}}`` for validations.

    Raises:
        DataError: the file is missing, or a line is not what it should be.
    """
    again = "run the stage: dvc repro distill"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {again}") from error
    curves = Curves()
    for number, line in enumerate(lines, start=1):
        try:
            _add(curves, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: line {number} is no record of a training ({error!r}); {again}"
            ) from error
    for by_bin in curves.bin_losses.values():
        ordered = dict(sorted(by_bin.items()))
        by_bin.clear()
        by_bin.update(ordered)
    return curves


def _add(curves: Curves, row: Mapping[str, object]) -> None:
    step = float(str(row["step"]))
    scores = row.get("scores")
    if isinstance(scores, dict):
        for capability, score in scores.items():
            curves.scores.setdefault(capability, []).append((step, float(score)))
        return
    capability = str(row["capability"])
    curves.losses.setdefault(capability, []).append((step, float(str(row["loss"]))))
    bins = row.get("sigma_bins", {})
    if not isinstance(bins, dict):
        raise TypeError("sigma_bins is no object")
    for name, loss in bins.items():
        by_bin = curves.bin_losses.setdefault(capability, {})
        by_bin.setdefault(name, []).append((step, float(loss)))
    if "seconds" in row:
        curves.seconds = float(str(row["seconds"]))
    if "field_evaluations" in row:
        curves.field_evaluations = int(str(row["field_evaluations"]))
    if "num_processes" in row:
        curves.num_processes = int(str(row["num_processes"]))
