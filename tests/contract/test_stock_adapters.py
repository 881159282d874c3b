"""LoRA files for the stock families: every spelling gives alpha / rank * B A, or is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TINY_FAMILIES, awake
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters.lora import (
    load_adapter,
    merge_adapter,
    merged_network,
    read_adapter_for,
)
from danceflow.models.family import ModelFamily

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SHAPES = {"sd3": "stock", "flux2": "klein", "qwen_image": "create", "zimage": "plain"}
STOCK = ("flux2", "qwen_image", "zimage")


def attention(place: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{place}.{name}" for name in names)


FLUX2, ZIMAGE = "transformer_blocks.0.attn", "layers.0.attention"
ORIGINAL = {
    "flux2": {
        "double_blocks.0.img_attn.qkv": attention(FLUX2, "to_q", "to_k", "to_v"),
        "double_blocks.0.txt_attn.qkv": attention(FLUX2, "add_q_proj", "add_k_proj", "add_v_proj"),
        "double_blocks.0.img_attn.proj": attention(FLUX2, "to_out.0"),
        "double_blocks.0.txt_attn.proj": attention(FLUX2, "to_add_out"),
        "double_blocks.0.img_mlp.0": ("transformer_blocks.0.ff.linear_in",),
        "double_blocks.0.txt_mlp.2": ("transformer_blocks.0.ff_context.linear_out",),
        "single_blocks.0.linear1": ("single_transformer_blocks.0.attn.to_qkv_mlp_proj",),
        "single_blocks.0.linear2": ("single_transformer_blocks.0.attn.to_out",),
        "img_in": ("x_embedder",),
    },
    "zimage": {
        "layers.0.attention.qkv": attention(ZIMAGE, "to_q", "to_k", "to_v"),
        "layers.0.attention.out": attention(ZIMAGE, "to_out.0"),
        "layers.1.feed_forward.w2": ("layers.1.feed_forward.w2",),
        "layers.1.adaLN_modulation.0": ("layers.1.adaLN_modulation.0",),
        "context_refiner.0.attention.qkv": attention(
            "context_refiner.0.attention", "to_q", "to_k", "to_v"
        ),
    },
}
"""Modules of the original code, and diffusers' for them; Qwen-Image has the same in both."""


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ModelFamily, nn.Module]]:
    found = {}
    for name, shape in SHAPES.items():
        family = TINY_FAMILIES[name][shape](tmp_path_factory.mktemp(name))
        found[name] = family, awake(family)
    return found


def linear_modules(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Return (out, in) of every linear module."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }


def drawn(shape: tuple[int, int], rank: int, seed: int) -> tuple[Tensor, Tensor]:
    return normal((rank, shape[1]), [seed])[0], normal((shape[0], rank), [seed + 5000])[0]


def as_kohya(factors: dict[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    tensors = {}
    for module, (down, up) in factors.items():
        flat = "lora_unet_" + module.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = down, up
        tensors[f"{flat}.alpha"] = torch.tensor(alpha)
    return tensors


def assert_changed(
    family: ModelFamily, base: nn.Module, path: Path, changes: dict[str, Tensor], layout: str
) -> None:
    """Asserts that the adapter in ``path`` changes these weights of the network and no other."""
    network = family.new_backbone(0)
    network.load_state_dict(base.state_dict())
    report = load_adapter(network, path, "teacher", family.translate_adapter)
    assert report.layout == layout
    assert report.modules == tuple(sorted(changes))
    merged = dict(merge_adapter(network, "teacher").named_parameters())
    for name, before in base.named_parameters():
        change = changes.get(name.removesuffix(".weight"), torch.zeros(()))
        torch.testing.assert_close(merged[name], before + change, **CLOSE)


@pytest.mark.parametrize("name", STOCK)
def test_a_kohya_file_has_a_scale_per_module(families, tmp_path: Path, name: str) -> None:
    family, base = families[name]
    tensors, changes = {}, {}
    for seed, (module, shape) in enumerate(linear_modules(base).items()):
        rank, alpha = 2 + seed % 2, 1.5 + seed % 3
        down, up = drawn(shape, rank, seed)
        tensors |= as_kohya({module: (down, up)}, alpha)
        changes[module] = alpha / rank * up @ down
    save_file(tensors, tmp_path / "kohya.safetensors")
    assert_changed(family, base, tmp_path / "kohya.safetensors", changes, "kohya")


@pytest.mark.parametrize("name", STOCK)
def test_a_peft_folder_has_its_scale_beside_it(families, tmp_path: Path, name: str) -> None:
    family, base = families[name]
    tensors, changes = {}, {}
    for seed, (module, shape) in enumerate(linear_modules(base).items()):
        down, up = drawn(shape, 2, seed)
        prefix = f"base_model.model.{module}"
        tensors |= {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
        changes[module] = 3.0 / 2 * up @ down
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3.0}))
    assert_changed(family, base, tmp_path, changes, "peft")


def original_factors(name: str, base: nn.Module) -> tuple[dict, dict[str, Tensor]]:
    """Return factors by the original code's modules, and B A by diffusers' modules."""
    shapes, factors, updates = linear_modules(base), {}, {}
    for seed, (module, targets) in enumerate(ORIGINAL[name].items()):
        heights = [shapes[target][0] for target in targets]
        down, up = drawn((sum(heights), shapes[targets[0]][1]), 2, seed)
        factors[module] = down, up
        updates |= {
            target: part @ down for target, part in zip(targets, up.split(heights), strict=True)
        }
    return factors, updates


@pytest.mark.parametrize("name", ORIGINAL)
def test_a_kohya_file_may_have_the_original_names(families, tmp_path: Path, name: str) -> None:
    family, base = families[name]
    factors, updates = original_factors(name, base)
    save_file(as_kohya(factors, 3.0), tmp_path / "kohya.safetensors")
    changes = {module: 3.0 / 2 * update for module, update in updates.items()}
    assert_changed(family, base, tmp_path / "kohya.safetensors", changes, "diffusers")


def test_a_peft_folder_may_have_the_original_names(families, tmp_path: Path) -> None:
    family, base = families["flux2"]
    factors, updates = original_factors("flux2", base)
    tensors = {
        f"base_model.model.{module}.lora_{letter}.weight": factor
        for module, pair in factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3.0}))
    changes = {module: 3.0 / 2 * update for module, update in updates.items()}
    assert_changed(family, base, tmp_path, changes, "diffusers")


