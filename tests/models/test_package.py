"""Model folders are used only when every file is the recorded one."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import PROMPTS, awake, small_sd3

from danceflow.errors import WeightsError
from danceflow.fields import normal, sample
from danceflow.models.adapters.lora import (
    ADAPTER_FILE,
    AdapterField,
    add_student_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from danceflow.models.memory import Memory
from danceflow.models.package import (
    FROZEN_FOLDER,
    Teachers,
    load_package,
    read_manifest,
    save_package,
    write_manifest,
)
from danceflow.paths import MANIFEST

SIGMA = torch.tensor([0.9, 0.3])


@pytest.fixture(scope="module")
def family():
    return small_sd3()


@pytest.fixture
def package(family, tmp_path: Path) -> Path:
    save_package(tmp_path, family, awake(family), {"num_steps": 4, "image_sizes": [[16, 16]]})
    return tmp_path


@pytest.fixture
def teachers(family, tmp_path: Path) -> Path:
    family.save_frozen(tmp_path / FROZEN_FOLDER)
    for seed, name in enumerate(("base", "local", "global")):
        family.save_backbone(awake(family, seed), tmp_path / name)
    write_manifest(tmp_path, {"family": "sd3", "teachers": ["base", "local", "global"]})
    return tmp_path


def test_a_package_samples_as_the_student_did(family, package) -> None:
    loaded = load_package(package)
    assert (loaded.meta["num_steps"], loaded.meta["family"]) == (4, "sd3")
    assert loaded.device == torch.device("cpu")
    noise = normal(family.latent_shape, [1, 2])
    images = [
        owner.decode(sample(field, noise, owner.condition(PROMPTS), owner.grid(4)))
        for owner, field in (
            (family, family.field(awake(family))),
            (loaded.family, loaded.field),
        )
    ]
    # Weights are stored as float16.
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0.02)


@pytest.mark.parametrize("offload", ["teachers", "blocks"])
def test_a_package_can_wait_in_main_memory(family, package, offload) -> None:
    z, condition = normal(family.latent_shape, [1, 2]), family.condition(PROMPTS)
    with torch.no_grad():
        expected = load_package(package).field(z, SIGMA, condition)
        waiting = load_package(package, Memory(offload=offload)).field(z, SIGMA, condition)
    assert torch.equal(waiting, expected)


def test_a_package_that_waits_is_on_the_device_while_it_is_asked(family, package, moves) -> None:
    loaded = load_package(package, Memory("cuda", offload="teachers"))
    backbone = loaded.field.backbone
    assert backbone not in [network for network, _ in moves]
    assert {device for _, device in moves} == {"cuda"}  # the encoders
    moves.clear()
    loaded.field(normal(family.latent_shape, [1, 2]), SIGMA, family.condition(PROMPTS))
    assert moves == [(backbone, "cuda"), (backbone, "cpu")]


def test_an_adapter_is_packaged_merged_and_beside(family, tmp_path: Path) -> None:
    backbone = awake(family)
    params = add_student_adapter(family, backbone, rank=2, alpha=2, seed=0)
    with torch.no_grad():
        for param in params:
            param += 0.1
    save_adapter(backbone, tmp_path / "adapter")
    save_package(tmp_path, family, merge_adapter(backbone), {})
    loaded = load_package(tmp_path)
    assert f"adapter/{ADAPTER_FILE}" in loaded.meta["files"]
    z, condition = normal(family.latent_shape, [1, 2]), family.condition(PROMPTS)
    with torch.no_grad():
        expected = family.field(backbone)(z, SIGMA, condition)
    velocity = loaded.field(z, SIGMA, loaded.family.condition(PROMPTS))
    assert (velocity - expected).norm() < 0.02 * expected.norm()


def test_the_manifest_lists_every_file(package) -> None:
    files = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    assert set(read_manifest(package)["files"]) == files - {MANIFEST}


def test_a_missing_file_is_named(package) -> None:
    (package / "frozen" / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.json: this file of the model is missing"):
        load_package(package)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_changed_file_is_named(package, damage) -> None:
    path = next((package / "transformer").glob("*.safetensors"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=rf"{path.name}: the file is truncated or was changed"):
        load_package(package)


def test_a_manifest_that_cannot_be_read_is_named(package, tmp_path_factory) -> None:
    with pytest.raises(WeightsError, match=r"manifest.json: cannot be read"):
        load_package(tmp_path_factory.mktemp("empty"))
    (package / MANIFEST).write_text((package / MANIFEST).read_text()[:40])
    with pytest.raises(WeightsError, match=r"manifest.json: cannot be read"):
        load_package(package)


def test_a_package_of_an_unknown_family_is_told(package) -> None:
    meta = json.loads((package / MANIFEST).read_text())
    (package / MANIFEST).write_text(json.dumps({**meta, "family": "sd4"}))
    with pytest.raises(WeightsError, match="unknown model family 'sd4': did you mean 'sd3'"):
        load_package(package)


def test_teachers_are_frozen_and_have_their_own_guidance(family, teachers) -> None:
    loaded = Teachers(teachers, "sd3", ["base", "local"], "cpu")
    assert list(loaded.backbones) == ["base", "local"]
    for backbone in loaded.backbones.values():
        assert not backbone.training
        assert not any(p.requires_grad for p in backbone.parameters())
    z, condition = normal(family.latent_shape, [1, 2]), loaded.family.condition(PROMPTS)
    plain, guided = (loaded.field("local", scale)(z, SIGMA, condition) for scale in (1.0, 2.0))
    empty = loaded.field("local", 1.0)(z, SIGMA, loaded.family.null(condition))
    torch.testing.assert_close(guided, empty + 2 * (plain - empty), rtol=1e-4, atol=1e-4)


@pytest.fixture
def with_adapter(family, teachers: Path) -> Path:
    """Teachers with a fourth one: an adapter on the base."""
    backbone = family.load_backbone(teachers / "base")
    with torch.no_grad():
        for index, param in enumerate(add_student_adapter(family, backbone, 2, 2, seed=0)):
            param += 0.1 * normal(param.shape, [index])[0]
    save_adapter(backbone, teachers / "realism")
    names = ["base", "local", "global", "realism"]
    write_manifest(teachers, {"family": "sd3", "teachers": names, "base": "base"})
    return teachers


def test_a_teacher_may_be_an_adapter_on_another(family, with_adapter) -> None:
    assert sum(f.stat().st_size for f in (with_adapter / "realism").iterdir()) < 100_000
    loaded = Teachers(with_adapter, "sd3", ["base", "realism"], "cpu")
    assert not any(p.requires_grad for p in loaded.backbones["realism"].parameters())
    backbone = family.load_backbone(with_adapter / "base")
    load_adapter(backbone, with_adapter / "realism", "realism")
    z, condition = normal(family.latent_shape, [1, 2]), loaded.family.condition(PROMPTS)
    expected = AdapterField(family, backbone, "realism")(z, SIGMA, condition)
    velocity = loaded.field("realism", 1.0)(z, SIGMA, condition)
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-4)
    bare = loaded.field("base", 1.0)(z, SIGMA, condition)
    assert (velocity - bare).norm() > 0.05 * bare.norm()
    alone = Teachers(with_adapter, "sd3", ["realism"], "cpu").field("realism", 1.0)
    assert torch.equal(alone(z, SIGMA, condition), velocity)
    merged = loaded.merged({"base": 1.0, "realism": 1.0})
    assert merged.keys() == family.load_backbone(with_adapter / "base").state_dict().keys()


def test_an_adapter_without_a_base_is_told(with_adapter) -> None:
    meta = json.loads((with_adapter / MANIFEST).read_text())
    del meta["base"]
    (with_adapter / MANIFEST).write_text(json.dumps(meta))
    with pytest.raises(WeightsError, match=r"realism: holds an adapter, but manifest.json names"):
        Teachers(with_adapter, "sd3", ["realism"], "cpu")


def test_merging_averages_the_weights(teachers) -> None:
    loaded = Teachers(teachers, "sd3", ["base", "local", "global"], "cpu")
    merged = loaded.merged({"base": 1.0, "global": 3.0})
    states = {name: backbone.state_dict() for name, backbone in loaded.backbones.items()}
    for name, value in merged.items():
        expected = 0.25 * states["base"][name] + 0.75 * states["global"][name]
        torch.testing.assert_close(value, expected)
    alone = loaded.merged({"local": 2.0})
    assert all(torch.equal(alone[name], value) for name, value in states["local"].items())


@pytest.mark.parametrize("weights", [{"base": 0.0}, {"base": 1.0, "lokal": 1.0}, {}])
def test_weights_that_do_not_fit_are_told(teachers, weights) -> None:
    loaded = Teachers(teachers, "sd3", ["base"], "cpu")
    with pytest.raises(WeightsError, match="do not fit"):
        loaded.merged(weights)


def test_a_teacher_that_is_not_there_is_told(teachers) -> None:
    with pytest.raises(WeightsError, match="no teacher 'realism'; known: base, local, global"):
        Teachers(teachers, "sd3", ["realism"], "cpu")


def test_teachers_of_another_family_are_told(teachers) -> None:
    with pytest.raises(WeightsError, match=r"of family 'sd3', params.yaml asks for 'flux2'"):
        Teachers(teachers, "flux2", ["base"], "cpu")
