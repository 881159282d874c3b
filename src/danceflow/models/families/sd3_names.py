"""Names of SD3's original code, as Kohya's and ComfyUI's adapters spell them, in diffusers' names.

The original code keeps the projections of query, key and value in one linear layer and gives shift
before scale in the last modulations; source of both: diffusers' own converter of checkpoints.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from danceflow.models.adapters.comfy import Original

_KOHYA = "lora_unet_"
_KEY = re.compile(
    rf"(?P<prefix>{_KOHYA}|diffusion_model\.|)(?P<module>.+?)\.(?P<part>(?:lora_\w+|alpha)\b.*)"
)
_UP = ("lora_up", "lora_B")

_EMBEDDERS = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}


def diffusers_names(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Return an adapter's tensors by diffusers' names; what is not known stays as it is.

    An update B A of the joint projection is three: the thirds of B's rows, each with the whole A.

    Args:
        tensors: the factors and alphas of a file.
        num_layers: joint blocks of the transformer; the last one's context has another modulation.
    """
    names = _names(num_layers)
    flat = {name.replace(".", "_"): name for name in names}
    translated: dict[str, Tensor] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        kohya = match is not None and match["prefix"] == _KOHYA
        module = match["module"] if match else ""
        module = flat.get(module, "") if kohya else module
        if match is None or module not in names:
            translated[key] = value
            continue
        targets = names[module]
        parts = [value] * len(targets)
        if match["part"].startswith(_UP):
            parts = list(value.tensor_split(len(targets)))
            if module in ("final_layer.adaLN_modulation.1", _last_context(num_layers)):
                shift, scale = value.tensor_split(2)
                parts = [torch.cat([scale, shift])]
        for target, part in zip(targets, parts, strict=True):
            name = target.replace(".", "_") if kohya else target
            translated[f"{match['prefix']}{name}.{match['part']}"] = part.contiguous()
    return translated


def comfy_names(num_layers: int) -> dict[str, Original]:
    """Return the layers of the original code, as ComfyUI keeps them."""
    swapped = {"final_layer.adaLN_modulation.1", _last_context(num_layers)}
    return {name: Original(to, name in swapped) for name, to in _names(num_layers).items()}


def _last_context(num_layers: int) -> str:
    return f"joint_blocks.{num_layers - 1}.context_block.adaLN_modulation.1"


def _names(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Return diffusers' modules for every module of the original code."""
    names: dict[str, tuple[str, ...]] = {name: (new,) for name, new in _EMBEDDERS.items()}
    for i in range(num_layers):
        for name, targets in _BLOCK.items():
            names[f"joint_blocks.{i}.{name}"] = tuple(
                f"transformer_blocks.{i}.{target}" for target in targets
            )
    return names