@pytest.mark.parametrize("name", ["qwen_image", "zimage"])
def test_kohya_files_are_read_as_the_stock_pipeline_reads_them(
    families, tmp_path: Path, name: str
) -> None:
    family, base = families[name]
    factors = {
        module: drawn(shape, 2, seed)
        for seed, (module, shape) in enumerate(linear_modules(base).items())
    }
    tensors = as_kohya(factors, 3.0)
    save_file(tensors, tmp_path / "kohya.safetensors")
    save_file(family.translate_adapter(tensors), tmp_path / "stock.safetensors")
    own, stock = (
        read_adapter_for(base, tmp_path / f"{spelling}.safetensors")
        for spelling in ("kohya", "stock")
    )
    assert own.pairs.keys() == stock.pairs.keys() == factors.keys()
    for module in factors:
        one, other = (
            file.alpha / file.rank * file.pairs[module][1] @ file.pairs[module][0]
            for file in (own, stock)
        )
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize(
    ("name", "module", "lost"),
    [
        ("flux2", "guidance_in_in_layer", "guidance_in_in_layer"),
        ("flux2", "single_blocks_0_linear3", "single_blocks_0_linear3"),
        ("zimage", "layers_0_attention_to_q", "layers_0_attention_qkv"),
    ],
)
def test_what_the_stock_pipeline_would_leave_out_is_refused(
    families, tmp_path: Path, name: str, module: str, lost: str
) -> None:
    family, base = families[name]
    factors, _ = original_factors(name, base)
    known, path = as_kohya(factors, 3.0), tmp_path / "kohya.safetensors"
    save_file(known | as_kohya({module: drawn((8, 8), 2, 0)}, 3.0), path)
    with pytest.raises(
        WeightsError, match=f"2 of .* have no place .*such as lora_unet_{lost}.lora_down"
    ):
        read_adapter_for(base, path, family.translate_adapter)


def with_magnitudes(
    factors: dict[str, tuple[Tensor, Tensor]], side: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a Kohya file's tensors with DoRA's magnitudes, and those by module."""
    tensors, lengths = as_kohya(factors, 3.0), {}
    for seed, (module, (down, up)) in enumerate(factors.items()):
        shape = (len(up), 1) if side == 0 else (1, down.shape[1])
        lengths[module] = 1 + normal(shape, [seed])[0].abs()
        tensors[f"lora_unet_{module.replace('.', '_')}.dora_scale"] = lengths[module]
    return tensors, lengths


@pytest.mark.parametrize("name", ORIGINAL)
def test_dora_may_have_the_original_names(families, tmp_path: Path, name: str) -> None:
    family, base = families[name]
    factors, updates = original_factors(name, base)
    tensors, lengths = with_magnitudes(factors, side=0)
    path = tmp_path / "dora.safetensors"
    save_file(tensors, path)
    file = read_adapter_for(base, path, family.translate_adapter)
    assert (file.kind, file.needs_network) == ("DoRA", True)
    merged, shapes = merged_network(base, file), linear_modules(base)
    for module, targets in ORIGINAL[name].items():
        parts = lengths[module].split([shapes[target][0] for target in targets])
        for target, length in zip(targets, parts, strict=True):
            total = base.get_submodule(target).weight + 3.0 / 2 * updates[target]
            expected = length * total / total.norm(dim=1, keepdim=True)
            torch.testing.assert_close(merged.get_submodule(target).weight, expected, **CLOSE)
    save_file(with_magnitudes(factors, side=1)[0], path)
    with pytest.raises(WeightsError, match="columns' of the original code's modules"):
        read_adapter_for(base, path, family.translate_adapter)


@pytest.mark.parametrize("name", ORIGINAL)
def test_a_loha_may_have_the_original_names(families, tmp_path: Path, name: str) -> None:
    family, base = families[name]
    factors, _ = original_factors(name, base)
    tensors, changes, shapes = {}, {}, linear_modules(base)
    for module, targets in ORIGINAL[name].items():
        down, up = factors[module]
        flat = f"lora_unet_{module.replace('.', '_')}"
        parts = {"w1_a": up, "w1_b": down, "w2_a": up.roll(1, 0), "w2_b": down.roll(1, 1)}
        tensors |= {f"{flat}.hada_{part}": value.contiguous() for part, value in parts.items()}
        tensors[f"{flat}.alpha"] = torch.tensor(3.0)
        whole = 1.5 * (up @ down) * (parts["w2_a"] @ parts["w2_b"])
        heights = [shapes[target][0] for target in targets]
        changes |= dict(zip(targets, whole.split(heights), strict=True))
    save_file(tensors, tmp_path / "loha.safetensors")
    assert_changed(family, base, tmp_path / "loha.safetensors", changes, "diffusers")
