"""What a computation allocates, by dtype."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocated(TorchDispatchMode):
    """Counts the bytes of new tensors by dtype; a view of a tensor that was there is none."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.seen = {tensor.data_ptr() for tensor in module.state_dict().values()}
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.data_ptr() not in self.seen:
                self.seen.add(tensor.data_ptr())
                self.made.append(tensor)
        return out

    def num_bytes(self, dtype: torch.dtype) -> int:
        return sum(t.numel() * t.element_size() for t in self.made if t.dtype == dtype)
