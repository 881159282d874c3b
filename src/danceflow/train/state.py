"""Rolling checkpoints: everything a training needs to go on bit for bit, written atomically."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from danceflow.errors import WeightsError
from danceflow.ops.files import atomic_file


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path``; the former file stays until the new one is whole."""
    # A file of Python's own: torch's writer does not say that a disk is full.
    with atomic_file(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the content of ``path``, or ``None`` if there is no such file.

    Raises:
        WeightsError: if the file is damaged; the message says how to start over.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own text advises to load the file unsafely.
        raise WeightsError(
            f"{path}: the checkpoint is damaged and cannot be read; delete it to start over"
        ) from error
    return content


class Ema:
    """Exponential moving average of a module's parameters.

    The decay rises from 0 with the number of updates, min(decay, (1 + n) / (10 + n)), so that
    early averages do not hold on to the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start at the module's values; ``decay`` 0 follows them exactly."""
        self.decay = decay
        self.num_updates = 0
        self.values = {
            name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's current values."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, param in module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(param, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters with the average."""
        for name, param in module.named_parameters():
            if name in self.values:
                param.copy_(self.values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return everything :meth:`load_state_dict` needs."""
        return {"num_updates": self.num_updates, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            WeightsError: if ``state`` averages other parameters.
        """
        if state["values"].keys() != self.values.keys():
            odd = sorted(state["values"].keys() ^ self.values.keys())
            raise WeightsError(f"the saved average is of another network: first {odd[0]}")
        self.num_updates = int(state["num_updates"])
        for name, value in state["values"].items():
            self.values[name].copy_(value)
