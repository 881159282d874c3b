"""What 1.2 million edit pairs cost on 1, 8 and 64 GPUs, by the cost model: docs/scale-out.md.

Usage: python benchmarks/scale_out.py --out docs/results/scale-out.json

Nothing is measured here: operations are counted, speeds are estimates (docs/scale.md).
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from danceflow.plan.architecture import published_architecture
from danceflow.plan.cost import plan_training
from danceflow.plan.devices import device_of
from danceflow.plan.show import REFERENCE
from danceflow.plan.spread import BETWEEN_BYTES_PER_SECOND, INSIDE_BYTES_PER_SECOND, PER_MACHINE
from danceflow.plan.training import Skill

PAIRS = 1_200_000
PER_GPU = 4
"""Samples of an update on each GPU: the batch grows with the GPUs, the updates shrink."""
SKILLS = (
    Skill("local_edit", 1 / 2, 1, "local", 1, PAIRS // 2),
    Skill("global_edit", 1 / 2, 1, "global", 1, PAIRS // 2),
)
MODELS = ("sd3.5-medium", "flux2-klein-4b", "z-image-omni", "qwen-image-edit")


def plans() -> Iterator[dict[str, Any]]:
    """Yield the cost of one pass over all pairs, LoRA and full weights."""
    for model in MODELS:
        architecture, device = published_architecture(model, edits=True), device_of("h100")
        for rank in (128, None):
            for count in (1, 8, 64):
                training = replace(
                    REFERENCE,
                    skills=SKILLS,
                    teachers=("local", "global"),
                    batch_size=PER_GPU * count,
                    num_updates=PAIRS // (PER_GPU * count),
                    num_processes=count,
                    rank=rank,
                )
                plan = plan_training(training, architecture, device)
                trained = 4 * plan.trained
                yield {
                    "model": model,
                    "student": "lora" if rank else "full",
                    "gpus": count,
                    "num_updates": plan.num_updates,
                    "hours": round(plan.hours, 1),
                    "exchange_share": round(
                        plan.exchange_seconds
                        / (sum(plan.update_seconds.values()) + plan.exchange_seconds),
                        4,
                    ),
                    "device_gb": round(plan.held("device") / 1e9, 1),
                    "main_gb_per_process": round(plan.peak("main") / 1e9, 1),
                    "caches_tb": round(plan.held("disk") / 1e12, 2),
                    "cache_reads_gb_per_s": round(plan.held("disk") / 1e9 / plan.hours / 3600, 4),
                    "checkpoint_gb": round(4 * trained / 1e9, 1),
                }


def main() -> None:
    """Write the plans as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    content = {
        "command": "python benchmarks/scale_out.py --out docs/results/scale-out.json",
        "measured": False,
        "pairs": PAIRS,
        "gpu": "h100",
        "assumed": {
            "samples_per_gpu": PER_GPU,
            "gpus_per_machine": PER_MACHINE,
            "inside_bytes_per_second": INSIDE_BYTES_PER_SECOND,
            "between_bytes_per_second": BETWEEN_BYTES_PER_SECOND,
            "utilisation": device_of("h100").utilisation,
            "call_us": round(1e6 * device_of("h100").call_seconds, 3),
        },
        "plans": list(plans()),
    }
    out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
