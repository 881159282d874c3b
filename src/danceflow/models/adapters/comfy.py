"""An adapter under the names that ComfyUI reads.

They begin with ``diffusion_model.`` and are those of a model's original code, where layers are
joined that diffusers keeps apart. Of joined layers the factors lie side by side: A below A, and B
on the diagonal, of the ranks' sum. ComfyUI also reads diffusers' own names of some models.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from danceflow.errors import WeightsError

PREFIX = "diffusion_model."

Pairs = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Original:
    """A layer of the original code.

    Attributes:
        modules: those of diffusers that it joins, in the order of its rows.
        swaps_halves: whether the two halves of its rows change places.
    """

    modules: tuple[str, ...]
    swaps_halves: bool = False


def comfy_tensors(pairs: Pairs, names: Mapping[str, Original]) -> dict[str, Tensor]:
    """Return the tensors of a file for ComfyUI, whose updates are B A without a further scale.

    Args:
        pairs: A [rank, in, ...] and B [out, rank, ...] by diffusers' module.
        names: the layers of the original code by name; empty: ComfyUI reads diffusers' names.

    Raises:
        WeightsError: a module is in no layer, or a joined layer is changed in part.
    """
    layers = names or {module: Original((module,)) for module in pairs}
    left = dict(pairs)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        found = [left.pop(module) for module in layer.modules if module in left]
        if not found:
            continue
        if len(found) != len(layer.modules):
            raise WeightsError(
                f"the adapter changes {len(found)} of the {len(layer.modules)} modules that "
                f"ComfyUI keeps in one layer, {name}: {', '.join(layer.modules)}"
            )
        down = torch.cat([a.float() for a, _ in found])
        up = torch.block_diag(*(b.float().flatten(1) for _, b in found))
        if layer.swaps_halves:
            up = torch.cat(up.chunk(2)[::-1])
        up = up.reshape(*up.shape, *(1,) * (down.ndim - 2))
        tensors[f"{PREFIX}{name}.lora_A.weight"] = down.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = up.contiguous()
    if left:
        raise WeightsError(f"ComfyUI has no name for {min(left)}, which the adapter changes")
    return tensors
