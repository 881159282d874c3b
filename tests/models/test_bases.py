"""A student that is an adapter finds its base by the digest of its tensors, and no other one."""

import gc
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from adapter_students import (
    HUB_NAME,
    SIDE,
    STEPS,
    latents_of,
    write_published,
    write_student,
    write_teachers,
)
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, shake

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models import bases, pack
from danceflow.models.adapters.lora import adapter_names, add_student_adapter
from danceflow.models.bases import (
    BASES_VARIABLE,
    find_base,
    frozen_digest,
    hub_folder,
    network_digest,
)
from danceflow.models.bring import bring_teachers
from danceflow.models.family import open_family
from danceflow.models.memory import Memory
from danceflow.models.pack import save_adapter_package
from danceflow.models.package import load_package, read_manifest
from danceflow.models.teachers import Teachers
from danceflow.paths import MANIFEST


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Among folders of its own: a configured folder is searched whole.
    return write_published(tmp_path_factory.mktemp("configured") / "published")


@pytest.fixture(scope="module")
def teachers_folder(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teachers(tmp_path_factory.mktemp("checkout") / "models" / "teachers", pipeline)


@pytest.fixture(scope="module")
def teachers(teachers_folder: Path) -> Teachers:
    return Teachers(teachers_folder, "sd3", ["base"], "cpu")


@pytest.fixture(scope="module")
def apart(teachers: Teachers, tmp_path_factory: pytest.TempPathFactory):
    """Two students without their base, and their latents."""
    folder = tmp_path_factory.mktemp("students")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pack, "PACKED_BYTES", 0)
        return [(folder / str(n), write_student(teachers, folder / str(n), n)) for n in (1, 2)]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkout, no configured folder and an empty hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(BASES_VARIABLE, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def put_on_hub(cache: Path, pipeline: Path) -> None:
    """Lay a pipeline out as the hub's own cache does."""
    repository = cache / "models--somebody--small-sd3"
    shutil.copytree(pipeline, repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")


def test_the_package_is_the_adapter_and_the_name_of_its_base(apart, teachers) -> None:
    folder, _ = apart[0]
    meta = read_manifest(folder)
    files = {"adapter/pytorch_lora_weights.safetensors", "frozen/danceflow_family.json"}
    assert set(meta["files"]) == files | {"adapter/stock/pytorch_lora_weights.safetensors"}
    assert meta["base"]["network"] == network_digest(teachers.folder / "base")
    assert (meta["base"]["teacher"], meta["base"]["where"]) == ("base", HUB_NAME)


def test_a_published_pipeline_and_the_copy_among_the_teachers_are_one_base(
    pipeline: Path, teachers: Teachers
) -> None:
    """Neither bfloat16, nor shards, nor the channels for a source make it another one."""
    assert len(list((pipeline / "transformer").glob("*.safetensors"))) > 1
    assert network_digest(pipeline / "transformer") == network_digest(teachers.folder / "base")
    opened = open_family("sd3", pipeline)
    assert frozen_digest(opened) == frozen_digest(teachers.family)
    with torch.no_grad():
        next(opened.frozen_networks()["text_encoder_3"].parameters()).mul_(1.01)
    assert frozen_digest(opened) != frozen_digest(teachers.family)


def test_a_base_is_found_in_the_checkout_in_a_configured_folder_and_on_the_hub(
    apart, teachers_folder: Path, pipeline: Path, tmp_path: Path, monkeypatch
) -> None:
    folder, expected = apart[0]
    name = bases.BaseName.of(read_manifest(folder), folder)

    def found() -> Path:
        place = find_base(name, folder, "sd3")[1].network
        student = load_package(folder)
        torch.testing.assert_close(
            latents_of(student.family, student.field), expected, rtol=1e-3, atol=1e-3
        )
        return place

    put_on_hub(tmp_path / "hub", pipeline)
    on_hub = tmp_path / "hub" / "models--somebody--small-sd3" / "snapshots" / "0123abc"
    assert found() == on_hub / "transformer"
    monkeypatch.setenv(BASES_VARIABLE, str(pipeline.parent))
    assert found() == pipeline / "transformer"
    monkeypatch.setenv(BASES_VARIABLE, str(teachers_folder))
    assert found() == teachers_folder / "base"
    monkeypatch.delenv(BASES_VARIABLE)
    root = teachers_folder.parents[1]
    for file in ("dvc.yaml", "params.yaml"):
        (root / file).touch()
    monkeypatch.chdir(root)
    try:
        assert found() == teachers_folder / "base"
    finally:
        for file in ("dvc.yaml", "params.yaml"):
            (root / file).unlink()


def test_a_base_that_is_missing_is_told_with_what_to_do(apart) -> None:
    folder, _ = apart[0]
    with pytest.raises(WeightsError, match="not in the cache.*`hf download somebody/small-sd3` br"):
        load_package(folder)
    meta = json.loads((folder / MANIFEST).read_text())
    meta["base"]["where"] = "/models/gone"
    name = bases.BaseName.of(meta, folder)
    message = f"was at /models/gone and is not here.*{BASES_VARIABLE}"
    with pytest.raises(WeightsError, match=message):
        find_base(name, folder, "sd3")


def test_another_base_is_refused(apart, teachers_folder: Path, tmp_path: Path, monkeypatch) -> None:
    folder, _ = apart[0]
    other = tmp_path / "other"
    shutil.copytree(teachers_folder, other)
    family = open_family("sd3", other / "frozen")
    network = family.load_backbone(other / "base")
    with torch.no_grad():
        next(network.parameters()).mul_(1.01)
    family.save_backbone(network, other / "base")
    monkeypatch.setenv(BASES_VARIABLE, str(other))
    meta = json.loads((folder / MANIFEST).read_text())
    name = bases.BaseName.of({"base": {**meta["base"], "where": "/gone"}}, folder)
    with pytest.raises(WeightsError, match=r"other/base: another network, [0-9a-f]{12}"):
        find_base(name, folder, "sd3")


def test_other_encoders_beside_the_right_network_are_refused_and_the_search_goes_on(
    apart, teachers_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    folder, expected = apart[0]
    other = tmp_path / "other"
    shutil.copytree(teachers_folder, other)
    file = next((other / "frozen" / "vae").glob("*.safetensors"))
    tensors = {name: value * 1.01 for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    monkeypatch.setenv(BASES_VARIABLE, str(other))
    with pytest.raises(WeightsError, match="its text encoders or its codec are not those"):
        load_package(folder)
    monkeypatch.setenv(BASES_VARIABLE, f"{other}{os.pathsep}{teachers_folder}")
    student = load_package(folder)
    torch.testing.assert_close(
        latents_of(student.family, student.field), expected, rtol=1e-3, atol=1e-3
    )


def test_students_of_one_base_share_it_and_keep_their_answers(
    apart, teachers_folder: Path, monkeypatch
) -> None:
    monkeypatch.setenv(BASES_VARIABLE, str(teachers_folder))
    loads = []
    load = bases.load_base

    def noted(*given):
        loads.append(given)
        return load(*given)

    monkeypatch.setattr(bases, "load_base", noted)
    packages = [load_package(folder) for folder, _ in apart]
    assert len(loads) == 1
    assert packages[0].field.backbone is packages[1].field.backbone
    for package, (_, expected) in zip(packages, apart, strict=True):
        torch.testing.assert_close(
            latents_of(package.family, package.field), expected, rtol=1e-3, atol=1e-3
        )
    network = packages[0].field.backbone
    del packages[0], package
    gc.collect()
    latents_of(packages[0].family, packages[0].field)
    assert adapter_names(network) == ("student_1",)
    assert load_package(apart[0][0], Memory("cpu", "bfloat16")).field.backbone is not network
    assert len(loads) == 2


def test_the_base_takes_the_memorys_dtype_and_the_adapter_stays_float32(
    apart, teachers_folder: Path, monkeypatch
) -> None:
    monkeypatch.setenv(BASES_VARIABLE, str(teachers_folder))
    folder, expected = apart[0]
    package = load_package(folder, Memory("cpu", "bfloat16"))
    dtypes = {n: p.dtype for n, p in package.field.backbone.named_parameters()}
    assert {d for n, d in dtypes.items() if "lora_" in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if "lora_" not in n} == {torch.bfloat16}
    found = latents_of(package.family, package.field)
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_beside_its_teachers_a_student_is_an_adapter_on_theirs(apart, teachers_folder) -> None:
    teachers = Teachers(teachers_folder, "sd3", ["base"], "cpu")
    folder, expected = apart[0]
    package = load_package(folder, "cpu", teachers)
    assert package.field.backbone is teachers.shared
    latents = latents_of(package.family, package.field)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


def test_a_small_base_goes_along(teachers: Teachers, tmp_path: Path) -> None:
    expected = write_student(teachers, tmp_path / "student", 1)
    meta = read_manifest(tmp_path / "student")
    assert any(name.startswith("base/") for name in meta["files"])
    assert any(name.startswith("frozen/text_encoder") for name in meta["files"])
    package = load_package(tmp_path / "student")
    latents = latents_of(package.family, package.field)
    torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


def test_an_average_of_networks_goes_along_whatever_its_size(
    pipeline: Path, tmp_path: Path, monkeypatch
) -> None:
    from danceflow.models.start import start_backbone

    monkeypatch.setattr(pack, "PACKED_BYTES", 0)
    other = open_family("sd3", pipeline).new_backbone(7)
    other.save_pretrained(tmp_path / "other")
    folder = tmp_path / "teachers"
    bring_teachers("sd3", pipeline, {"other": tmp_path / "other"}, folder, edits=False)
    teachers = Teachers(folder, "sd3", ["base", "other"], "cpu")
    shares = {"base": 1.0, "other": 1.0}
    network = start_backbone(teachers, shares).requires_grad_(False).eval()
    family = teachers.family.sized(SIDE, SIDE)
    shake(add_student_adapter(family, network, rank=2, alpha=2.0, seed=0))
    meta = {"num_steps": STEPS, "image_sizes": [[SIDE, SIDE]], "teachers_digest": teachers.digest}
    (tmp_path / "student").mkdir()
    save_adapter_package(tmp_path / "student", family, network, teachers, shares, meta)
    package = load_package(tmp_path / "student", "cpu", teachers)
    z, condition, sigma = normal(family.latent_shape, [1, 2]), family.condition(PROMPTS), 0.5
    with torch.no_grad():
        expected = family.field(network)(z, torch.full((2,), sigma), condition)
        found = package.field(z, torch.full((2,), sigma), condition)
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_a_name_that_is_none_on_the_hub_is_told() -> None:
    with pytest.raises(WeightsError, match="`hf download no/such/name` brings it"):
        hub_folder("hf://no/such/name")
