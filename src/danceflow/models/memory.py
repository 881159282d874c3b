"""How networks are held in memory: dtype, bits, offloading, recomputation, compiled blocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import Condition, VelocityField
from danceflow.models.quantised import Base, filled, quantised

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.params.sections import RunParams

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MOST_VARIANTS = 64
"""Of a compiled block: every adapter, gradient or none and image size is one. The usual 8 are soon
used up, and torch then runs the block uncompiled without an error."""


@dataclass(frozen=True)
class Memory:
    """How the frozen networks of a run are held.

    Attributes:
        device: where they compute.
        dtype: of their weights and activations; adapters stay float32.
        offload: what teachers with weights of their own do while they are not asked: ``none``,
            stay; ``teachers``, wait in main memory as a whole; ``blocks``, come block by block.
        compile: whether the repeated blocks are compiled.
        base: how the one network is held that adapters stand on: ``float`` in the dtype, ``int8``
            or ``nf4`` with fewer bits in its blocks.
    """

    device: str = "cpu"
    dtype: str = "float32"
    offload: Literal["none", "teachers", "blocks"] = "none"
    compile: bool = False
    base: Base = "float"

    def load(
        self, family: "ModelFamily", folder: Path, *, waits: bool = False, shared: bool = False
    ) -> nn.Module:
        """Return the network saved in ``folder``, frozen, where and as it is held.

        Args:
            family: of the network.
            folder: of a whole network, in diffusers' format.
            waits: whether it is a teacher with weights of its own, which may be offloaded.
            shared: whether adapters stand on it; it is quantised if that is asked for.

        Raises:
            WeightsError: if it cannot be read, or not held so.
        """
        if shared and self.base != "float":
            return self._quantised(family, family.stored_weights(folder), folder)
        if self.dtype == "float32":
            return self.place(family.load_backbone(folder), waits=waits)
        # Weights are cast one by one: a large network has no place in main memory as float32.
        weights, device = family.stored_weights(folder), "cpu" if waits else self.device
        network = filled(family.empty_backbone(), weights, DTYPES[self.dtype], device, folder)
        return self.place(network, waits=waits)

    def base_of(self, family: "ModelFamily", backbone: nn.Module) -> nn.Module:
        """Return a network of float32 weights in main memory as one that adapters stand on."""
        if self.base == "float":
            return self.place(backbone)
        return self._quantised(family, backbone.state_dict(), "the student's start")

    def _quantised(
        self, family: "ModelFamily", weights: Mapping[str, Tensor], place: Path | str
    ) -> nn.Module:
        network, dtype = family.empty_backbone(), DTYPES[self.dtype]
        return self.compiled(quantised(network, weights, self.base, dtype, self.device, place))

    def place(self, backbone: nn.Module, *, waits: bool = False) -> nn.Module:
        """Return a frozen ``backbone`` where and as it is held.

        Args:
            backbone: changed in place.
            waits: whether it is a teacher with weights of its own, which may be offloaded.

        Raises:
            WeightsError: if blocks are to be offloaded and the network has none.
        """
        backbone.eval().requires_grad_(False)
        if self.dtype != "float32":
            backbone.to(DTYPES[self.dtype])
        offload = self.offload if waits else "none"
        if offload == "blocks":
            _offload_blocks(backbone, self.device)
        elif offload == "none":
            backbone.to(self.device)
        return self.compiled(backbone)

    def compiled(self, backbone: nn.Module) -> nn.Module:
        """Return ``backbone``, its repeated blocks compiled in place if that is asked for."""
        if self.compile:
            compile_blocks(backbone)
        return backbone

    def field(self, field: VelocityField, backbone: nn.Module, *, waits: bool) -> VelocityField:
        """Return ``field`` of a placed ``backbone``; it brings the weights when it is asked."""
        if waits and self.offload == "teachers":
            return WaitingField(field, backbone, self.device)
        return field


def memory_of(run: "RunParams") -> Memory:
    """Return how the ``run`` section asks for networks to be held."""
    return Memory(run.device, run.dtype, run.offload, run.compile, run.base)


def exported_memory(run: "RunParams") -> Memory:
    """Return the same for students that are scored: what is exported stands on no fewer bits."""
    return replace(memory_of(run), base="float")


class WaitingField:
    """A field whose network waits in main memory and is on the device for one call at a time."""

    def __init__(self, field: VelocityField, backbone: nn.Module, device: str) -> None:
        """Wrap ``field``, the field of ``backbone``, which computes on ``device``."""
        self.field = field
        self.backbone = backbone
        self.device = device

    @torch.no_grad()
    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, [B, C, H, W] float32, without gradient."""
        self.backbone.to(self.device)
        try:
            return self.field(z_BCHW, sigma_B, condition)
        finally:
            self.backbone.to("cpu")


def _offload_blocks(backbone: nn.Module, device: str) -> None:
    try:
        backbone.enable_group_offload(  # type: ignore[operator]
            onload_device=torch.device(device),
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
        )
    except (AttributeError, ValueError) as error:
        raise WeightsError(
            f"{type(backbone).__name__} cannot be offloaded by blocks: {error}"
        ) from error


def compile_blocks(backbone: nn.Module, **options: Any) -> None:
    """Compile the repeated blocks of a network, the members of its lists, in place.

    Args:
        backbone: the network.
        **options: of ``torch.compile``.

    Raises:
        WeightsError: if the network has no list of blocks.
    """
    lists = [child for child in backbone.children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise WeightsError(f"{type(backbone).__name__} has no repeated blocks to compile")
    for block in (block for blocks in lists for block in blocks):
        block.compile(recompile_limit=_MOST_VARIANTS, **options)


def recompute_activations(backbone: nn.Module) -> None:
    """Make a diffusers network compute activations again in its backward pass.

    Switching adapters between forward and backward then changes gradients: teachers on the same
    network are asked before the student.

    Raises:
        WeightsError: if the network cannot.
    """
    enable: Callable[[], None] | None = getattr(backbone, "enable_gradient_checkpointing", None)
    if enable is None or not getattr(backbone, "_supports_gradient_checkpointing", False):
        raise WeightsError(f"{type(backbone).__name__} has no activation checkpointing")
    enable()
