"""A whole project of tiny size: the real parameters made small, and teachers of random weights."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from params_files import dump_yaml
from repository import ROOT
from tiny_models import awake

from danceflow.data import cache
from danceflow.models.family import family_class
from danceflow.models.package import FROZEN_FOLDER, write_manifest
from danceflow.ops import determinism
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.scenes.prompts import vocabulary
from danceflow.worlds import prepare

SMALL = {
    "run.num_threads": 1,
    "family.transformer.num_layers": 1,
    "family.transformer.num_heads": 2,
    "family.transformer.head_dim": 8,
    "family.text_encoder.num_layers": 1,
    "family.text_encoder.num_heads": 2,
    "family.text_encoder.width": 16,
    "cache.num_samples": 6,
    "cache.num_steps": 2,
    "cache.batch_size": 4,
    "distill.method": "danceopd",
    "distill.init": "merge",
    "distill.capabilities_per_update": "one",
    "distill.num_steps": 4,
    "distill.noised": {},
    "distill.optimizer": "adamw",
    "distill.learning_rate": 0.0015,
    "distill.num_updates": 6,
    "distill.batch_size": 4,
    "distill.warmup": 2,
    "distill.lora_rank": 2,
    "distill.checkpoint_every": 2,
    "distill.log_every": 1,
    "distill.evaluate_every": 100,
    "distill.evaluate_samples": 1,
    "distill.grid_every": 100,
    "evaluate.num_samples": 2,
    "evaluate.num_steps": 2,
    "evaluate.num_teacher_steps": None,
    "evaluate.further_steps": [],
    "evaluate.batch_size": 32,
    "evaluate.num_bootstrap": 20,
    "evaluate.seeds": [0],
    "tracking.enabled": False,
}
SIZES = {"num_train": 12, "num_validation": 12, "num_test": 12}


def small_data(capabilities: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    """The content of a params file: ``params.yaml`` with small sizes and some capabilities."""
    data = override(read_yaml(ROOT / "params.yaml"), SMALL)
    data["data"]["buckets"] = {name: dict(SIZES) for name in capabilities}
    data["capabilities"] = {
        name: data["capabilities"][name]
        | {"weight": 1.0}
        | ({"guidance": 1.0} if data["capabilities"][name]["needs_source"] else {})
        for name in capabilities
    }
    used = [capability["teacher"] for capability in data["capabilities"].values()]
    data["teachers"] = {name: data["teachers"][name] | {"init": "scratch"} for name in used}
    for name, capability in zip(used, capabilities, strict=True):
        data["teachers"][name]["bucket"] = capability
    data["gate"]["min_retention"] = dict.fromkeys(capabilities, 0.9)
    return override(data, {name.replace("__", "."): value for name, value in changes.items()})


def small_params(capabilities: tuple[str, ...] = ("t2i", "local_edit"), **changes: Any) -> Params:
    return parse_params(small_data(capabilities, **changes), "test")


def write_project(root: Path, data: dict[str, Any]) -> Params:
    """Write ``params.yaml``, ``dvc.yaml`` and random teachers, and return the parameters."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    (root / "params.yaml").write_text(dump_yaml(data))
    params = parse_params(data, "test")
    write_teachers(params, Paths(root))
    return params


def cached_project(root: Path, capabilities: tuple[str, ...]) -> Paths:
    """Write a project that only needs its training: data and caches are there."""
    params, paths = write_project(root, small_data(capabilities)), Paths(root)
    prepare.run(params, paths)
    for capability in capabilities:
        cache.run(params, paths, capability)
    shutil.rmtree(paths.scratch)
    return paths


@contextmanager
def as_a_stage_runs(params: Params | None = None) -> Iterator[None]:
    """Torch as a stage sets it up, and as it was afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    determinism.prepare_torch((params or small_params()).run)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


class Blind:
    """An observer that looks at nothing."""

    def observe(self, student: Any, step: int, *, score: bool, draw: bool) -> dict[str, float]:
        return {}


def write_teachers(params: Params, paths: Paths, words: Sequence[str] = ()) -> None:
    """Write teachers of random weights, every one different, and an empty report on them.

    Args:
        params: all sections.
        paths: of the project.
        words: what the text encoder knows beside the words of scenes.
    """
    config = params.family.model_dump(mode="json")
    family = family_class(params.family.name).new(config, sorted({*vocabulary(), *words}), seed=0)
    family.save_frozen(paths.teachers / FROZEN_FOLDER)
    for seed, name in enumerate(params.teachers, start=1):
        family.save_backbone(awake(family, seed), paths.teacher(name))
    write_manifest(
        paths.teachers, {"family": params.family.name, "teachers": list(params.teachers)}
    )
    paths.teachers_images.mkdir(parents=True, exist_ok=True)
    (paths.teachers_images / "none.txt").write_text("these teachers were never trained\n")
    paths.teachers_report.write_text(json.dumps({"teachers": {}}))
