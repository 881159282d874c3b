"""LoRA files for the stock families: what does not fit is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import TINY_FAMILIES, awake
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters import read_adapter_for
from danceflow.models.family import ModelFamily

SHAPES = {"sd3": "stock", "flux2": "klein", "qwen_image": "create", "zimage": "plain"}


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
    """Returns (out, in) of every linear module."""
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


def original_factors(name: str, base: nn.Module) -> tuple[dict, dict[str, Tensor]]:
    """Returns factors by the original code's modules, and B A by diffusers' modules."""
    shapes, factors, updates = linear_modules(base), {}, {}
    for seed, (module, targets) in enumerate(ORIGINAL[name].items()):
        heights = [shapes[target][0] for target in targets]
        down, up = drawn((sum(heights), shapes[targets[0]][1]), 2, seed)
        factors[module] = down, up
        updates |= {
            target: part @ down for target, part in zip(targets, up.split(heights), strict=True)
        }
    return factors, updates


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


@pytest.mark.parametrize("part", ["dora_scale", "lora_magnitude_vector.weight"])
@pytest.mark.parametrize("name", SHAPES)
def test_dora_is_refused_whoever_reads_it(families, tmp_path: Path, name: str, part: str) -> None:
    family, base = families[name]
    module, shape = next(iter(linear_modules(base).items()))
    down, up = drawn(shape, 2, 0)
    prefix = f"diffusion_model.{module}"
    tensors = {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}
    path = tmp_path / "dora.safetensors"
    save_file(tensors, path)
    assert list(read_adapter_for(base, path, family.translate_adapter).pairs) == [module]
    save_file(tensors | {f"{prefix}.{part}": torch.ones(shape[0])}, path)
    with pytest.raises(WeightsError, match=rf"{module}\.{part} is DoRA's; .* not supported"):
        read_adapter_for(base, path, family.translate_adapter)
