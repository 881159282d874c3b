"""A transformer without weights: built on torch's ``meta`` device, counted module by module.

What a module costs depends on how many rows it sees. Families of stock pipelines have two or three
streams of tokens, so every linear and convolution module is told by its name which one it is on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.codec import Codec
from danceflow.models.family import family_class
from danceflow.models.stock import StockFamily

Stream = Literal["image", "prompt", "vision", "all", "sample"]
ATTENTION_BACKWARD = 2.5
"""Cost of attention's backward pass in forward passes: five matrix products for two."""

_FULL, _ADAPTER, _ADAPTER_HALF = range(3)
# What a forward pass keeps for the backward pass, in units of the inputs and outputs of all linear
# modules that see tokens: of networks that are trained whole, of adapters on a float32 base, and of
# adapters on a half-precision base (beside the float32 copies that peft makes of their inputs).
# Measured on small networks of the families' own classes; tests/plan/test_network.py holds them.
_KEPT: Mapping[tuple[str, bool], tuple[float, float, float]] = {
    ("sd3", False): (1.48, 1.07, 1.03),
    ("sd3", True): (1.48, 1.07, 1.03),
    ("flux2", True): (1.58, 1.24, 1.16),
    ("qwen_image", False): (1.45, 1.06, 1.07),
    ("qwen_image", True): (1.45, 1.06, 1.07),
    ("zimage", False): (1.72, 1.17, 1.53),
    ("zimage", True): (1.93, 1.36, 1.72),  # every token has its own modulation
}
_ENDS = 2
"""Inputs of blocks that are kept in front of and behind them, when all else is computed again."""

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
    "sd3": ((r"transformer_blocks\.\d+\.attn", "all"), (r"transformer_blocks\.\d+\.attn2", "image")),
    "flux2": ((r"(single_)?transformer_blocks\.\d+\.attn", "all"),),
    "qwen_image": ((r"transformer_blocks\.\d+\.attn", "all"),),
    "zimage": (
        (r"noise_refiner\.\d+\.attention", "image"),
        (r"context_refiner\.\d+\.attention", "prompt"),
        (r"siglip_refiner\.\d+\.attention", "vision"),
        (r"layers\.\d+\.attention", "all"),
    ),
}


@dataclass(frozen=True)
class Tokens:
    """How many rows one state's evaluation has in each stream.

    Attributes:
        image: tokens of the state and, where the family lays it beside it, of the source.
        prompt: tokens of the prompt.
        vision: tokens of a vision encoder's features.
        sample: rows of what is computed once per state, such as the embedding of sigma.
    """

    image: int
    prompt: int
    vision: int = 0
    sample: int = 1

    def of(self, stream: Stream) -> int:
        """Return the rows of a stream."""
        if stream == "all":
            return self.image + self.prompt + self.vision
        return int(getattr(self, stream))


@dataclass(frozen=True)
class Linear:
    """A linear or convolution module.

    Attributes:
        name: in the network.
        fan_in: inputs per row; of a convolution, those of a whole patch.
        fan_out: outputs per row.
        stream: whose rows it sees.
        block: the member of a list of blocks that it belongs to, if any.
        is_target: whether the family's adapters change it.
        is_convolution: whether its adapter's factors are convolutions too.
    """

    name: str
    fan_in: int
    fan_out: int
    stream: Stream
    block: str | None
    is_target: bool
    is_convolution: bool


@dataclass(frozen=True)
class Attention:
    """An attention module: its stream, its width in features and its block."""

    stream: Stream
    width: int
    block: str


