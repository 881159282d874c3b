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
    add_student_adapter,
    merge_adapter,
    save_adapter,
)
from danceflow.models.memory import Memory
from danceflow.models.package import (
    load_package,
    read_manifest,
    save_package,
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
    assert {part.device.type for part in loaded.family.prompts.parts} == {"cuda"}
    moves.clear()
    loaded.field(normal(family.latent_shape, [1, 2]), SIGMA, family.condition(PROMPTS))
    assert moves == [(backbone, "cuda"), (backbone, "cpu")]


def test_a_package_of_the_earlier_layout_still_loads(family, tmp_path: Path) -> None:
    """An adapter was packaged merged into its base, and beside that."""
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
