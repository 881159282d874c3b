"""Sources in a condition: latents beside the prompts, zeros for a row that has none."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from danceflow.fields.field import Condition

SOURCE = "source"
"""The name of the sources' latents among a condition's tensors."""


def no_sources(
    num_rows: int, shape: Sequence[int], device: torch.device | str | None = None
) -> Tensor:
    """Return what stands for no source, [B, C, H, W] float32.

    Args:
        num_rows: B.
        shape: (C, H, W) of a source's latents.
        device: where.
    """
    return torch.zeros(num_rows, *shape, device=device)


def rows_with_source(source_BCHW: Tensor) -> Tensor:
    """Return for every row whether it has a source, [B] bool."""
    return source_BCHW.flatten(1).any(dim=1)


def with_source(
    prompts: Mapping[str, Tensor],
    source_BCHW: Tensor | None,
    shape: Sequence[int],
    *,
    takes_source: bool,
) -> Condition:
    """Return the condition of prompts and of the sources that are given or, if need be, missing.

    Args:
        prompts: their tensors, a row each.
        source_BCHW: the sources' latents; ``None``: no row has one.
        shape: (C, H, W) of what stands for no source.
        takes_source: whether the model takes one, and its conditions have one always.
    """
    if source_BCHW is None and takes_source:
        first = next(iter(prompts.values()))
        source_BCHW = no_sources(len(first), shape, first.device)
    return Condition(prompts if source_BCHW is None else {**prompts, SOURCE: source_BCHW})
