"""LoRA files as others write them: what matched is told, what does not match is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, awake, shake, small_sd3
from torch import nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters.files import AdapterFile, merged_pairs
from danceflow.models.adapters.lora import (
    AdapterField,
    add_student_adapter,
    load_adapter,
    merge_adapter,
    read_adapter_for,
    save_adapter,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def family():
    return small_sd3()


@pytest.fixture(scope="module")
def base(family) -> nn.Module:
    return awake(family)


@pytest.fixture(scope="module")
def inputs(family):
    z, sigma = normal(family.latent_shape, [1, 2]), torch.tensor([0.9, 0.3])
    return z, sigma, family.condition(PROMPTS)


@pytest.fixture(scope="module")
def trained(family, base) -> nn.Module:
    network = copy.deepcopy(base)
    shake(add_student_adapter(family, network, rank=3, alpha=6, seed=1), 1)
    return network


@pytest.fixture
def tensors(trained, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Factors by module and letter, without any spelling; their scale is 6 / 3."""
    found = load_file(save_adapter(trained, tmp_path / "own"))
    return {key.removeprefix("transformer."): value for key, value in found.items()}


def as_peft(tensors, folder: Path) -> Path:
    folder.mkdir()
    renamed = {f"base_model.model.{key}": value for key, value in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    return folder


def as_kohya(tensors, folder: Path) -> Path:
    folder.mkdir()
    renamed = {}
    for key, value in tensors.items():
        module, factor = key.removesuffix(".weight").rsplit(".", 1)
        flat = "lora_unet_" + module.replace(".", "_")
        renamed[f"{flat}.{'lora_down' if factor == 'lora_A' else 'lora_up'}.weight"] = value
        renamed[f"{flat}.alpha"] = torch.tensor(6.0)
    save_file(renamed, folder / "kohya.safetensors")
    return folder


def as_comfy(tensors, folder: Path) -> Path:
    folder.mkdir()
    scaled = {k: v * 2 if "lora_B" in k else v for k, v in tensors.items()}
    save_file({f"diffusion_model.{k}": v for k, v in scaled.items()}, folder / "x.safetensors")
    return folder


SPELLINGS = {"peft": as_peft, "kohya": as_kohya, "comfy": as_comfy}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_adapter(
    family, base, trained, tensors, inputs, tmp_path: Path, spelling: str
) -> None:
    network = copy.deepcopy(base)
    place = SPELLINGS[spelling](tensors, tmp_path / spelling)
    report = load_adapter(network, place, "teacher")
    assert report.layout == {"comfy": "diffusers"}.get(spelling, spelling)
    assert 2 * len(report.modules) == len(tensors)
    with torch.no_grad():
        expected = family.field(trained)(*inputs)
    found = AdapterField(family, network, "teacher")(*inputs)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_modules_may_have_scales_of_their_own(family, base, tensors, tmp_path: Path) -> None:
    folder = as_kohya(tensors, tmp_path / "kohya")
    path = folder / "kohya.safetensors"
    changed = load_file(path)
    name = "lora_unet_transformer_blocks_0_attn_to_q"
    changed[f"{name}.alpha"] = torch.tensor(1.5)
    save_file(changed, path)
    network = copy.deepcopy(base)
    assert load_adapter(network, path, "teacher").alpha == 6.0
    module = "transformer_blocks.0.attn.to_q"
    merged = merge_adapter(network, "teacher").get_submodule(module).weight
    down, up = (tensors[f"{module}.lora_{letter}.weight"] for letter in "AB")
    expected = base.get_submodule(module).weight + 0.5 * up @ down
    torch.testing.assert_close(merged, expected, **CLOSE)


def test_peft_patterns_and_root_scales_are_understood(base, tensors, tmp_path: Path) -> None:
    folder = as_peft(tensors, tmp_path / "peft")
    settings = {"r": 3, "lora_alpha": 6, "use_rslora": True, "alpha_pattern": {"to_q": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    file = read_adapter_for(base, folder)
    assert file.alpha / file.rank == pytest.approx(6 / 3**0.5)
    module = "transformer_blocks.0.attn.to_q"
    torch.testing.assert_close(file.pairs[module][1], tensors[f"{module}.lora_B.weight"] / 2)


def test_a_name_that_means_nothing_is_refused(base, tensors, tmp_path: Path) -> None:
    path = as_kohya(tensors, tmp_path / "kohya") / "kohya.safetensors"
    save_file({**load_file(path), "lora_te_x.lora_down.weight": torch.ones(1, 1)}, path)
    with pytest.raises(WeightsError, match="lora_te_x.lora_down.weight belongs to no module"):
        read_adapter_for(base, path)
    with pytest.raises(WeightsError, match="mean nothing: strange"):
        read_adapter_for(base, path, translate=_strange)
    with pytest.raises(WeightsError, match="belongs to no module"):
        read_adapter_for(base, path, translate=lambda found: found)


def _strange(_found):
    raise ValueError("strange")


def test_other_names_are_translated_first(base, tensors, tmp_path: Path) -> None:
    path = tmp_path / "original.safetensors"
    save_file({key.replace("to_q", "query"): value for key, value in tensors.items()}, path)

    def translate(found):
        return {key.replace("query", "to_q"): value for key, value in found.items()}

    assert 2 * len(read_adapter_for(base, path, translate).pairs) == len(tensors)


@pytest.mark.parametrize("lost", ["lora_unet_x.lora_up.weight", "lora_unet_y.alpha"])
def test_a_tensor_that_a_translation_leaves_out_is_refused(
    base, tensors, tmp_path: Path, lost: str
) -> None:
    path = tmp_path / "original.safetensors"
    renamed = {key.replace("to_q", "query"): value for key, value in tensors.items()}
    save_file({**renamed, lost: torch.ones(1)}, path)

    def translate(found):
        return {key.replace("query", "to_q"): value for key, value in found.items() if key != lost}

    with pytest.raises(WeightsError, match=f"1 of its tensors have no place .*such as {lost}"):
        read_adapter_for(base, path, translate)
    with pytest.raises(WeightsError, match=f"{len(renamed) + 1} of its tensors have no place"):
        read_adapter_for(base, path, lambda found: {"alpha": torch.ones(1)})


def test_a_tensor_that_a_translation_writes_over_is_refused(base, tensors, tmp_path: Path) -> None:
    path = tmp_path / "original.safetensors"
    renamed = {key.replace("to_q", "query"): value for key, value in tensors.items()}
    name = "transformer_blocks.0.attn.query.lora_A.weight"
    save_file({**renamed, f"x.{name}": torch.ones(1)}, path)

    def translate(found):
        return {key.removeprefix("x.").replace("query", "to_q"): v for key, v in found.items()}

    with pytest.raises(WeightsError, match=rf"1 of its tensors .*such as (x\.)?{name}"):
        read_adapter_for(base, path, translate)


def test_two_tensors_of_one_factor_are_told(base, tensors, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q.lora_A.weight"
    path = tmp_path / "twice.safetensors"
    save_file({**tensors, f"transformer.{name}": tensors[name].clone()}, path)
    with pytest.raises(WeightsError, match="to_q has two tensors A"):
        read_adapter_for(base, path)


def test_a_folder_of_several_files_is_told(base, tensors, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="holds 2 safetensors files"):
        read_adapter_for(base, tmp_path)


def drawn(rank: int, seed: int, alpha: float = 2.0) -> AdapterFile:
    down, up = normal((rank, 6), [seed])[0], normal((5, rank), [seed + 1])[0]
    kernel = normal((rank, 2, 3, 3), [seed + 2])[0], normal((4, rank, 1, 1), [seed + 3])[0]
    return AdapterFile({"linear": (down, up), "kernel": kernel}, rank, alpha, "diffusers")


def update(file: AdapterFile, name: str) -> torch.Tensor:
    down, up = file.pairs[name]
    return file.alpha / file.rank * up.flatten(1) @ down.flatten(1)


def test_adapters_side_by_side_are_their_weighted_sum() -> None:
    one, other = drawn(2, 0), drawn(1, 10, alpha=3.0)
    pairs, kept = merged_pairs([(one, 0.25), (other, 0.75)], rank=3)
    assert kept == 1.0
    for name, (down, up) in pairs.items():
        expected = 0.25 * update(one, name) + 0.75 * update(other, name)
        torch.testing.assert_close(up.flatten(1) @ down.flatten(1), expected, **CLOSE)


def test_too_narrow_a_sum_keeps_its_largest_part() -> None:
    one, other = drawn(2, 0), drawn(2, 10)
    pairs, kept = merged_pairs([(one, 0.5), (other, 0.5)], rank=2)
    norms, errors = 0.0, 0.0
    for name, (down, up) in pairs.items():
        assert len(down) == up.shape[1] == 2
        expected = 0.5 * update(one, name) + 0.5 * update(other, name)
        values = torch.linalg.svdvals(expected)
        error = (up.flatten(1) @ down.flatten(1) - expected).square().sum()
        torch.testing.assert_close(error, values[2:].square().sum(), rtol=1e-3, atol=1e-4)
        norms += float(expected.square().sum())
        errors += float(error)
    assert kept == pytest.approx(1 - errors / norms, rel=1e-4)
    assert 0 < kept < 1
