"""What an answer in few steps keeps: student and guided teachers, in 16 steps down to 1.

    python benchmarks/few_steps.py CHECKOUT [--steps 16 8 4 3 2 1] [--seeds 0] [--rows 40]

CHECKOUT holds the prepared rows, the teachers and the student (`make run` makes them); nothing is
written there. Every field answers the same prompts with the same noise, standard and reworded ones.
What is kept is the student's mean score over that of the capability's own guided teacher in the
first number of steps. Milliseconds are of processor time on one thread, for one picture, decoded:
the least of some tries. Writes docs/results/few-steps.json after every score, and takes up what is
there.
"""

import argparse
import json
import logging
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
from danceflow.models.package import load_package
from danceflow.models.teachers import Teachers
from danceflow.ops.files import sha256, write_json
from danceflow.ops.runtime import set_logging_up
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import MANIFEST, Paths

LOG = logging.getLogger(__name__)
OUT = Path(__file__).parents[1] / "docs" / "results" / "few-steps.json"
REWORDED = "reworded"
TRIES = 7


def main() -> None:
    """Score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 8, 4, 3, 2, 1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rows", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_logging_up()
    paths = Paths(arguments.checkout.resolve())
    changes = {
        "run.num_threads": 1,
        "evaluate.num_samples": arguments.rows,
        "evaluate.seeds": arguments.seeds,
    }
    params = parse_params(override(read_yaml(paths.params), changes), f"{paths.params}, changed")
    asked = {"student": sha256(paths.student / MANIFEST), "rows": arguments.rows}
    asked["seeds"] = arguments.seeds
    found = read_record(OUT, asked)
    names = [config.teacher for config in params.capabilities.values()]
    teachers = Teachers(paths.teachers, params.family.name, names, "cpu")
    package = load_package(paths.student, "cpu", teachers)
    for name, config in params.capabilities.items():
        dataset = read_bucket(paths.bucket(config.bucket), SPLIT)
        task = task_of(params, name, dataset, package.family)
        task = task.select(task.where(STANDARD, REWORDED))
        fields = {
            "student": package.family.guided(package.field, params.evaluate.guidance),
            "teacher": teachers.field(config.teacher, config.guidance),
        }
        scores = found["capabilities"].setdefault(name, {})
        for steps in arguments.steps:
            for who, field in fields.items():
                if str(steps) in scores.setdefault(who, {}):
                    continue
                scores[who][str(steps)] = scored(params, task, field, who, steps)
                write_json(OUT, found)
                LOG.info("%s %s %s %s", name, who, steps, scores[who][str(steps)])
    write_json(OUT, found)


def read_record(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured before with the same student and rows."""
    if path.is_file() and (found := json.loads(path.read_text()))["asked"] == asked:
        return dict(found)
    return {"asked": asked, "capabilities": {}}


def scored(params: Params, task: Task, field: GuidedField, who: str, steps: int) -> dict[str, Any]:
    """Return a field's mean scores in a number of steps, and what an answer takes."""
    config = params.evaluate.model_copy(update={"num_steps": steps})
    result = result_of(task, finite_images(task, field, config, who))
    one = task.select([0]).parts[0]
    grid, condition = one.family.grid(steps), one.condition
    milliseconds = least(lambda: one.family.decode(sample(field, one.noise[:1], condition, grid)))
    return {
        "standard": round(result.score, 4),
        "reworded": round(result.variants[REWORDED], 4),
        "passes": steps * field.cost,
        "cpu_ms": round(milliseconds, 2),
    }


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
