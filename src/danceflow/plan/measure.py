"""A transformer without weights: built on torch's ``meta`` device, counted module by module.

What a module costs depends on how many rows it sees. Networks have up to three streams of tokens:
the family's layout tells by a linear or convolution module's name which one it is on.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.family import family_class, layout_of
from danceflow.models.layout import Rules, Stream
from danceflow.plan.network import Attention, Linear, Network
from danceflow.train.optim import is_matrix


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
            backbone, targets = cls.bare_backbone(transformer, factor, edits=edits)
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
    layout = layout_of(family)
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
                    stream=_stream(layout.streams, name),
                    block=block_of(name),
                    is_target=any(f".{name}".endswith(f".{end}") for end in targets),
                    is_convolution=isinstance(module, nn.Conv2d),
                )
            )
    for name, module in backbone.named_modules():
        for pattern, stream in layout.attention:
            if re.fullmatch(pattern, name):
                first = next(m for m in module.modules() if isinstance(m, nn.Linear))
                block = block_of(name)
                assert block is not None
                attentions.append(Attention(stream, first.in_features, block))
    return Network(
        parameters=sum(p.numel() for p in backbone.parameters()),
        kept=layout.kept[edits],
        buffers=sum(b.numel() for b in backbone.buffers()),
        matrix_parameters=sum(p.numel() for p in backbone.parameters() if is_matrix(p.shape)),
        linears=tuple(linears),
        attentions=tuple(attentions),
        blocks={
            f"{name}.{index}": sum(p.numel() for p in block.parameters())
            for name in names
            for index, block in enumerate(backbone.get_submodule(name).children())
        },
    )


def _stream(rules: Rules, name: str) -> Stream:
    for pattern, stream in rules:
        if re.fullmatch(pattern, name):
            return stream
    raise WeightsError(f"module {name!r}: it is not known which tokens it sees")


def _block_finder(lists: set[str]) -> Callable[[str], str | None]:
    def block_of(name: str) -> str | None:
        first, _, rest = name.partition(".")
        return f"{first}.{rest.partition('.')[0]}" if first in lists else None

    return block_of
