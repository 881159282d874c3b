"""What a student loses when the network under its adapter is held in fewer bits.

    python benchmarks/quantised_base.py CHECKOUT [--updates 90] [--seeds 0 1 2]

CHECKOUT holds the prepared rows, the caches and the teachers of the embedded default (`make run`
makes them); its student is replaced. For every seed the same adapter is trained on the base in
float32, int8 and nf4, and scored where it is exported to: on the base in float32. Retention is the
student's mean score on the standard test rows over that of the capability's own teacher. What was
trained before is taken up. Writes docs/results/quantised-base.json after every training.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from danceflow.data.buckets import read_bucket
from danceflow.evaluate.again import open_again, score_again
from danceflow.evaluate.asked import finite_images, task_of
from danceflow.evaluate.identity import SPLIT
from danceflow.evaluate.records import STANDARD
from danceflow.evaluate.result import result_of
from danceflow.models.teachers import Teachers
from danceflow.ops.files import write_json
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.train.distill import stage

BASES = ("float", "int8", "nf4")
OUT = Path(__file__).parents[1] / "docs" / "results" / "quantised-base.json"


def params_of(paths: Paths, base: str, seed: int, updates: int) -> Params:
    """Return the parameters of one training."""
    changes = {
        "run.base": base,
        "run.num_threads": 1,
        "distill.seed": seed,
        "distill.student": "lora",
        "distill.num_updates": updates,
        "distill.num_steps": 4,
        "distill.batch_size": 24,
        "distill.warmup": 10,
        "distill.checkpoint_every": 20,
        "distill.evaluate_every": updates,
        "distill.evaluate_samples": 1,
        "distill.grid_every": updates,
        "evaluate.num_samples": 20,
        "evaluate.seeds": [0],
        "tracking.enabled": False,
    }
    data = override(read_yaml(paths.params), changes)
    return parse_params(data, f"{paths.params}, changed")


def teacher_scores(params: Params, paths: Paths) -> dict[str, float]:
    """Return every capability's score of its own teacher."""
    names = [config.teacher for config in params.capabilities.values()]
    teachers = Teachers(paths.teachers, params.family.name, names, params.run.device)
    found = {}
    for name, config in params.capabilities.items():
        dataset = read_bucket(paths.bucket(config.bucket), SPLIT)
        task = task_of(params, name, dataset, teachers.family)
        task = task.select(task.where(STANDARD))
        field = teachers.field(config.teacher, config.guidance)
        images = finite_images(task, field, params.evaluate, config.teacher)
        found[name] = mean(result_of(task, images).rows)
    return found


def mean(rows: Any) -> float:
    """Return the mean score of rows."""
    return float(sum(row.score for row in rows) / len(rows))


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--updates", type=int, default=90)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = Paths(arguments.checkout.resolve())
    teachers = teacher_scores(params_of(paths, "float", 0, arguments.updates), paths)
    record: dict[str, Any] = {
        "command": f"python benchmarks/quantised_base.py CHECKOUT --updates {arguments.updates}",
        "updates": arguments.updates,
        "teachers": teachers,
        "students": [],
    }
    for seed in arguments.seeds:
        for base in BASES:
            params = params_of(paths, base, seed, arguments.updates)
            stage.run(params, paths)
            place = paths.student
            student = open_again(params, place)
            scores = {
                name: mean(score_again(params, paths, name, place, student).rows)
                for name in params.capabilities
            }
            kept = {name: score / teachers[name] for name, score in scores.items()}
            record["students"].append(
                {"seed": seed, "base": base, "scores": scores, "retention": kept}
            )
            write_json(OUT, record)
            sys.stdout.write(json.dumps(record["students"][-1]) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
