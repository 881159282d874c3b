"""LoRA adapters: one frozen base, many adapters, in diffusers' own file format.

peft changes ``requires_grad`` whenever an adapter is switched, and a switch between a forward pass
and its backward pass corrupts gradients under activation checkpointing. So the student's adapter
is the one that stays active; every other is switched to for one call without gradient, and
everything is put back as it was.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import Condition, normal, seed_for
from danceflow.models.adapters.files import (
    ADAPTER_FILE,
    PREFIX,
    AdapterFile,
    Translate,
    adapter_path,
    read_adapter,
)
from danceflow.models.adapters.kinds import LORA
from danceflow.models.adapters.scales import METADATA
from danceflow.models.family import ModelFamily
from danceflow.models.weights import cast_copy
from danceflow.ops.files import atomic_file

__all__ = [
    "ADAPTER_FILE",
    "STUDENT",
    "AdapterField",
    "AdapterReport",
    "adapter_names",
    "add_adapter",
    "add_student_adapter",
    "load_adapter",
    "merge_adapter",
    "merged_network",
    "plain_copy",
    "read_adapter_for",
    "save_adapter",
]

STUDENT = "student"


@dataclass(frozen=True)
class AdapterReport:
    """What a loaded adapter changes.

    Attributes:
        name: the adapter's name in the backbone.
        modules: the names of the backbone's modules it changes; every tensor of the file is used.
        rank: the rank of most of them.
        alpha: their updates are scaled by alpha / rank.
        layout: whose spelling the file had: ``diffusers``, ``peft`` or ``kohya``.
        source: where alpha was found, nothing if no place says it.
        num_candidates: linear and convolution modules that the backbone has.
        kind: LoRA, or what was made factors of a LoRA or merged.
    """

    name: str
    modules: tuple[str, ...]
    rank: int
    alpha: float
    layout: str
    source: str
    num_candidates: int
    kind: str = LORA

    def __str__(self) -> str:
        """Return one line for a log."""
        if self.kind == LORA:
            said = (
                f"said by {self.source}" if self.source else "no place says it, so it is the rank"
            )
            layout, size = self.layout, f"rank {self.rank}, alpha {self.alpha:g} ({said})"
        else:
            strength = self.source or "no place, so it is 1"
            layout = f"{self.kind}, {self.layout}"
            size = f"rank {self.rank} as a LoRA, strength said by {strength}"
        matched = f"{len(self.modules)} of {self.num_candidates} modules"
        return f"adapter {self.name!r} ({layout}): {matched}, {size}"


def add_student_adapter(
    family: ModelFamily,
    backbone: nn.Module,
    rank: int,
    alpha: float,
    seed: int,
    start: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> list[nn.Parameter]:
    """Return the trainable parameters of a new adapter ``student``; all others are frozen.

    The adapter starts at zero: its factors are A ~ N(0, 1/rank^2), a function of (seed, module)
    alone, and B = 0. They are float32 whatever the backbone's dtype is.

    Args:
        family: names the modules to adapt.
        backbone: the network, changed in place; adapters it has stay as they are, inactive.
        rank: width of the factors.
        alpha: scale of the update, alpha / rank * B A.
        seed: decides A.
        start: factors by module, at most ``rank`` wide, whose updates B A the adapter starts with;
            the rest of the width starts at zero.

    Raises:
        WeightsError: if the backbone has none of the family's target modules.
    """
    ends, start = family.adapter_targets, start or {}
    targets = [
        n
        for n, _ in _plain_modules(backbone)
        if n in start or any(f".{n}".endswith(f".{e}") for e in ends)
    ]
    if not targets:
        raise WeightsError(f"no module of {type(backbone).__name__} ends in {', '.join(ends)}")
    backbone.requires_grad_(False)
    layers = _inject(backbone, STUDENT, dict.fromkeys(targets, rank), alpha)
    for module, layer in layers.items():
        down, up = _factors(layer, STUDENT)
        drawn = normal(down.shape, [seed_for(seed, f"adapter/{module}", 0, 0)])[0] / rank
        zero = torch.zeros(up.shape)
        if module in start:
            first, second = start[module]
            drawn[: len(first)] = first
            zero[:, : second.shape[1]] = second * (rank / alpha)
        _set(down, drawn)
        _set(up, zero)
    return [factor for layer in layers.values() for factor in _factors(layer, STUDENT)]


def save_adapter(
    backbone: nn.Module,
    folder: Path,
    name: str = STUDENT,
    num_inputs: Mapping[str, int] | None = None,
) -> Path:
    """Return the file ``folder / ADAPTER_FILE``, which stock pipelines load.

    Args:
        backbone: the network.
        folder: where to.
        name: of the adapter.
        num_inputs: modules of which only so many input channels are kept, for a network that has
            no others; without them an adapter gives what it gives for zeros.

    Raises:
        WeightsError: if ``backbone`` has no adapter ``name``.
    """
    from safetensors.torch import save_file

    layers = _layers_with(backbone, name)
    ranks = {module: int(layer.r[name]) for module, layer in layers.items()}
    alpha = float(next(iter(layers.values())).lora_alpha[name])
    config = _config(ranks, alpha)
    settings = {f"{PREFIX}{key}": value for key, value in config.items() if value}
    tensors = {
        f"{PREFIX}{module}.lora_{letter}.weight": factor.detach().float().cpu().contiguous()
        for module, layer in layers.items()
        for letter, factor in zip("AB", _factors(layer, name), strict=True)
    }
    for module, count in (num_inputs or {}).items():
        key = f"{PREFIX}{module}.lora_A.weight"
        if key in tensors:
            tensors[key] = tensors[key][:, :count].contiguous()
    with atomic_file(folder / ADAPTER_FILE) as partial:
        # One entry: safetensors writes several in no fixed order, and the same adapter must give
        # the same bytes.
        save_file(tensors, partial, {METADATA: json.dumps(settings)})
    return folder / ADAPTER_FILE


def read_adapter_for(
    backbone: nn.Module, path: Path, translate: Translate | None = None
) -> AdapterFile:
    """Return a saved adapter after every tensor of its file was found to fit ``backbone``.

    Args:
        backbone: the network; it is not changed.
        path: a safetensors file in diffusers', PEFT's or Kohya's spelling, or its folder.
        translate: see ``adapter_files.read_adapter``.

    Raises:
        WeightsError: if the file is missing or damaged, a tensor belongs to no module of the
            backbone or has another shape, or the settings are not understood.
    """
    modules = dict(_plain_modules(backbone))
    return read_adapter(adapter_path(path), modules, type(backbone).__name__, translate)


def load_adapter(
    backbone: nn.Module, path: Path, name: str, translate: Translate | None = None
) -> AdapterReport:
    """Add a saved adapter to ``backbone``, frozen and inactive, and return what it changes.

    Nothing is changed unless every tensor of the file fits. A file that says nothing of its scale
    has alpha = rank, as in diffusers.

    Args:
        backbone: the network, changed in place.
        path: see :func:`read_adapter_for`.
        name: what the adapter is called from now on.
        translate: see :func:`read_adapter_for`.

    Raises:
        WeightsError: if the file does not fit, or the name is taken.
    """
    if name in adapter_names(backbone):
        raise WeightsError(f"{path}: the network has an adapter {name!r} already")
    return add_adapter(backbone, read_adapter_for(backbone, path, translate), name)


def add_adapter(backbone: nn.Module, file: AdapterFile, name: str) -> AdapterReport:
    """Add an adapter that fits ``backbone``, frozen and inactive, and return what it changes.

    Raises:
        WeightsError: it has DoRA's magnitudes, which no product of factors holds.
    """
    if file.lengths:
        raise WeightsError(
            f"adapter {name!r} is a {file.kind}, which changes every weight's length: it can be "
            "merged into a network, and is no adapter here"
        )
    ranks = {module: down.shape[0] for module, (down, _) in file.pairs.items()}
    with _as_before(backbone):
        for module, layer in _inject(backbone, name, ranks, file.alpha).items():
            for factor, value in zip(_factors(layer, name), file.pairs[module], strict=True):
                _set(factor, value)
                factor.requires_grad_(False)
    return report_of(backbone, file, name)


def report_of(backbone: nn.Module, file: AdapterFile, name: str) -> AdapterReport:
    """Return what an adapter that fits ``backbone`` changes."""
    num_candidates = len(dict(_plain_modules(backbone)))
    modules = tuple(sorted(file.pairs))
    return AdapterReport(
        name, modules, file.rank, file.alpha, file.layout, file.source, num_candidates, file.kind
    )


def merge_adapter(
    backbone: nn.Module, name: str = STUDENT, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return a plain copy of ``backbone`` with the adapter added to its weights.

    W + alpha / rank * B A, for every adapted module; ``backbone`` and its adapters stay as and
    where they are.

    Args:
        backbone: the network.
        name: of the adapter.
        dtype: of the copy; sums are float32.

    Raises:
        WeightsError: if ``backbone`` has no adapter ``name``.
    """
    return plain_copy(backbone, name, dtype)


