"""Frozen networks that are read when they are first asked, and need not be kept.

What a training reads from its caches it never asks an encoder for, and so never loads one.
"""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.weights import (
    CONFIG_FILE,
    INDEX_FILE,
    holds_network,
    load_pretrained,
    read_json,
    read_tensors,
    require_same_tensors,
    save_half,
    weight_files,
)

FROZEN_FILE = "danceflow_family.json"
"""What a family writes beside its frozen parts."""


class Part:
    """A frozen network in a folder, or one that is in memory from the start."""

    def __init__(
        self, read: Callable[[torch.dtype], nn.Module], folder: Path | None = None
    ) -> None:
        """Take what reads the network; nothing is read yet.

        Args:
            read: returns the network, as a dtype if it can.
            folder: where it lies; ``None``: it is in memory, and is never given back.
        """
        self._read, self.folder = read, folder
        self._device, self._dtype = torch.device("cpu"), torch.float32
        self._network: nn.Module | None = None

    @property
    def network(self) -> Any:
        """The network, frozen, where and as it was last asked for.

        Raises:
            WeightsError: if its weights are missing or damaged.
        """
        if self._network is None:
            network = self._read(self._dtype).eval().requires_grad_(False)
            self._network = network.to(self._device, self._dtype)
        return self._network

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self._device

    @property
    def is_read(self) -> bool:
        """Whether the network is in memory."""
        return self._network is not None

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> None:
        """Keep the network on ``device`` from now on, also as ``dtype`` if one is given."""
        self._device, self._dtype = torch.device(device), dtype or self._dtype
        if self._network is not None:
            self._network.to(self._device, self._dtype)

    def release(self) -> None:
        """Give the network's memory back; it is read again if it is asked again."""
        if self.folder is not None:
            self._network = None

    def save(self, folder: Path) -> None:
        """Write the network to ``folder`` as float16; files that were written so are copied."""
        if self.folder is not None and (self.folder.parent / FROZEN_FILE).is_file():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
            return
        save_half(self.network if self.folder is None else self._read(torch.float32), folder)


def held(network: nn.Module) -> Part:
    """Return a part whose network is in memory."""
    return Part(lambda _: network)


def pretrained_part(network_class: Any, folder: Path) -> Part:
    """Return the part of a ``transformers`` model in its own folder, as float32 until it is cast.

    Raises:
        WeightsError: if there is no such folder; its weights are read later.
    """
    if not holds_network(folder):
        raise WeightsError(f"{folder / CONFIG_FILE}: this file of the model is missing")
    return Part(lambda dtype: load_pretrained(network_class, folder, dtype=dtype), folder)


def half_of(
    network_class: Any, folder: Path, dropped: Collection[str], _dtype: torch.dtype
) -> nn.Module:
    """Return an autoencoder from its folder as float32, without the modules ``dropped``.

    Their weights are not read.

    Raises:
        WeightsError: if the others are missing, damaged or of another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights():
        network: Any = network_class.from_config(read_json(folder / CONFIG_FILE))
    for name in dropped:
        if getattr(network, name, None) is not None:
            setattr(network, name, nn.Identity())
    state = _read(folder, lambda name: name.partition(".")[0] not in dropped)
    network._fix_state_dict_keys_on_load(state)
    require_same_tensors(network.state_dict(), state, folder)
    floats = {n: v.float() if v.is_floating_point() else v for n, v in state.items()}
    network.load_state_dict(floats, assign=True)
    return network  # type: ignore[no-any-return]


def copy_network(source: Path, target: Path) -> None:
    """Copy a network of diffusers, its configuration and weights, and nothing that lies beside."""
    target.mkdir(parents=True, exist_ok=True)
    index = [INDEX_FILE] if (source / INDEX_FILE).is_file() else []
    for name in (CONFIG_FILE, *index, *weight_files(source)):
        shutil.copyfile(source / name, target / name)


def _read(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return those tensors of a diffusers folder that are wanted."""
    return {
        name: value
        for file in weight_files(folder)
        for name, value in read_tensors(folder / file, wanted).items()
    }
