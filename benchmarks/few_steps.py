"""What an answer in few steps keeps, of students that were made for it and of one that was not.

    python benchmarks/few_steps.py CHECKOUT WORK [--seeds 0 1 2] [--arms plain shifted stepped]

CHECKOUT holds the prepared rows, the caches and the teachers of the embedded default (`make run`
makes them); its student is replaced. For every seed and arm a student is trained with the default's
field evaluations, and kept below WORK; one that lies there is taken up. Every field then answers
the same test prompts with the same noise, standard and reworded ones, in 16 steps down to 1. An
answer's grid is the student's own; the plain students and the teachers answer on the shifted one as
well. Milliseconds are of processor time on one thread, for one picture, decoded: the least of some
tries. Writes docs/results/few-steps.json after every score, and takes up what is there.
"""

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from danceflow.data.buckets import read_bucket
from danceflow.evaluate.asked import finite_images, task_of
from danceflow.evaluate.identity import SPLIT
from danceflow.evaluate.records import STANDARD
from danceflow.evaluate.result import result_of
from danceflow.evaluate.task import Task
from danceflow.fields import GuidedField, sample
from danceflow.models.family import ModelFamily
from danceflow.models.package import load_package
from danceflow.models.teachers import Teachers
from danceflow.ops.files import atomic_directory, sha256, write_json
from danceflow.ops.runtime import set_logging_up
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import MANIFEST, Paths
from danceflow.train.distill import stage

LOG = logging.getLogger(__name__)
OUT = Path(__file__).parents[1] / "docs" / "results" / "few-steps.json"
EVALUATIONS = 343_300
SHIFT = 2.0
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shifted": {"distill.shift": SHIFT},
    "stepped": {
        "distill.shift": SHIFT,
        "distill.substeps": {"t2i": 4},
        "distill.substeps_from": 0.6,
        "distill.max_field_evaluations": EVALUATIONS,
    },
}
STEPS = (16, 8, 4, 3, 2, 1)
REWORDED = "reworded"
TRIES = 7


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=list(ARMS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_logging_up()
    paths = Paths(arguments.checkout.resolve())
    params = params_of(paths, {})
    names = [config.teacher for config in params.capabilities.values()]
    teachers = Teachers(paths.teachers, params.family.name, names, "cpu")
    found = json.loads(OUT.read_text()) if OUT.is_file() else {"of": {}, "scores": {}, "cpu_ms": {}}
    fields = {
        name: teachers.field(config.teacher, config.guidance)
        for name, config in params.capabilities.items()
    }
    for label, family in on_grids("teacher", teachers.family).items():
        keep_of(label, paths.teachers, found)
        answer(params, paths, family, fields, label, found)
    for arm in arguments.arms:
        for seed in arguments.seeds:
            place = arguments.work / f"{arm}-{seed}"
            if not place.is_dir():
                stage.run(params_of(paths, ARMS[arm] | {"distill.seed": seed}), paths)
                with atomic_directory(place) as folder:
                    shutil.copytree(paths.student, folder, dirs_exist_ok=True)
            package = load_package(place, "cpu")
            student = package.family.guided(package.field, params.evaluate.guidance)
            label = f"{arm}, seed {seed}"
            grids = on_grids(label, package.family) if arm == "plain" else {label: package.family}
            for told, family in grids.items():
                keep_of(told, place, found)
                answer(params, paths, family, dict.fromkeys(fields, student), told, found)


def params_of(paths: Paths, changes: dict[str, Any]) -> Params:
    """Return the checkout's parameters, changed; three noise seeds would cost three times."""
    always = {"run.num_threads": 1, "evaluate.seeds": [0], "tracking.enabled": False}
    data = override(read_yaml(paths.params), always | changes)
    return parse_params(data, f"{paths.params}, changed")


def keep_of(label: str, model: Path, found: dict[str, Any]) -> None:
    """Forget what is known of a label if it is of another model."""
    if found["of"].get(label) != (digest := sha256(model / MANIFEST)):
        found["scores"].pop(label, None)
        found["of"][label] = digest


def on_grids(label: str, family: ModelFamily) -> dict[str, ModelFamily]:
    """Return a family with its own grid and with the shifted one."""
    return {label: family, f"{label}, answers shifted": family.shifted(SHIFT)}


def answer(
    params: Params,
    paths: Paths,
    family: ModelFamily,
    fields: dict[str, GuidedField],
    label: str,
    found: dict[str, Any],
) -> None:
    """Score every capability's field in all numbers of steps, and write what is found."""
    scores = found["scores"].setdefault(label, {})
    for name, config in params.capabilities.items():
        dataset = read_bucket(paths.bucket(config.bucket), SPLIT)
        task = task_of(params, name, dataset, family)
        task = task.select(task.where(STANDARD, REWORDED))
        for steps in STEPS:
            if str(steps) in scores.setdefault(name, {}):
                continue
            field = fields[name]
            settings = params.evaluate.model_copy(update={"num_steps": steps})
            result = result_of(task, finite_images(task, field, settings, label))
            scores[name][str(steps)] = {
                "standard": round(result.score, 4),
                "reworded": round(result.variants[REWORDED], 4),
                "passes": steps * field.cost,
            }
            who = label.split(",", maxsplit=1)[0]
            took = found["cpu_ms"].setdefault(who, {}).setdefault(name, {})
            if str(steps) not in took:
                took[str(steps)] = round(milliseconds(task, field, steps), 2)
            write_json(OUT, found)
            LOG.info("%s, %s in %d: %s", label, name, steps, scores[name][str(steps)])


def milliseconds(task: Task, field: GuidedField, steps: int) -> float:
    """Return what an answer takes."""
    one = task.select([0]).parts[0]
    grid, condition = one.family.grid(steps), one.condition
    return least(lambda: one.family.decode(sample(field, one.noise[:1], condition, grid)))


def least(act: Callable[[], object]) -> float:
    """Return the least processor milliseconds of an act."""
    times = []
    for _ in range(TRIES):
        began = time.thread_time()
        act()
        times.append(1e3 * (time.thread_time() - began))
    return min(times)


if __name__ == "__main__":
    main()