@dataclass(frozen=True)
class Network:
    """The sizes of a transformer.

    Attributes:
        family: its family's name.
        parameters: all of them.
        edits: whether it takes a source.
        buffers: elements of what is kept beside the parameters, such as a place table.
        matrix_parameters: those of two dimensions with both above 1, as Muon sorts them.
        linears: its linear and convolution modules.
        attentions: its attention modules.
        blocks: parameters of every repeated block.
    """

    family: str
    parameters: int
    edits: bool
    buffers: int
    matrix_parameters: int
    linears: tuple[Linear, ...]
    attentions: tuple[Attention, ...]
    blocks: Mapping[str, int]

    def forward_flops(self, tokens: Tokens, rank: int | None = None) -> float:
        """Return the floating-point operations of one forward pass of one state.

        Two per weight and row of every linear and convolution module, and 4 S^2 d for attention
        among S tokens of d features. Norms, activations and embeddings of places are left out.

        Args:
            tokens: of the state.
            rank: of an active adapter, if any.
        """
        return self._linear_flops(tokens, rank) + self._attention_flops(tokens)

    def training_flops(
        self, tokens: Tokens, rank: int | None = None, *, recomputed: bool = False
    ) -> float:
        """Return the floating-point operations of a forward and backward pass of one state.

        The backward pass takes the gradient by activations (as much as the forward pass) and by
        weights (as much again, but of an adapter only its own), and attention's, which costs
        ``ATTENTION_BACKWARD`` forward passes.

        Args:
            tokens: of the state.
            rank: of the trained adapter; ``None``: all weights are trained.
            recomputed: whether activations are computed again in the backward pass.
        """
        linear, attention = self._linear_flops(tokens, None), self._attention_flops(tokens)
        adapter = 0.0 if rank is None else self._linear_flops(tokens, rank) - linear
        trained = linear if rank is None else 2 * adapter
        forward = linear + adapter + attention
        backward = linear + trained + ATTENTION_BACKWARD * attention
        return forward + backward + (forward if recomputed else 0.0)

    def _linear_flops(self, tokens: Tokens, rank: int | None) -> float:
        total = 0
        for linear in self.linears:
            weights = linear.fan_in * linear.fan_out
            if rank is not None and linear.is_target:
                weights += rank * (linear.fan_in + linear.fan_out)
            total += 2 * weights * tokens.of(linear.stream)
        return float(total)

    def _attention_flops(self, tokens: Tokens) -> float:
        return float(sum(4 * a.width * tokens.of(a.stream) ** 2 for a in self.attentions))

    def activation_bytes(
        self, tokens: Tokens, num_bytes: int, rank: int | None = None, *, recomputed: bool = False
    ) -> float:
        """Return what one state's forward pass keeps in memory for the backward pass, in bytes.

        Args:
            tokens: of the state.
            num_bytes: of a number in the network's dtype.
            rank: of the trained adapter; ``None``: all weights are trained.
            recomputed: whether only the inputs of the blocks are kept, and one block is computed
                again at a time.
        """
        if not recomputed:
            return self._kept_bytes(self.linears, tokens, num_bytes, rank)
        streams = {attention.block: attention for attention in reversed(self.attentions)}
        inputs = [a.width * tokens.of(a.stream) for a in streams.values()]
        again = max(
            self._kept_bytes(
                [linear for linear in self.linears if linear.block == block],
                tokens,
                num_bytes,
                rank,
            )
            for block in streams
        )
        return num_bytes * (sum(inputs) + _ENDS * max(inputs)) + again

    def _kept_bytes(
        self, linears: Sequence[Linear], tokens: Tokens, num_bytes: int, rank: int | None
    ) -> float:
        seen = [(tokens.of(li.stream), li) for li in linears if li.stream != "sample"]
        unit = sum(rows * (li.fan_in + li.fan_out) for rows, li in seen)
        shares = _KEPT[self.family, self.edits]
        if rank is None:
            return shares[_FULL] * unit * num_bytes
        targets = [(rows, li) for rows, li in seen if li.is_target]
        factors = 4 * sum(rows * rank for rows, _ in targets)
        if num_bytes == 4:
            return shares[_ADAPTER] * unit * num_bytes + factors
        copies = 4 * sum(rows * li.fan_in for rows, li in targets)
        return shares[_ADAPTER_HALF] * unit * num_bytes + factors + copies

    def adapter_parameters(self, rank: int) -> int:
        """Return the parameters of a LoRA adapter of this rank on the family's targets."""
        return rank * sum(li.fan_in + li.fan_out for li in self.linears if li.is_target)

    def adapter_matrices(self, rank: int) -> int:
        """Return those of an adapter's parameters that are matrices, as Muon sorts them."""
        if rank == 1:
            return 0
        targets = (li for li in self.linears if li.is_target and not li.is_convolution)
        return rank * sum(li.fan_in + li.fan_out for li in targets)


def network_of(
    family: str, transformer: Mapping[str, Any], factor: int, *, edits: bool
) -> Network:
    """Return the sizes of a family's transformer; no weight is allocated.

    Args:
        family: its name.
        transformer: the arguments of its diffusers class.
        factor: image pixels per latent pixel, along a side.
        edits: whether it is to take a source, for a family whose networks are widened for that.

    Raises:
        WeightsError: unknown family, or arguments that its class does not take.
    """
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


def measured(
    family: str, backbone: nn.Module, targets: Sequence[str], *, edits: bool
) -> Network:
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
