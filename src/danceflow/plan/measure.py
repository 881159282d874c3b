"""A transformer without weights: built on torch's ``meta`` device, counted module by module.

What a module costs depends on how many rows it sees. Families of stock pipelines have two or three
streams of tokens, so every linear and convolution module is told by its name which one it is on.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.codec import Codec
from danceflow.models.family import family_class
from danceflow.models.stock import StockFamily
from danceflow.plan.network import Attention, Linear, Network, Stream

# Names of modules, and the stream of tokens they see; the first that fits counts.
_STREAMS: Mapping[str, Sequence[tuple[str, Stream]]] = {
    "sd3": (
        (r"pos_embed\.proj", "image"),
        (r"time_text_embed\..*|.*norm1(_context)?\.linear|norm_out\.linear", "sample"),
        (r"context_embedder|.*\.(add_[qkv]_proj|to_add_out)|.*\.ff_context\..*", "prompt"),
        (r".*\.to_([qkv]|out\.0)|.*\.ff\..*|proj_out", "image"),
    ),
    "flux2": (
        (r"time_guidance_embed\..*|.*modulation.*|norm_out\.linear", "sample"),
        (r"single_transformer_blocks\..*", "all"),
        (r"context_embedder|.*\.(add_[qkv]_proj|to_add_out)|.*\.ff_context\..*", "prompt"),
        (r"x_embedder|.*\.to_([qkv]|out\.0)|.*\.ff\..*|proj_out", "image"),
    ),
    "qwen_image": (
        (r"time_text_embed\..*|.*\.(img|txt)_mod\..*|norm_out\.linear", "sample"),
        (r"txt_in|.*\.(add_[qkv]_proj|to_add_out)|.*\.txt_mlp\..*", "prompt"),
        (r"img_in|.*\.to_([qkv]|out\.0)|.*\.img_mlp\..*|proj_out", "image"),
    ),
    "zimage": (
        (r"t_embedder\..*|.*adaLN_modulation\..*", "sample"),
        (r"cap_embedder\..*|context_refiner\..*", "prompt"),
        (r"siglip_embedder\..*|siglip_refiner\..*", "vision"),
        (r"all_x_embedder\..*|noise_refiner\..*", "image"),
        (r"layers\..*|all_final_layer\..*", "all"),
    ),
}
# Attention modules and the tokens that look at each other there.
_ATTENTION: Mapping[str, Sequence[tuple[str, Stream]]] = {
    "sd3": (
        (r"transformer_blocks\.\d+\.attn", "all"),
        (r"transformer_blocks\.\d+\.attn2", "image"),
    ),
    "flux2": ((r"(single_)?transformer_blocks\.\d+\.attn", "all"),),
    "qwen_image": ((r"transformer_blocks\.\d+\.attn", "all"),),
    "zimage": (
        (r"noise_refiner\.\d+\.attention", "image"),
        (r"context_refiner\.\d+\.attention", "prompt"),
        (r"siglip_refiner\.\d+\.attention", "vision"),
        (r"layers\.\d+\.attention", "all"),
    ),
}


def network_of(family: str, transformer: Mapping[str, Any], factor: int, *, edits: bool) -> Network:
    """Return the sizes of a family's transformer; no weight is allocated.

    Args:
        family: its name.
        transformer: the arguments of its diffusers class.
        factor: image pixels per latent pixel, along a side.
        edits: whether it is to take a source, for a family whose networks are widened for that.

    A process builds and counts each network once, for whatever number of plans.

    Raises:
        WeightsError: unknown family, or arguments that its class does not take.
    """
    return _network_of(family, json.dumps(dict(transformer), sort_keys=True), factor, edits)


@cache
def _network_of(family: str, arguments: str, factor: int, edits: bool) -> Network:
    """Return the same for arguments written as JSON."""
    transformer: dict[str, Any] = json.loads(arguments)
    cls = family_class(family)
    try:
        with torch.device("meta"):
            if issubclass(cls, StockFamily):
                targets, backbone = cls.adapter_targets, cls.transformer_class()(**transformer)
            else:
                made = _sd3_family(cls, transformer, factor)
                made = made.editing() if edits else made
                targets, backbone = made.adapter_targets, made.new_backbone(seed=0)
    except (TypeError, KeyError) as error:
        raise WeightsError(f"these are no sizes of a {family} transformer: {error}") from error
    return measured(family, backbone, targets, edits=edits)


def measured(family: str, backbone: nn.Module, targets: Sequence[str], *, edits: bool) -> Network:
    """Return the sizes of a network that may have weights or none.

    Args:
        family: its name.
        backbone: the network, without adapters.
        targets: ends of the names of the modules that an adapter changes.
        edits: whether it takes a source.

    Raises:
        WeightsError: a module's stream is not known.
    """
    names = {name for name, child in backbone.named_children() if isinstance(child, nn.ModuleList)}
    block_of = _block_finder(names)
    linears, attentions = [], []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight: Tensor = module.weight
            linears.append(
                Linear(
                    name=name,
                    fan_in=weight[0].numel(),
                    fan_out=weight.shape[0],
                    stream=_stream(_STREAMS[family], name),
                    block=block_of(name),
                    is_target=any(f".{name}".endswith(f".{end}") for end in targets),
                    is_convolution=isinstance(module, nn.Conv2d),
                )
            )
    for name, module in backbone.named_modules():
        for pattern, stream in _ATTENTION[family]:
            if re.fullmatch(pattern, name):
                first = next(m for m in module.modules() if isinstance(m, nn.Linear))
                block = block_of(name)
                assert block is not None
                attentions.append(Attention(stream, first.in_features, block))
    return Network(
        family=family,
        parameters=sum(p.numel() for p in backbone.parameters()),
        edits=edits,
        buffers=sum(b.numel() for b in backbone.buffers()),
        matrix_parameters=sum(
            p.numel() for p in backbone.parameters() if p.ndim == 2 and min(p.shape) > 1
        ),
        linears=tuple(linears),
        attentions=tuple(attentions),
        blocks={
            f"{name}.{index}": sum(p.numel() for p in block.parameters())
            for name in names
            for index, block in enumerate(backbone.get_submodule(name).children())
        },
    )


def _stream(rules: Sequence[tuple[str, Stream]], name: str) -> Stream:
    for pattern, stream in rules:
        if re.fullmatch(pattern, name):
            return stream
    raise WeightsError(f"module {name!r}: it is not known which tokens it sees")


def _block_finder(lists: set[str]) -> Callable[[str], str | None]:
    def block_of(name: str) -> str | None:
        first, _, rest = name.partition(".")
        return f"{first}.{rest.partition('.')[0]}" if first in lists else None

    return block_of


class _NoPrompts:
    """Stands where a family keeps its text encoders, which a network without weights needs not."""

    def __init__(self, transformer: Mapping[str, Any]) -> None:
        self.widths = transformer["joint_attention_dim"], transformer["pooled_projection_dim"]

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        length, pooled = self.widths
        return torch.empty(len(prompts), 1, length), torch.empty(len(prompts), pooled)


@dataclass(frozen=True)
class _NoCodec:
    """Stands where a family keeps its codec."""

    factor: int


def _sd3_family(cls: Any, transformer: Mapping[str, Any], factor: int) -> Any:
    codec: Codec = _NoCodec(factor)  # type: ignore[assignment]
    return cls(
        _NoPrompts(transformer),
        codec,
        dict(transformer),
        prediction="velocity",
        sigma_min=0.0,
        shift=1.0,
    )