def plain_copy(
    backbone: nn.Module, name: str | None, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return a copy of ``backbone`` without adapters, ``name`` added to its weights.

    The copy is made in main memory, tensor by tensor.

    Raises:
        WeightsError: if ``backbone`` has no such adapter; ``None`` adds none.
    """
    layers = {} if name is None else _layers_with(backbone, name)
    adapted = {id(layer.get_base_layer().weight): layer for layer in layers.values()}

    @torch.no_grad()
    def added(tensor: Tensor) -> Tensor:
        layer = adapted.get(id(tensor))
        if layer is None:
            return tensor
        total: Tensor = tensor.float() + layer.get_delta_weight(name)
        return total

    return _without_adapters(cast_copy(backbone, dtype, added))


def merged_network(
    backbone: nn.Module, file: AdapterFile, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return a copy of ``backbone`` without adapters, what ``file`` holds merged into its weights.

    W + U for the updates U = alpha / rank * B A, and m (W + U) / |W + U| where it has DoRA's
    magnitudes m. The copy is made in main memory, tensor by tensor; sums are float32.

    Args:
        backbone: the network; it stays as it is.
        file: an adapter that fits it.
        dtype: of the copy.
    """
    modules = dict(_plain_modules(backbone))
    changed = {id(modules[name].weight): name for name in file.pairs}

    @torch.no_grad()
    def merged(tensor: Tensor) -> Tensor:
        name = changed.get(id(tensor))
        if name is None:
            return tensor
        down, up = (factor.to(tensor.device, torch.float32) for factor in file.pairs[name])
        update = (file.alpha / file.rank * up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
        total: Tensor = tensor.float() + update
        if name not in file.lengths:
            return total
        lengths = file.lengths[name].to(total)
        axes = [axis for axis, length in enumerate(lengths.shape) if length == 1]
        if lengths.numel() == 1:
            axes = list(range(total.ndim))
        return total * (lengths / total.square().sum(axes, keepdim=True).sqrt())

    return _without_adapters(cast_copy(backbone, dtype, merged))


def _without_adapters(network: nn.Module) -> nn.Module:
    if adapter_names(network):
        network.unload_lora()  # type: ignore[operator]
    return network.requires_grad_(False)


def adapter_names(backbone: nn.Module) -> tuple[str, ...]:
    """Return the names of the adapters in ``backbone``, sorted."""
    return tuple(sorted({name for layer in _layers(backbone).values() for name in layer.lora_A}))


class AdapterField:
    """The field of one frozen base with one of its adapters, chosen anew for every call.

    Its velocities carry no gradient: it is for teachers that share the student's base.
    """

    def __init__(self, family: ModelFamily, backbone: nn.Module, adapter_name: str | None) -> None:
        """Join the base with an adapter.

        Args:
            family: gives the field of ``backbone``.
            backbone: the base with all its adapters.
            adapter_name: the adapter to use; ``None`` is the bare base.

        Raises:
            WeightsError: if ``backbone`` has no such adapter.
        """
        if adapter_name is not None:
            _layers_with(backbone, adapter_name)
        self.backbone = backbone
        self.adapter_name = adapter_name
        self.field = family.field(backbone)

    @torch.no_grad()
    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, [B, C, H, W] float32, without gradient."""
        with _active(self.backbone, self.adapter_name):
            return self.field(z_BCHW, sigma_B, condition)


@contextmanager
def _active(backbone: nn.Module, name: str | None) -> Iterator[None]:
    """Compute with one adapter, or with none, and leave the network as it was.

    PEFT's ``set_adapter`` visits every factor of every adapter, for ``requires_grad``: with many
    teachers on one base that would cost more than their network. Only the factors that compute are
    told here, as torch rounds otherwise where a weight needs no gradient.
    """
    layers = list(_layers(backbone).values())
    before = [layer._active_adapter for layer in layers]
    used = [
        factor for layer in layers if name in layer.lora_A for factor in _factors(layer, str(name))
    ]
    flags = [factor.requires_grad for factor in used]
    try:
        for layer in layers:
            layer._active_adapter = [] if name is None else [name]
        for factor in used:
            factor.requires_grad_(True)
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active
        for factor, flag in zip(used, flags, strict=True):
            factor.requires_grad_(flag)


@contextmanager
def _as_before(backbone: nn.Module) -> Iterator[None]:
    """Put active adapters and ``requires_grad`` back as they were."""
    flags = [(param, param.requires_grad) for param in backbone.parameters()]
    active = {name: layer.active_adapters for name, layer in _layers(backbone).items()}
    try:
        yield
    finally:
        for name, layer in _layers(backbone).items():
            layer.set_adapter(active.get(name, []))
        for param, flag in flags:
            param.requires_grad_(flag)


def _layers(backbone: nn.Module) -> dict[str, Any]:
    """Return the adapted modules of ``backbone`` by name."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in backbone.named_modules() if isinstance(m, LoraLayer)}


def _layers_with(backbone: nn.Module, name: str) -> dict[str, Any]:
    """Return the modules that the adapter ``name`` changes; there must be some."""
    layers = {module: la for module, la in _layers(backbone).items() if name in la.lora_A}
    if not layers:
        known = ", ".join(adapter_names(backbone)) or "none"
        raise WeightsError(f"the network has no adapter {name!r}; known are {known}")
    return layers


def _plain_modules(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield linear and convolution modules by the name they have without adapters."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and ".lora_" not in name:
            yield name.removesuffix(".base_layer"), module


def _factors(layer: Any, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A [rank, in, ...] and B [out, rank, ...] of an adapted module."""
    return layer.lora_A[name].weight, layer.lora_B[name].weight


def _set(factor: nn.Parameter, value: Tensor) -> None:
    factor.data = value.to(factor.device, torch.float32)


def _common(ranks: Mapping[str, int]) -> int:
    return Counter(ranks.values()).most_common(1)[0][0]


def _config(ranks: Mapping[str, int], alpha: float) -> dict[str, Any]:
    """Return the arguments of ``peft.LoraConfig`` as plain data; alpha / rank is one number."""
    rank = _common(ranks)
    odd = {f"^{re.escape(module)}": r for module, r in sorted(ranks.items()) if r != rank}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": odd,
        "alpha_pattern": {module: alpha * r / rank for module, r in odd.items()},
        "target_modules": sorted(ranks),
    }


def _inject(
    backbone: nn.Module, name: str, ranks: Mapping[str, int], alpha: float
) -> dict[str, Any]:
    """Add an adapter with arbitrary weights and return the modules it changes, by name."""
    from peft import LoraConfig

    config = LoraConfig(**_config(ranks, alpha), init_lora_weights=False)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # Several adapters on one base are meant here.
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        backbone.add_adapter(config, name)  # type: ignore[operator]
    return _layers_with(backbone, name)
