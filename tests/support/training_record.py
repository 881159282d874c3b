"""A training's record as the stage ``distill`` leaves it."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CAPABILITIES = ("t2i", "local_edit", "global_edit")
CLOCKS = ("seconds", "images_per_second", "row_wait_share", "num_processes")


def write_metrics(path: Path, capabilities=CAPABILITIES, num_updates: int = 60) -> None:
    rng = random.Random(0)
    rows: list[Mapping[str, Any]] = []
    for step in range(0, num_updates + 1, 10):
        if step % 20 == 0:
            scores = dict.fromkeys(capabilities, 0.1 + step / 200)
            rows.append({"step": step, "scores": scores})
        if step:
            loss = 1 / step
            rows.append(
                {
                    "step": step,
                    "capability": rng.choice(capabilities),
                    "loss": loss,
                    "sigma_bins": {"0.00-0.25": loss / 2, "0.75-1.00": 2 * loss},
                    "grad_norm": 1.0,
                    "learning_rate": 1e-3,
                    "images_per_second": 50.0,
                    "row_wait_share": 0.0,
                    "seconds": step / 10,
                }
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the record without its clocks, and how many processes there were."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: v for name, v in line.items() if name not in CLOCKS} for line in lines]
