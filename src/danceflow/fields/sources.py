"""Sources in a condition: latents beside the prompts, zeros for a row that has none.

A row may have several pictures: the first is ``source``, further ones are ``source_2`` and
``source_3``. A condition without a further one's tensor is one of rows that have none.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from danceflow.columns import SOURCE_COLUMNS
from danceflow.fields.field import Condition

SOURCES = SOURCE_COLUMNS
"""The names of the sources' latents among a condition's tensors."""
SOURCE = SOURCES[0]
"""The name of the first."""
MAX_SOURCES = len(SOURCES)
Sources = Tensor | Sequence[Tensor] | None
"""Pictures or latents of a batch: one for each row, or several, a tensor for each place."""


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


def as_sources(sources: Sources) -> tuple[Tensor, ...]:
    """Return the sources of a batch by place, a tensor each."""
    if sources is None:
        return ()
    return (sources,) if isinstance(sources, Tensor) else tuple(sources)


def rows_with_source(source_BCHW: Tensor) -> Tensor:
    """Return for every row whether it has a source, [B] bool."""
    return source_BCHW.flatten(1).any(dim=1)


def with_source(
    prompts: Mapping[str, Tensor],
    sources: Sources,
    shape: Sequence[int],
    *,
    takes_source: bool,
) -> Condition:
    """Return the condition of prompts and of the sources that are given or, if need be, missing.

    Args:
        prompts: their tensors, a row each.
        sources: their latents; ``None``: no row has one.
        shape: (C, H, W) of what stands for no source.
        takes_source: whether the model takes one, and its conditions have one always.
    """
    given = as_sources(sources)
    if not given and takes_source:
        first = next(iter(prompts.values()))
        given = (no_sources(len(first), shape, first.device),)
    return Condition({**prompts, **dict(zip(SOURCES, given, strict=False))})
