"""What further LoRA teachers on one base cost: 1, 10 and 50 of them, as ratios to the first.

    python benchmarks/teachers.py [--updates 12] [--repeats 1] [--out docs/results/teachers.json]

A small SD3 of random weights stands for the base. Every teacher is a LoRA of its own, with a
capability of its own, and every update draws one of them (`capabilities_per_update: one`): so an
update has as many samples, whatever the number of teachers is. Each case runs in a process of its
own, in turn, several times; the least time counts, for other programs may use the processor.

Measured per case: bytes of all tensors of the network, the adapters' among them; the peak of the
process's own resident memory (`RssAnon`) less what it held before it loaded anything; and seconds
per update of the product's trainer.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from random_model import (
    open_trainer,
    resident_bytes,
    tensor_bytes,
    timed_update,
    write_cache,
    write_teachers,
)

from danceflow.ops import determinism
from danceflow.ops.files import write_json
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.plan.architecture import Architecture

ROOT = Path(__file__).resolve().parents[1]
CASES = (1, 10, 50)
RANK, SIDE, NUM_ROWS = 4, 64, 16
SMALL = Architecture(
    name="small",
    origin="this benchmark",
    family="sd3",
    edits=False,
    transformer={
        "sample_size": SIDE // 8,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 6,
        "attention_head_dim": 64,
        "num_attention_heads": 6,
        "joint_attention_dim": 256,
        "caption_projection_dim": 384,
        "pooled_projection_dim": 128,
        "pos_embed_max_size": 16,
        "qk_norm": "rms_norm",
    },
    factor=8,
    prompt_tokens=32,
    is_padded=True,
    frozen={},
    is_brought=True,
    is_verified=True,
)


def params_of(num_teachers: int) -> Params:
    """Return the parameters of a training with so many LoRA teachers, each a capability's."""
    data = read_yaml(ROOT / "recipes" / "sd35_lora.yaml")
    names = [f"look_{number:02d}" for number in range(num_teachers)]
    first, teacher = data["capabilities"]["photo"], data["teachers"]["photo"]
    bucket = data["data"]["buckets"]["photo"]
    data["data"]["buckets"] = dict.fromkeys(names, bucket)
    data["data"]["input"]["tasks"] = {name: [name] for name in names}
    data["capabilities"] = {name: first | {"bucket": name, "teacher": name} for name in names}
    data["teachers"] = {"base": data["teachers"]["base"] | {"bucket": names[0]}} | {
        name: teacher | {"bucket": name, "adapter_rank": RANK} for name in names
    }
    data["gate"]["min_retention"] = dict.fromkeys(names, 0.9)
    changes = {
        "run.device": "cpu",
        "run.dtype": "float32",
        "run.num_threads": 1,
        "data.image_size": SIDE,
        "cache.dtype": "float32",
        "distill.capabilities_per_update": "one",
        "distill.init": "base",
        "distill.lora_rank": RANK,
        "distill.num_steps": 8,
        "distill.batch_size": 4,
        "tracking.enabled": False,
    }
    return parse_params(override(data, changes), "the benchmark's parameters")


def measure(num_teachers: int, num_updates: int, root: Path) -> dict[str, Any]:
    """Return what a training with so many of the teachers in ``root`` holds and takes."""
    params = params_of(num_teachers)
    determinism.prepare_torch(params.run)
    work = root / f"work-{os.getpid()}"
    work.mkdir()
    before = resident_bytes()
    caches = dict.fromkeys(params.capabilities, root / "cache" / "look_00")
    trainer = open_trainer(params, root / "teachers", caches, work)
    timed_update(trainer)  # the first one makes the optimiser's states
    updates = [timed_update(trainer) for _ in range(num_updates)]
    tensors = trainer.backbone.state_dict()
    adapters = [value for name, value in tensors.items() if ".look_" in name]
    evaluations = [sum(update.evaluations.values()) for update in updates]
    pairs = zip(updates, evaluations, strict=True)
    return {
        "teachers": num_teachers,
        "tensor_bytes": tensor_bytes(tensors.values()),
        "adapter_bytes": tensor_bytes(adapters),
        "resident_bytes": resident_bytes() - before,
        "evaluations_per_update": statistics.mean(evaluations),
        "seconds_per_evaluation": statistics.median(u.processor_seconds / n for u, n in pairs),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per number of teachers: the least of its runs, and ratios to the first one."""
    evaluations = statistics.mean(run["evaluations_per_update"] for run in runs)
    rows: list[dict[str, Any]] = []
    for number in dict.fromkeys(run["teachers"] for run in runs):
        own = [run for run in runs if run["teachers"] == number]
        adapters = own[0]["adapter_bytes"]
        rows.append(
            {
                "teachers": number,
                "adapter_bytes": adapters,
                "other_tensor_bytes": own[0]["tensor_bytes"] - adapters,
                "other_resident_bytes": min(run["resident_bytes"] for run in own) - adapters,
                "seconds_per_update": evaluations
                * min(run["seconds_per_evaluation"] for run in own),
            }
        )
    for row in rows:
        for name in ("other_tensor_bytes", "other_resident_bytes", "seconds_per_update"):
            row[f"{name}_ratio"] = round(row[name] / rows[0][name], 3)
    return rows


def main() -> None:
    """Measure every case in processes of their own, write the record and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "teachers.json")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        found = measure(int(arguments.only[0]), arguments.updates, Path(arguments.only[1]))
        sys.stdout.write(json.dumps(found) + "\n")
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        root, params = Path(folder), params_of(max(CASES))
        adapters = dict.fromkeys(params.capabilities, RANK)
        write_teachers(root / "teachers", SMALL, adapters, SIDE, "cpu")
        write_cache(root / "cache" / "look_00", SMALL, SIDE, NUM_ROWS, params)
        for number in CASES * arguments.repeats:
            command = [sys.executable, __file__, "--updates", str(arguments.updates)]
            done = subprocess.run(
                [*command, "--only", str(number), folder],
                stdout=subprocess.PIPE,
                check=True,
            )
            runs.append(json.loads(done.stdout))
    rows = summary(runs)
    record = {
        "command": f"python benchmarks/teachers.py --updates {arguments.updates} "
        f"--repeats {arguments.repeats}",
        "torch": torch.__version__,
        "rank": RANK,
        "rows": rows,
        "runs": runs,
    }
    write_json(arguments.out, record)
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
