"""What a velocity field is, what conditions it, and fields made by wrapping fields."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from danceflow.columns import SOURCE_COLUMNS


@dataclass(frozen=True)
class Condition:
    """One batch of conditions.

    Attributes:
        tensors: by name; the first dimension of every tensor is the batch. Which names occur is
            the model family's matter (prompt embeddings, source latents, ...).
    """

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        """Raise ValueError when the tensors are missing or disagree about the batch size."""
        sizes = {name: tensor.shape[:1] for name, tensor in self.tensors.items()}
        if len(set(sizes.values())) != 1 or () in sizes.values():
            shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            raise ValueError(f"a condition needs tensors of one batch size, got {shapes}")

    @property
    def num_samples(self) -> int:
        """The batch size."""
        return next(iter(self.tensors.values())).shape[0]

    def select(self, index: Tensor | slice) -> "Condition":
        """Return the rows at a long or boolean index (a copy) or a slice (a view)."""
        if isinstance(index, slice):
            return Condition({name: tensor[index] for name, tensor in self.tensors.items()})
        return Condition(
            {name: tensor[index.to(tensor.device)] for name, tensor in self.tensors.items()}
        )

    def repeat(self, num_repeats: int) -> "Condition":
        """Return every row repeated in place: rows 0, 0, 1, 1, ... for two repeats."""
        if num_repeats == 1:
            return self
        return Condition(
            {
                name: tensor.repeat_interleave(num_repeats, dim=0)
                for name, tensor in self.tensors.items()
            }
        )

    @staticmethod
    def cat(parts: "Sequence[Condition]") -> "Condition":
        """Return the rows of all parts in order.

        Tensors [B, L, ...] whose L differs between parts (prompts of different lengths) are padded
        at the end with zeros to the longest; a mask padded so marks what is padding. A part
        without a further source's tensor has zeros there.

        Raises:
            ValueError: no parts, or parts whose tensors have different names or other shapes.
        """
        parts = _with_further_sources(parts)
        names = {tuple(sorted(part.tensors)) for part in parts}
        if len(names) != 1:
            raise ValueError(f"conditions with different tensors cannot be joined: {names}")
        return Condition(
            {name: _join(name, [part.tensors[name] for part in parts]) for name in parts[0].tensors}
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Condition":
        """Return the same condition on the given device.

        Args:
            device: where.
            non_blocking: whether a copy from pinned memory to a GPU may still be under way.
        """
        moved = {n: t.to(device, non_blocking=non_blocking) for n, t in self.tensors.items()}
        return Condition(moved)


def _with_further_sources(parts: Sequence[Condition]) -> Sequence[Condition]:
    """Return the parts, each with the further sources that any of them has."""
    found = {
        name: part.tensors[name].shape[1:]
        for name in SOURCE_COLUMNS[1:]
        for part in parts
        if name in part.tensors
    }
    filled = []
    for part in parts:
        missing = {
            name: next(iter(part.tensors.values())).new_zeros(
                part.num_samples, *shape, dtype=torch.float32
            )
            for name, shape in found.items()
            if name not in part.tensors
        }
        filled.append(Condition({**part.tensors, **missing}) if missing else part)
    return filled


def pad_length(tensor_BL: Tensor, length: int) -> Tensor:
    """Return a tensor [B, L, ...] with zeros (or False) behind its second dimension.

    Raises:
        ValueError: it is longer than ``length``.
    """
    missing = length - tensor_BL.shape[1]
    if missing < 0:
        raise ValueError(f"{tensor_BL.shape[1]} tokens do not fit into {length}")
    if missing == 0:
        return tensor_BL
    shape = (tensor_BL.shape[0], missing, *tensor_BL.shape[2:])
    return torch.cat([tensor_BL, tensor_BL.new_zeros(shape)], dim=1)


def _join(name: str, parts: Sequence[Tensor]) -> Tensor:
    if parts[0].ndim >= 2:
        if len({part.shape[2:] for part in parts}) != 1:
            shapes = [tuple(part.shape) for part in parts]
            raise ValueError(f"the tensors {name!r} of shapes {shapes} cannot be joined")
        longest = max(part.shape[1] for part in parts)
        parts = [pad_length(part, longest) for part in parts]
    return torch.cat(list(parts))


class VelocityField(Protocol):
    """v(z, sigma, condition) = dz/dsigma = eps - x, the one meaning of every network."""

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, of the shape and dtype of z (float32).

        Args:
            z_BCHW: states at noise level sigma, z = (1 - sigma) * x + sigma * eps.
            sigma_B: noise level of each sample, 1 pure noise, 0 clean, dtype of z.
            condition: one row per sample.
        """
        ...


def guidance_cost(scale: float) -> int:
    """Return the evaluations per state of a field that is guided with this scale."""
    return 1 if scale == 1.0 else 2


@dataclass(frozen=True)
class GuidedField:
    """Classifier-free guidance as a field: v_null + scale * (v_cond - v_null).

    Attributes:
        field: the field to guide.
        null: makes the unconditional condition of a batch.
        scale: 1 is the field itself, and costs one pass instead of two.
        rescale: what a family does to the guided velocity, given it and the conditional one.
    """

    field: VelocityField
    null: Callable[[Condition], Condition]
    scale: float
    rescale: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def cost(self) -> int:
        """Evaluations of the inner field per state."""
        return guidance_cost(self.scale)

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the guided velocity, from one batched call of 2B samples."""
        if self.scale == 1.0:
            return self.field(z_BCHW, sigma_B, condition)
        both = self.field(
            torch.cat([z_BCHW, z_BCHW]),
            torch.cat([sigma_B, sigma_B]),
            Condition.cat([condition, self.null(condition)]),
        )
        conditional, unconditional = both.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        return guided if self.rescale is None else self.rescale(guided, conditional)


class AverageField:
    """The mean of several fields at the same state (soft routing)."""

    def __init__(self, fields: Sequence[VelocityField]) -> None:
        """Keep the fields.

        Raises:
            ValueError: there are none.
        """
        if not fields:
            raise ValueError("there is no field to average")
        self.fields = tuple(fields)

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the mean of the fields' velocities."""
        share = 1.0 / len(self.fields)
        mean = torch.zeros_like(z_BCHW)
        for field in self.fields:
            mean = mean + share * field(z_BCHW, sigma_B, condition)
        return mean


class CountingField:
    """A field that counts its evaluations.

    Attributes:
        num_evaluations: samples evaluated so far, over all calls.
        num_calls: calls so far, of any batch size.
    """

    def __init__(self, field: VelocityField) -> None:
        """Wrap the field, with both counts at zero."""
        self.field = field
        self.num_evaluations = 0
        self.num_calls = 0

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the wrapped field's velocity and count the call."""
        self.num_evaluations += z_BCHW.shape[0]
        self.num_calls += 1
        return self.field(z_BCHW, sigma_B, condition)
