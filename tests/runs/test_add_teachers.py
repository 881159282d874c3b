"""A recipe's further teacher joins those that are there, as an adapter; nothing else changes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import SIZES, small_data, write_project

from danceflow.errors import ConfigError, WeightsError
from danceflow.models.package import Teachers, read_manifest
from danceflow.params.read import parse_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.train.teachers.stage import add


def recipe(**teacher: Any) -> Params:
    """The tiny project with a fourth teacher, as a recipe has it."""
    data = small_data(("t2i", "local_edit"))
    data["data"]["buckets"]["realism"] = dict(SIZES)
    few = {"num_samples": 12, "num_updates": 2, "batch_size": 2, "warmup": 1}
    data["teachers"]["realism"] = (
        data["teachers"]["base"]
        | few
        | {"init": "base", "adapter_rank": 2, "bucket": "realism"}
        | teacher
    )
    data["capabilities"]["realism"] = data["capabilities"]["t2i"] | {
        "bucket": "realism",
        "teacher": "realism",
    }
    data["gate"]["min_retention"]["realism"] = 0.9
    return parse_params(data, "test")


@pytest.fixture
def project(tmp_path: Path) -> Paths:
    write_project(tmp_path, small_data(("t2i", "local_edit")))
    return Paths(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_missing_is_trained_and_the_rest_stays(project: Paths) -> None:
    params, before = recipe(), digests(project.teachers)
    assert add(params, project) == ["realism"]
    after = digests(project.teachers)
    added = {name for name in after if name not in before}
    assert added == {"realism/pytorch_lora_weights.safetensors"}
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"manifest.json"}
    manifest = read_manifest(project.teachers)
    assert (manifest["teachers"], manifest["base"]) == (["base", "local", "realism"], "base")

    teachers = Teachers(project.teachers, "sd3", ["base", "realism"], "cpu")
    z, sigma = torch.ones(1, 3, 32, 32), torch.full((1,), 0.5)
    condition = teachers.family.condition(["a red circle"])
    fields = [teachers.field(name, 1.0)(z, sigma, condition) for name in ("base", "realism")]
    assert not torch.equal(*fields)

    report = json.loads(project.teachers_report.read_text())["teachers"]
    assert set(report) == {"base", "local", "realism"}
    for name, entry in report.items():
        assert set(entry["scores"]) == {"t2i", "local_edit", "realism"}
        for by_guidance in entry["scores"].values():
            assert all("overall" in scores for scores in by_guidance.values())
        assert all("realism" in scores for scores in entry["scores"]["realism"].values())
        assert ("curve" in entry) == (name == "realism")
    assert (project.teachers_images / "realism.png").is_file()

    assert add(params, project) == []
    assert digests(project.teachers) == after


def test_a_teacher_that_is_there_is_never_trained_again(project: Paths) -> None:
    add(recipe(), project)
    before = digests(project.teachers)
    assert add(recipe(num_updates=3, learning_rate=0.5), project) == []
    assert digests(project.teachers) == before


def test_the_same_adapter_comes_out_again(project: Paths, tmp_path: Path) -> None:
    add(recipe(), project)
    other = Paths(tmp_path / "other")
    write_project(other.root, small_data(("t2i", "local_edit")))
    add(recipe(), other)
    assert digests(project.teachers) == digests(other.teachers)


def test_a_teacher_on_something_unknown_and_another_family_are_told(project: Paths) -> None:
    params = recipe()
    lost = params.teachers["realism"].model_copy(update={"init": "lokal"})
    broken = params.model_copy(update={"teachers": {**params.teachers, "realism": lost}})
    with pytest.raises(ConfigError, match=r"teachers.realism.init: 'lokal' is neither"):
        add(broken, project)
    family = params.family.model_copy(update={"name": "flux2"})
    with pytest.raises(WeightsError, match="of family 'sd3', the parameters ask for 'flux2'"):
        add(params.model_copy(update={"family": family}), project)
