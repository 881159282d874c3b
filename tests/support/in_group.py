"""What tests let two processes compute together, and one alone: the same jobs, to be compared.

``python -m in_group FOLDER`` is what ``danceflow.ops.launch`` starts; ``jobs.json`` in the folder
says what is to be done, and ``found.json`` what came of it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tiny_project import Blind, small_params

from danceflow.data import cache
from danceflow.data.buckets import VALIDATION, read_bucket
from danceflow.data.cached_rows import ConditionCache
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.quick import quick_batch
from danceflow.method import method_of
from danceflow.models.teachers import Teachers
from danceflow.ops import group
from danceflow.ops.tracking.tracker import NoTracker
from danceflow.paths import Paths
from danceflow.train.distill import sharding
from danceflow.train.distill.trainer import Trainer
from danceflow.train.teachers.finetune import finetune
from danceflow.train.teachers.stream import PoolStream
from danceflow.worlds.world import open_world

CAPABILITIES = ("t2i", "local_edit")
FOUND, JOBS = "found.json", "jobs.json"


def run_jobs(folder: Path, project: Path) -> None:
    """Do what ``jobs.json`` of the folder says, with this process's group."""
    jobs = json.loads((folder / JOBS).read_text())
    teachers = Teachers(Paths(project).teachers, "sd3", ["base", "local"], "cpu")
    found: dict[str, Any] = {"size": group.current().size}
    for capability in jobs.get("caches", ()):
        cache.run(small_params(CAPABILITIES, cache__batch_size=2), Paths(folder), capability)
    for name, changes in jobs.get("trainings", {}).items():
        found[name] = trained(Paths(project), teachers, folder / name, changes)
    for name, changes in jobs.get("sharded", {}).items():
        with every_student_sharded():
            found[name] = trained(Paths(project), teachers, folder / name, changes)
    if group.current().size > 1 and "begun" in jobs:
        with every_student_sharded(), suppress(KeyboardInterrupt):
            trainer_of(Paths(project), teachers, folder / "begun", jobs["begun"], Stopping).train()
    if "finetune" in jobs:
        found["finetune"] = finetuned(Paths(project), folder / "finetune", jobs["finetune"])
    if "evaluate" in jobs:
        params = small_params(CAPABILITIES, evaluate__further_steps=[1])
        evaluate.run(params, Paths(folder), jobs["evaluate"])
    if "pictures" in jobs:
        found["pictures"] = pictures(Paths(project), teachers)
    if group.current().is_main:
        (folder / FOUND).write_text(json.dumps(found))


@contextmanager
def every_student_sharded() -> Iterator[None]:
    """However small it is, in more than one process."""
    before, sharding.SHARDED_FROM = sharding.SHARDED_FROM, 0
    yield
    sharding.SHARDED_FROM = before


class Stopping(Trainer):
    """Stops before its fifth update, as a power cut would."""

    def _update(self, progress: float) -> float:
        if self.step == 4:
            raise KeyboardInterrupt
        return super()._update(progress)


def trainer_of(
    paths: Paths, teachers: Teachers, work: Path, changes: dict[str, Any], kind: type = Trainer
) -> Trainer:
    params = small_params(CAPABILITIES, **{f"distill__{k}": v for k, v in changes.items()})
    caches = {name: ConditionCache(paths.cache(name)) for name in CAPABILITIES}
    work.mkdir(parents=True, exist_ok=True)
    method = method_of(params.distill)
    return kind(params, method, teachers, caches, work, NoTracker(), Blind())


def trained(
    paths: Paths, teachers: Teachers, work: Path, changes: dict[str, Any]
) -> dict[str, Any]:
    """The losses by capability, the gradient norms and the costs, update by update."""
    trainer = trainer_of(paths, teachers, work, changes)
    trainer.train()
    if not group.current().is_main:
        return {}
    weights = trainer.backbone.state_dict().items()
    numbers: dict[str, Any] = {f"at the end {n}": float(w.double().norm()) for n, w in weights}
    for line in (work / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        at = f"{row['step']:04d}"
        numbers[f"{at} {row['capability']}"] = row["loss"]
        numbers[f"{at} norm"] = row["grad_norm"]
        numbers[f"{at} evaluations"] = row["field_evaluations"]
    return numbers


def finetuned(paths: Paths, work: Path, changes: dict[str, Any]) -> list[float]:
    """The losses of a teacher's training."""
    params = small_params(CAPABILITIES)
    family = Teachers(paths.teachers, "sd3", ["base"], "cpu").family
    dataset = read_bucket(paths.bucket("t2i"), "train")
    pool = open_world("scenes").pool(dataset, "t2i", 40, 0, {})
    config = params.teachers["base"].model_copy(update=changes)
    backbone = family.new_backbone(0).requires_grad_(True)
    work.mkdir(parents=True, exist_ok=True)
    finetune(family, backbone, PoolStream(family, pool, 0), config, seed=0, work=work)
    if not group.current().is_main:
        return []
    [row] = [json.loads(line) for line in (work / "curve.jsonl").read_text().splitlines()]
    return [row["loss"], *(float(p.detach().norm()) for p in backbone.parameters())]


def pictures(paths: Paths, teachers: Teachers) -> list[float]:
    """Every pixel of pictures, in the order of the rows."""
    rows = read_bucket(paths.bucket("local_edit"), VALIDATION)
    batch = quick_batch(rows, open_world("scenes"), teachers.family, 1, seed=0)
    images = batch.sample(teachers.field("local", 1.0), 2, 2)
    return torch.cat([image.flatten() for image in images]).tolist() if images else []


if __name__ == "__main__":
    with group.joined(small_params().run):
        run_jobs(Path(sys.argv[1]), Path(sys.argv[2]))
