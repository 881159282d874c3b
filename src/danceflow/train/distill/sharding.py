"""A student that no device holds beside its optimiser: FSDP2, parameter by parameter.

Weights, gradients, moments and average lie in shards, one per process. A block's weights come
together for its own forward and backward pass alone. So every process must make as many passes as
any other: ``Together`` sees to it. Checkpoints are written in shards, and read by any number of
processes (torch.distributed.checkpoint).
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from danceflow.errors import ConfigError
from danceflow.fields import Condition, VelocityField
from danceflow.ops.files import remove
from danceflow.ops.group import Group
from danceflow.train.state import Ema

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.params.sections import DistillParams

SHARDED_FROM = 6_000_000_000
"""Parameters from which on a student whose weights are all trained is sharded."""


def is_sharded(backbone: nn.Module, config: "DistillParams", group: Group) -> bool:
    """Return whether a student whose weights are all trained is sharded.

    Raises:
        ConfigError: it is, and the optimiser needs whole matrices.
    """
    count = sum(param.numel() for param in backbone.parameters())
    if group.size == 1 or count < SHARDED_FROM:
        return False
    if config.optimizer == "muon":
        raise ConfigError(
            f"distill.optimizer: muon needs whole matrices, but a student of {count:,} parameters "
            "lies in shards; adamw does not"
        )
    return True


def shard(backbone: nn.Module, device: torch.device, group: Group) -> None:
    """Shard a network in place, block by block; it moves to ``device``, a shard at a time.

    Its gradients are sums over the processes, not means.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (group.size,))
    lists = [child for child in backbone.children() if isinstance(child, nn.ModuleList)]
    for module in (*(block for blocks in lists for block in blocks), backbone):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)  # so names mean shards
    for module in backbone.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo knows sums alone, and so does what is divided by 1
            module.set_force_sum_reduction_for_comms(True)


class Together:
    """A field of a sharded network: a pass of one process is a pass of all.

    A process that has no more to ask answers nothing, with a state of its own, as long as others
    ask: ``finish``.
    """

    def __init__(
        self, field: VelocityField, filler: tuple[Tensor, Tensor, Condition], group: Group
    ) -> None:
        """Wrap a field; ``filler`` is a single state to ask it at when there is nothing to ask."""
        self.field, self.filler, self.group = field, filler, group

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the field's velocity; every process must ask, or ``finish``, at the same time."""
        self._count(asks=True)
        return self.field(z_BCHW, sigma_B, condition)

    def finish(self, act: Callable[[], None] | None = None) -> None:
        """Go along until no process asks any more.

        Args:
            act: does what the others do with each pass; None: they need no gradient.
        """
        while self._count(asks=False):
            if act is not None:
                act()
            else:
                with torch.no_grad():
                    self.field(*self.filler)

    def nothing(self) -> Tensor:
        """Return a loss of zero whose backward pass is one as of any other loss."""
        return (self.field(*self.filler) * 0.0).sum()

    def _count(self, *, asks: bool) -> bool:
        count = torch.tensor([float(asks)], device=self.filler[0].device)
        self.group.add(count)
        return bool(count > 0)


def like(value: Tensor, param: Tensor) -> Tensor:
    """Return a whole tensor as ``param`` lies: in shards, where that does."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(param.device)
    if not isinstance(param, DTensor) or value.shape != param.shape:
        return value
    return distribute_tensor(value, param.device_mesh, param.placements)


def whole(value: Tensor) -> Tensor:
    """Return a tensor in one piece; all processes must ask for it."""
    from torch.distributed.tensor import DTensor

    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_network(backbone: nn.Module, family: "ModelFamily", group: Group) -> nn.Module:
    """Return a sharded network in one piece, in main memory; on the main process alone."""
    state: dict[str, Tensor] = {}
    for name, value in backbone.state_dict().items():
        full = whole(value)
        if group.is_main:
            state[name] = full.cpu()
    if not group.is_main:
        return backbone
    plain = family.new_backbone(0)
    plain.load_state_dict(state)
    return plain


def save_shards(
    work: Path,
    step: int,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
) -> str:
    """Return the name of a new folder in ``work`` in which every process has written its shards."""
    from torch.distributed.checkpoint.state_dict_saver import save

    name = f"shards-{step:08d}"
    save(_tensors(backbone, optimizer, ema), checkpoint_id=work / name)
    return name


def remove_other_shards(work: Path, name: str) -> None:
    """Remove the folders of shards that are not ``name``."""
    for folder in work.glob("shards-*"):
        if folder.name != name:
            remove(folder)


def load_shards(
    folder: Path,
    backbone: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    groups: Any,
) -> None:
    """Go on where ``save_shards`` was called, by however many processes.

    Args:
        folder: what it has written.
        backbone: the network, sharded or not.
        optimizer: of its parameters.
        ema: its average.
        groups: the optimiser's settings.
    """
    from torch.distributed import is_initialized
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    params = [param for group in optimizer.param_groups for param in group["params"]]
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    moments: dict[int, dict[str, Tensor]] = {}
    for key, entry in found.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer" and isinstance(entry, TensorStorageMetadata):
            number, _, name = rest.partition("/")
            param = params[int(number)]
            empty = (
                torch.zeros_like(param) if entry.size == param.shape else torch.zeros(entry.size)
            )
            moments.setdefault(int(number), {})[name] = empty.detach()
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    tensors = _tensors(backbone, optimizer, ema)
    with warnings.catch_warnings():  # that a single process reads is meant
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(tensors, checkpoint_id=folder, no_dist=not is_initialized())


def load_whole(
    saved: Mapping[str, Any], backbone: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema
) -> None:
    """Go on, in shards, where a checkpoint of one piece was written."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    named = dict(backbone.named_parameters())
    with torch.no_grad():
        for name, value in saved["student"].items():
            if name in named:
                named[name].copy_(like(value, named[name]))
    state = {
        int(number): {name: like(value, params[int(number)]) for name, value in entry.items()}
        for number, entry in saved["optimizer"]["state"].items()
    }
    optimizer.load_state_dict({**saved["optimizer"], "state": state})
    values = {name: like(value, named[name]) for name, value in saved["ema"]["values"].items()}
    ema.load_state_dict({**saved["ema"], "values": values})


def _tensors(backbone: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> dict[str, Tensor]:
    """Return all that lies in shards, by name."""
    student = {
        f"student/{n}": p.detach() for n, p in backbone.named_parameters() if n in ema.values
    }
    average = {f"average/{name}": value for name, value in ema.values.items()}
    moments = {
        f"optimizer/{number}/{name}": value
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    return student | average | moments
