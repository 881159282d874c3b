"""Rolling checkpoints: everything a training needs to go on bit for bit, written atomically.

A file is safetensors: tensors, and beside them in its head plain data as JSON and the SHA-256 of
both. Nothing is unpickled, and a byte that changed on the disk is seen.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.ops.files import atomic_file

_LOG = logging.getLogger(__name__)


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path``; the former file stays until the new one is whole.

    Args:
        path: the file.
        content: tensors and plain data, in mappings, lists and tuples of any depth.

    Raises:
        TypeError: something else is in it.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_packed(content, tensors))
    head = {"content": text, "sha256": _digest(text, tensors)}
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata=head)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the content of ``path``, or ``None`` if there is no such file, or a damaged one.

    Tensors have memory of their own. In the mapped file they begin wherever its head ends, which
    differs from one checkpoint to the next, and products of matrices are rounded otherwise where
    memory does not begin at a multiple of 64 bytes.

    A damaged file is put aside and told: what it held is computed again, with the same result.
    """
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if _digest(head["content"], tensors) != head["sha256"]:
            raise ValueError("its SHA-256 differs")
        content: dict[str, Any] = _unpacked(json.loads(head["content"]), tensors)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        _LOG.warning(
            "%s: the checkpoint is damaged (%s): put aside as %s; what it held is computed again",
            path,
            error,
            aside.name,
        )
        return None
    return content


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON can hold it; its tensors go to ``tensors``."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = _apart(value, tensors)
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(item, tensors) for item in value]}
    return value


def _apart(value: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor as it is written: in main memory, in one piece, sharing it with no other."""
    value = value.detach().cpu().contiguous()
    places = {known.untyped_storage().data_ptr() for known in tensors.values()}
    return value.clone() if value.untyped_storage().data_ptr() in places else value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "map":
        return {key: _unpacked(item, tensors) for key, item in inner}
    items = [_unpacked(item, tensors) for item in inner]
    return items if kind == "list" else tuple(items)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of plain data and tensors, 64 hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
