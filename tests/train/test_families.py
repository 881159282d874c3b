"""A few updates of every family through the stages' own code, with teachers on one base."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import WORDS, shake, stock_pipeline
from tiny_project import small_data
from tiny_stock import flux2_pipeline, qwen_image_pipeline, stock_family, zimage_pipeline

from danceflow.config import dump_yaml, parse_params
from danceflow.data import cache, prepare
from danceflow.data.condition_cache import ConditionCache
from danceflow.models.adapters import add_student_adapter, load_adapter, save_adapter
from danceflow.models.family import FAMILIES
from danceflow.models.package import FROZEN_FOLDER, load_package, write_manifest
from danceflow.ops import runtime
from danceflow.paths import Paths
from danceflow.registry.student import Student
from danceflow.train import distill

CAPABILITIES = ("t2i", "local_edit")
PIPELINES = {
    "flux2": flux2_pipeline,
    "qwen_image": lambda: qwen_image_pipeline(edit=True),
    "sd3": stock_pipeline,
    "zimage": lambda: zimage_pipeline(omni=True),
}


@pytest.fixture(autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def write_shared_teachers(paths: Paths, name: str, folder: Path) -> None:
    """Writes the base of a stock pipeline, and a teacher of edits that is an adapter on it."""
    family = stock_family(name, PIPELINES[name](), folder)
    if name == "sd3":
        family = family.editing()
    backbone = family.load_backbone(folder / "transformer")
    family.save_frozen(paths.teachers / FROZEN_FOLDER)
    family.save_backbone(backbone, paths.teachers / "base")
    shake(add_student_adapter(family, backbone, rank=2, alpha=2, seed=5))
    save_adapter(backbone, paths.teachers / "local")
    write_manifest(paths.teachers, {"family": name, "teachers": ["base", "local"], "base": "base"})


@pytest.mark.parametrize("name", PIPELINES)
def test_a_family_is_distilled_end_to_end(name: str, tmp_path: Path) -> None:
    data = small_data(
        CAPABILITIES,
        family__name=name,
        cache__num_samples=2,
        cache__num_steps=1,
        distill__student="lora",
        distill__lora_rank=4,
        distill__num_steps=3,
        distill__num_updates=2,
        distill__batch_size=4,
        distill__warmup=1,
        distill__capabilities_per_update="all",
        distill__activation_checkpointing=True,
        distill__evaluate_steps=1,
        distill__learning_rate=0.01,
    )
    for bucket in data["data"]["buckets"].values():
        bucket.update(num_train=4, num_validation=6)
    paths = Paths(tmp_path / "project")
    paths.root.mkdir()
    paths.params.write_text(dump_yaml(data))
    params = parse_params(data, "test")
    write_shared_teachers(paths, name, tmp_path / "stock")
    runtime.prepare_torch(params.run)
    prepare.run(params, paths)
    for capability in CAPABILITIES:
        cache.run(params, paths, capability)
    edits = ConditionCache(paths.cache("local_edit")).groups[0].condition(torch.arange(4))
    assert edits.tensors["source"].flatten(1).any(dim=1).all()
    distill.run(params, paths)

    package = load_package(paths.student)
    assert package.family.image_size == (32, 32)
    start = package.family.load_backbone(paths.teachers / "base")
    report = load_adapter(start, paths.student / "adapter", "student")
    assert report.rank == 4
    moved = [
        layer.lora_B["student"].weight.detach().norm()
        for module, layer in start.named_modules()
        if module in report.modules
    ]
    assert min(moved) >= 0 < max(moved)
    student = Student(package)
    [created] = student.generate([WORDS[4]], num_steps=1)
    [edited] = student.edit([Image.new("RGB", (40, 32), "red")], ["remove the circle"], num_steps=1)
    assert created.size == edited.size == (32, 32)


def test_every_family_is_distilled_here() -> None:
    assert PIPELINES.keys() == FAMILIES.keys()
