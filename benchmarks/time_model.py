"""The three constants of the plan's time on a GPU, fitted on what a GPU took.

    python benchmarks/time_model.py [--measured docs/results/gpu.json] [--out FILE]

Nothing is measured here. The plan says of every row of the record how long its arithmetic takes at
the vendor's peaks, how many modules an update calls, and how many of them have fewer bits. Seconds
are taken as a sum of the three, each times a constant: the least squares of the relative errors.
FILE holds the constants, and each row as planned by `danceflow plan`'s own constants. Beside that
stands each row as planned by constants that are fitted on all the other rows.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu
import numpy as np

from danceflow.ops.files import write_json
from danceflow.plan.cost import plan_training
from danceflow.plan.devices import device_of
from danceflow.plan.training import training_of

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "time-model.json"


def seconds_by(row: Mapping[str, Any], constants: Sequence[float] | None) -> float:
    """Return the planned seconds of a row's updates.

    Args:
        row: of the record.
        constants: see ``gpu.with_constants``; ``None``: those of ``danceflow plan``.
    """
    model, size, variant = row["name"].split()
    place = gpu.Row(model, variant, int(size))
    params = gpu.recipe(place, "cuda", small=False)
    network = gpu.architecture(place, params, small=False)
    device = device_of(row["planned_on"])
    if constants is not None:
        device = gpu.with_constants(device, constants)
    plan = plan_training(training_of(params, is_brought=True), network, device)
    return gpu.planned_seconds(plan, row["evaluations_per_update"])


def fitted(parts: Sequence[Sequence[float]], measured: Sequence[float]) -> list[float]:
    """Return the constants whose planned seconds have the least squared relative errors.

    Args:
        parts: of each row, what each constant is taken times.
        measured: seconds of each row.
    """
    shares = np.array(parts) / np.array(measured)[:, None]
    found: list[float] = np.linalg.lstsq(shares, np.ones(len(measured)), rcond=None)[0].tolist()
    return found


def main() -> None:
    """Fit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measured", type=Path, default=gpu.OUT)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    record = json.loads(arguments.measured.read_text())
    write_json(arguments.out, compared(record))


def compared(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``docs/results/time-model.json`` holds, and print a line of each row."""
    rows = [
        row for row in record["rows"] if row["status"] == "done" and row["name"] != gpu.EMBEDDED
    ]
    measured = [row["seconds_per_update"]["measured"] for row in rows]
    parts = [[seconds_by(row, unit) for unit in np.eye(3).tolist()] for row in rows]
    arithmetic, call, quantised = fitted(parts, measured)
    told = []
    for place, row in enumerate(rows):
        others = [i for i in range(len(rows)) if i != place]
        rest = fitted([parts[i] for i in others], [measured[i] for i in others])
        planned = seconds_by(row, None)
        left_out = float(np.dot(parts[place], rest))
        told.append(
            {
                "name": row["name"],
                "measured": measured[place],
                "planned": planned,
                "planned_of_measured": round(planned / measured[place], 3),
                "of_others_of_measured": round(left_out / measured[place], 3),
                "of_40_percent_of_measured": round(1 / row["seconds_per_update"]["ratio"], 3),
            }
        )
        sys.stdout.write(json.dumps(told[-1]) + "\n")
    return {
        "command": "python benchmarks/time_model.py",
        "measured_on": record["device"],
        "fitted": {
            "utilisation": 1 / arithmetic,
            "call_us": 1e6 * call,
            "quantised_call_us": 1e6 * quantised,
        },
        "rows": told,
    }


if __name__ == "__main__":
    main()
