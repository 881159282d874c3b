"""A few updates of every family through the stages' own code, with teachers on one base."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from params_files import dump_yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_models import WORDS, shake, stock_pipeline
from tiny_project import small_data
from tiny_stock import (
    flux2_pipeline,
    qwen_image21_pipeline,
    qwen_image_pipeline,
    stock_family,
    zimage_pipeline,
)

from danceflow.data import cache
from danceflow.data.cached_rows import ConditionCache
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.records import read_evaluation
from danceflow.models.adapters.lora import add_student_adapter, load_adapter, save_adapter
from danceflow.models.family import FAMILIES
from danceflow.models.package import (
    FROZEN_FOLDER,
    Package,
    load_package,
    read_manifest,
    write_manifest,
)
from danceflow.models.teachers import Teachers
from danceflow.ops import determinism
from danceflow.params.read import parse_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.student import Student
from danceflow.train.distill import stage as distill
from danceflow.worlds import prepare

BOTH = ("t2i", "local_edit")


@dataclass(frozen=True)
class Case:
    """A stock pipeline whose folder a family opens, and what its student learns."""

    family: str
    build: Callable[[], Any]
    capabilities: tuple[str, ...] = BOTH


CASES = {
    "flux2": Case("flux2", flux2_pipeline),
    "qwen_image": Case("qwen_image", qwen_image_pipeline, ("t2i",)),
    "qwen_image_edit": Case("qwen_image", lambda: qwen_image_pipeline(edit=True)),
    "qwen_image21": Case("qwen_image21", qwen_image21_pipeline),
    "sd3": Case("sd3", stock_pipeline),
    "zimage": Case("zimage", zimage_pipeline, ("t2i",)),
    "zimage_omni": Case("zimage", lambda: zimage_pipeline(omni=True)),
}


@pytest.fixture(autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def write_shared_teachers(paths: Paths, case: Case, folder: Path) -> None:
    """Write the base of a stock pipeline, and a teacher that is an adapter on it."""
    family = stock_family(case.family, case.build(), folder)
    if case.family == "sd3":
        family = family.editing()
    backbone = family.load_backbone(folder / "transformer")
    family.save_frozen(paths.teachers / FROZEN_FOLDER)
    family.save_backbone(backbone, paths.teachers / "base")
    shake(add_student_adapter(family, backbone, rank=2, alpha=2, seed=5))
    save_adapter(backbone, paths.teachers / "local")
    names = {"family": case.family, "teachers": ["base", "local"], "base": "base"}
    write_manifest(paths.teachers, names)


def distilled(case: Case, folder: Path, **changes: Any) -> tuple[Params, Paths]:
    """Everything up to a student of two updates; where nothing is edited, of the adapter alone."""
    data = small_data(
        case.capabilities,
        family__name=case.family,
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
        distill__learning_rate=0.01,
        **changes,
    )
    for bucket in data["data"]["buckets"].values():
        bucket.update(num_train=4, num_validation=6)
    if case.capabilities == ("t2i",):
        data["teachers"]["local"] = data["teachers"]["base"]
        data["capabilities"]["t2i"]["teacher"] = "local"
        data["distill"]["init"] = "base"
    paths = Paths(folder / "project")
    paths.root.mkdir()
    paths.params.write_text(dump_yaml(data))
    params = parse_params(data, "test")
    write_shared_teachers(paths, case, folder / "stock")
    determinism.prepare_torch(params.run)
    prepare.run(params, paths)
    for capability in case.capabilities:
        cache.run(params, paths, capability)
    distill.run(params, paths)
    return params, paths


@pytest.mark.parametrize("name", CASES)
def test_a_family_is_distilled_end_to_end(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    _, paths = distilled(case, tmp_path)
    edits = "local_edit" in case.capabilities
    if edits:
        cached = ConditionCache(paths.cache("local_edit")).groups[0].condition(torch.arange(4))
        assert cached.tensors["source"].flatten(1).any(dim=1).all()

    package = load_package(paths.student)
    assert package.family.image_size == (32, 32)
    assert package.family.takes_source == edits
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
    images = student.generate([WORDS[4]], num_steps=1)
    if edits:
        images += student.edit(
            [Image.new("RGB", (40, 32), "red")], ["remove the circle"], num_steps=1
        )
    assert [image.size for image in images] == [(32, 32)] * (1 + edits)


def test_a_family_is_distilled_and_scored_on_a_bfloat16_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is frozen and cached is bfloat16; what is learned is float32, on the teachers' base."""
    loaded: list[Teachers] = []

    def noting(*given: Any) -> Teachers:
        loaded.append(Teachers(*given))
        return loaded[-1]

    for stage in (cache, distill, evaluate):
        monkeypatch.setattr(stage, "Teachers", noting)
    students, load = [], evaluate.load_package

    def noting_student(*given: Any) -> Package:
        students.append(load(*given))
        return students[-1]

    monkeypatch.setattr(evaluate, "load_package", noting_student)
    changes = {
        "run__dtype": "bfloat16",
        "cache__dtype": "bfloat16",
        "evaluate__num_samples": 1,
        "evaluate__num_steps": 1,
    }
    params, paths = distilled(CASES["zimage_omni"], tmp_path, **changes)
    for capability in BOTH:
        evaluate.run(params, paths, capability)

    assert len(loaded) == 5
    for teachers in loaded:
        dtypes = {n: p.dtype for n, p in teachers.shared.named_parameters()}
        assert {d for n, d in dtypes.items() if "lora_" not in n} == {torch.bfloat16}
        assert {d for n, d in dtypes.items() if "lora_" in n} <= {torch.float32}
    trained = loaded[2].shared.state_dict()
    assert any("lora_B.student" in n and bool(value.any()) for n, value in trained.items())
    for package, teachers in zip(students, loaded[3:], strict=True):
        assert package.field.backbone is teachers.shared
    assert read_manifest(paths.student)["dtype"] == "bfloat16"
    for capability in BOTH:
        for file in paths.cache(capability).glob("*.safetensors"):
            for tensor in load_file(file).values():
                assert tensor.dtype == torch.bfloat16 or not tensor.is_floating_point()
                assert tensor.isfinite().all()
        found = read_evaluation(paths.evaluation(capability), capability)
        assert set(found.fields) == {"student", "start", "teacher:base", "teacher:local"}
        for result in found.fields.values():
            numbers = [result.score, *result.metrics.values(), *result.field_gap.values()]
            assert all(map(math.isfinite, numbers))
        gap = found.fields["student"].field_gap
        assert gap["all"] != found.fields["start"].field_gap["all"]
    record = [json.loads(line) for line in paths.distill_metrics.read_text().splitlines()]
    assert all(math.isfinite(row["loss"]) for row in record if "loss" in row)


def test_every_family_is_distilled_here() -> None:
    assert {case.family for case in CASES.values()} == FAMILIES.keys()
