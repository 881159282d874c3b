"""Whether a finished student answers in fewer steps after a last stage with substeps.

    python benchmarks/substeps.py CHECKOUT [--seeds 0 1 2] [--evaluations 25000]

CHECKOUT holds the prepared rows, the caches, the teachers and the student of the embedded default
(`make run` makes them). The student becomes one more teacher there, `finished`, which the trainings
start from, and is replaced. For every seed it is trained on with a rollout of 4 steps, in one arm
plainly and in the other with 4 substeps of the text-to-image teacher, at equal field evaluations,
and scored in few steps. What was trained before is taken up. Writes docs/results/substeps.json
after every training.
"""

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from danceflow.data.buckets import read_bucket
from danceflow.evaluate.asked import finite_images, task_of
from danceflow.evaluate.identity import SPLIT
from danceflow.evaluate.records import STANDARD
from danceflow.evaluate.result import result_of
from danceflow.models.package import load_package, read_manifest, write_manifest
from danceflow.ops.files import write_json
from danceflow.ops.runtime import set_logging_up
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.train.distill import stage

ARMS = {"plain": {}, "t2i 4": {"t2i": 4}}
STEPS = {"t2i": (16, 8, 4, 2), "local_edit": (4, 2), "global_edit": (4, 2)}
START = "finished"
LOG = logging.getLogger(__name__)
OUT = Path(__file__).parents[1] / "docs" / "results" / "substeps.json"


def params_of(paths: Paths, substeps: dict[str, int], seed: int, budget: int) -> Params:
    """Return the parameters of one training."""
    data = read_yaml(paths.params)
    data["teachers"][START] = {**data["teachers"]["base"], "init": "brought"}
    changes = {
        "run.num_threads": 1,
        "distill.seed": seed,
        "distill.init": START,
        "distill.num_steps": 4,
        "distill.substeps": substeps,
        "distill.num_updates": 400,
        "distill.max_field_evaluations": budget,
        "distill.learning_rate": 0.0003,
        "distill.warmup": 40,
        "distill.ema_decay": 0.95,
        "distill.checkpoint_every": 10,
        "distill.evaluate_every": 400,
        "distill.evaluate_samples": 1,
        "distill.grid_every": 400,
        "evaluate.num_steps": 4,
        "evaluate.seeds": [0],
        "tracking.enabled": False,
    }
    return parse_params(override(data, changes), f"{paths.params}, changed")


def take_student(paths: Paths) -> None:
    """Make the finished student a teacher, once."""
    meta = read_manifest(paths.teachers)
    if START in meta["teachers"]:
        return
    shutil.copytree(paths.student / "transformer", paths.teachers / START)
    del meta["files"]
    write_manifest(paths.teachers, {**meta, "teachers": [*meta["teachers"], START]})


def scores_of(params: Params, paths: Paths) -> dict[str, dict[str, float]]:
    """Return the student's mean score by capability and number of steps, on standard rows."""
    package = load_package(paths.student, "cpu")
    found: dict[str, dict[str, float]] = {}
    for name, numbers in STEPS.items():
        dataset = read_bucket(paths.bucket(params.capabilities[name].bucket), SPLIT)
        task = task_of(params, name, dataset, package.family)
        task = task.select(task.where(STANDARD))
        for number in numbers:
            config = params.evaluate.model_copy(update={"num_steps": number})
            images = finite_images(task, package.field, config, "student")
            found.setdefault(name, {})[str(number)] = round(result_of(task, images).score, 4)
    return found


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, default=25_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_logging_up()
    paths = Paths(arguments.checkout.resolve())
    take_student(paths)
    asked = {"evaluations": arguments.evaluations}
    found: dict[str, Any] = {"asked": asked, "trainings": {}}
    if OUT.is_file() and (before := json.loads(OUT.read_text()))["asked"] == asked:
        found = before
    for seed in arguments.seeds:
        for arm, substeps in ARMS.items():
            name = f"{arm}, seed {seed}"
            if name in found["trainings"]:
                continue
            params = params_of(paths, substeps, seed, arguments.evaluations)
            stage.run(params, paths)
            meta = read_manifest(paths.student)
            found["trainings"][name] = {
                "updates": meta["num_updates"],
                "evaluations": sum(meta["field_evaluations"].values()),
                "scores": scores_of(params, paths),
            }
            write_json(OUT, found)
            LOG.info("%s %s", name, found["trainings"][name])


if __name__ == "__main__":
    main()
