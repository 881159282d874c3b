"""Adapters in the names of SD3's original code, against diffusers' own converter of checkpoints."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from tiny_models import awake, small_sd3, stock_pipeline
from torch import nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters.lora import load_adapter, read_adapter_for
from danceflow.models.families.sd3_names import diffusers_names

WIDTH, RANK, ALPHA, NUM_LAYERS = 16, 2, 6.0, 2
STREAM = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A transformer with every kind of module that SD3.5 Medium has."""
    transformer: nn.Module = stock_pipeline(with_t5=False).transformer
    return transformer


def original_shapes() -> dict[str, tuple[int, ...]]:
    """Return [out, in, ...] of the original code's modules, as its checkpoints have them."""
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (WIDTH, 4, 2, 2),
        "context_embedder": (WIDTH, 32),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "y_embedder.mlp.0": (WIDTH, 20),
        "y_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (16, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    outputs = dict(zip(STREAM, (3, 1, 4, 1, 6), strict=True))
    for i in range(NUM_LAYERS):
        last = i == NUM_LAYERS - 1
        for part, times in outputs.items():
            wide = 4 * WIDTH if part == "mlp.fc2" else WIDTH
            modulation = 9 if i == 0 and part.startswith("adaLN") else times
            shapes[f"joint_blocks.{i}.x_block.{part}"] = (modulation * WIDTH, wide)
            if not last:
                shapes[f"joint_blocks.{i}.context_block.{part}"] = (times * WIDTH, wide)
        if last:
            shapes[f"joint_blocks.{i}.context_block.attn.qkv"] = (3 * WIDTH, WIDTH)
            shapes[f"joint_blocks.{i}.context_block.adaLN_modulation.1"] = (2 * WIDTH, WIDTH)
    shapes["joint_blocks.0.x_block.attn2.qkv"] = (3 * WIDTH, WIDTH)
    shapes["joint_blocks.0.x_block.attn2.proj"] = (WIDTH, WIDTH)
    return shapes


def factors(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [rank, in, ...] and B [out, rank, ...] of a module."""
    ones = (1,) * (len(shape) - 2)
    return normal((RANK, *shape[1:]), [seed])[0], normal((shape[0], RANK, *ones), [seed + 500])[0]


def update(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return B A."""
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def kohya_file(path: Path) -> dict[str, torch.Tensor]:
    """Write an adapter on every module; return the original checkpoint's change by name."""
    tensors, changes = {}, {}
    for seed, (name, shape) in enumerate(original_shapes().items()):
        down, up = factors(shape, seed)
        flat = "lora_unet_" + name.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"], tensors[f"{flat}.lora_up.weight"] = down, up
        tensors[f"{flat}.alpha"] = torch.tensor(ALPHA)
        changes[f"{name}.weight"] = update(down, up) * ALPHA / RANK
        changes[f"{name}.bias"] = torch.zeros(shape[0])
    save_file(tensors, path)
    return changes


def converted(changes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the changes by diffusers' names, from diffusers' own converter."""
    others = {"pos_embed": torch.zeros(1)}
    for i in range(NUM_LAYERS):
        parts = ["x_block.attn", "context_block.attn", *(["x_block.attn2"] if i == 0 else [])]
        for part in parts:
            others |= {f"joint_blocks.{i}.{part}.ln_{k}.weight": torch.zeros(8) for k in "qk"}
    state = convert_sd3_transformer_checkpoint_to_diffusers({**changes, **others})
    return {key: value for key, value in state.items() if value.any()}


def test_a_kohya_file_changes_the_weights_as_the_converted_checkpoint(
    network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "kohya.safetensors"
    expected = converted(kohya_file(path))
    found = read_adapter_for(network, path, lambda given: diffusers_names(given, NUM_LAYERS))
    assert found.layout == "kohya"
    assert {f"{module}.weight" for module in found.pairs} == expected.keys()
    for module, (down, up) in found.pairs.items():
        change = update(down, up) * found.alpha / found.rank
        assert network.get_submodule(module).weight.shape == change.shape
        torch.testing.assert_close(change, expected[f"{module}.weight"])


def test_dotted_names_are_the_same_adapter(network: nn.Module, tmp_path: Path) -> None:
    name = "joint_blocks.0.context_block.attn.qkv"
    down, up = factors((3 * WIDTH, WIDTH), 3)
    path = tmp_path / "dotted.safetensors"
    prefix = f"diffusion_model.{name}"
    save_file({f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up}, path)
    found = read_adapter_for(network, path, lambda given: diffusers_names(given, NUM_LAYERS))
    assert found.layout == "diffusers"
    names = [f"transformer_blocks.0.attn.add_{letter}_proj" for letter in "qkv"]
    assert list(found.pairs) == names
    assert torch.equal(torch.cat([found.pairs[name][1] for name in names]), up)
    assert all(torch.equal(found.pairs[name][0], down) for name in names)


def test_the_family_loads_such_a_file_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    family = small_sd3()
    network = awake(family)
    width = network.get_submodule("transformer_blocks.0.attn.to_q").in_features
    down, up = factors((3 * width, width), 1)
    key = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    save_file(tensors, tmp_path / "a.safetensors")
    report = load_adapter(network, tmp_path / "a.safetensors", "teacher", family.translate_adapter)
    attention = "transformer_blocks.0.attn."
    assert report.modules == tuple(attention + part for part in ("to_k", "to_q", "to_v"))
    assert report.layout == "kohya"
    key_layer = network.get_submodule(attention + "to_k")
    assert torch.equal(key_layer.lora_B["teacher"].weight, up[width : 2 * width])
    for strange in ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_joint_blocks_9_x"):
        other = {
            f"{strange}.lora_down.weight": down.clone(),
            f"{strange}.lora_up.weight": up.clone(),
        }
        save_file({**tensors, **other}, tmp_path / "b.safetensors")
        with pytest.raises(WeightsError, match=f"{strange}.* belongs to no module"):
            load_adapter(
                awake(family), tmp_path / "b.safetensors", "other", family.translate_adapter
            )
