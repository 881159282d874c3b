"""LoHa and LoKr as the factors of a LoRA, and DoRA's magnitudes beside them.

With w = a b for every factored matrix, and o for the product entry by entry:

| kind | update | as factors B A |
|---|---|---|
| LoHa | w1 o w2 | row by row and column by column products of the factors, r^2 wide |
| LoKr | kron(w1, w2) | kron(a1, a2) kron(b1, b2), as wide as the product of both widths |

Both are exact. DoRA gives what a LoRA (or one of these) makes of a weight another length, row by
row or column by column: W' = m (W + U) / |W + U|.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError

_PARTS = (
    *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
_KEY = re.compile(rf"(?P<module>.+)\.(?P<part>{'|'.join(_PARTS)})")
_MAGNITUDE = re.compile(
    r"(?P<module>.+)\.(?P<part>dora_scale|lora_magnitude_vector)(?:\.(?:\w+\.)?weight)?"
)

LORA, LOHA, LOKR, DORA = "LoRA", "LoHa", "LoKr", "DoRA"

Scale = Callable[[str, int | None, Tensor | None], float]
"""The scale of a file's module, from its name, its rank if factors tell it, and its alpha."""
Find = Callable[[str], nn.Module | None]
"""The module that a name of the file stands for, nothing where it is the original code's."""


@dataclass(frozen=True)
class Magnitudes:
    """DoRA's lengths by a file's name of a module.

    Attributes:
        lengths: one number per row, or one per column, in one dimension.
        by_row: whether they are rows' (outputs'), as PEFT has it, or columns' (inputs').
    """

    lengths: Mapping[str, Tensor]
    by_row: bool = True


def kinds_of(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Return which kinds of adapters a file's tensors are of."""
    found = set()
    for key in tensors:
        if match := _KEY.fullmatch(key):
            found.add(LOHA if match["part"].startswith("hada") else LOKR)
        elif _MAGNITUDE.fullmatch(key):
            found.add(DORA)
        elif ".lora_" in key:
            found.add(LORA)
    return frozenset(found)


def without_magnitudes(
    tensors: Mapping[str, Tensor], find: Find, place: str
) -> tuple[dict[str, Tensor], Magnitudes]:
    """Return a file's other tensors, and the magnitudes that were among them.

    PEFT's are rows'. Other writers have both: the shape tells, [out, 1, ...] or [1, in, ...].

    Raises:
        WeightsError: a magnitude has another shape, or some are rows' and some are columns'.
    """
    others, lengths, axes = {}, {}, {}
    for key, value in tensors.items():
        match = _MAGNITUDE.fullmatch(key)
        if match is None:
            others[key] = value
            continue
        name, by_row = match["module"], True
        if match["part"] == "dora_scale":
            sides = [side for side, length in enumerate(value.shape) if length > 1]
            if value.ndim < 2 or len(sides) > 1 or (sides and sides[0] > 1):
                raise WeightsError(
                    f"{place}: {key} has shape {tuple(value.shape)}, neither a length per row nor "
                    "one per column"
                )
            module = find(name)
            outputs = None if module is None else len(module.weight)  # type: ignore[arg-type]
            by_row = sides == [0] or (not sides and outputs == 1)
        if name in lengths:
            raise WeightsError(f"{place}: {name} has two magnitudes")
        lengths[name], axes[name] = value.float().flatten(), by_row
    if len(set(axes.values())) > 1:
        rows = next(name for name, by_row in axes.items() if by_row)
        columns = next(name for name, by_row in axes.items() if not by_row)
        raise WeightsError(
            f"{place}: the magnitudes of {rows} are rows', those of {columns} are columns'"
        )
    return others, Magnitudes(lengths, all(axes.values()))


def as_lora(
    tensors: Mapping[str, Tensor], scale_of: Scale, find: Find, place: str
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Return a file's tensors with LoHa's and LoKr's as factors of a LoRA, scales taken in.

    Args:
        tensors: of a file.
        scale_of: gives a module's scale.
        find: gives the module of a name.
        place: of the file, for messages.

    Returns:
        The tensors, and the names of the modules that were rewritten; their scale is 1.

    Raises:
        WeightsError: a module lacks a part, or its parts do not fit each other.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if match := _KEY.fullmatch(key):
            found.setdefault(match["module"], {})[match["part"]] = value.float()
    used = {f"{name}.{part}" for name, parts in found.items() for part in (*parts, "alpha")}
    rewritten = {key: value for key, value in tensors.items() if key not in used}
    for name, parts in found.items():
        try:
            up, down, rank = _loha(parts) if "hada_w1_a" in parts else _lokr(parts)
        except KeyError as error:
            raise WeightsError(f"{place}: {name} has no {error.args[0]}") from error
        except RuntimeError as error:
            raise WeightsError(f"{place}: the parts of {name} do not fit: {error}") from error
        scale = scale_of(name, rank, tensors.get(f"{name}.alpha"))
        for key, value in factor_keys(name, up * scale, down, find(name)):
            if key in tensors:
                raise WeightsError(f"{place}: {name} is of two kinds at once")
            rewritten[key] = value
    return rewritten, frozenset(found)


def factor_keys(
    name: str, up: Tensor, down: Tensor, module: nn.Module | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield two matrices as the factors of a module, spelled as its name is."""
    if isinstance(module, nn.Conv2d):
        inputs = module.in_channels // module.groups
        if down.shape[1] == inputs * math.prod(module.kernel_size):
            down = down.reshape(-1, inputs, *module.kernel_size)
        up = up[:, :, None, None]
    first, second = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
    yield f"{name}.{first}.weight", down
    yield f"{name}.{second}.weight", up


def length_keys(
    magnitudes: Magnitudes, tensors: Mapping[str, Tensor], find: Find, place: str
) -> dict[str, Tensor]:
    """Return magnitudes as factors of rank 1, spelled as the factors in ``tensors`` are.

    So what translates names translates theirs.

    Raises:
        WeightsError: a module with a magnitude has no factors, or others than its number.
    """
    found: dict[str, Tensor] = {}
    for name, lengths in magnitudes.lengths.items():
        pair = [
            tensors.get(f"{name}.{first}.weight", tensors.get(f"{name}.{second}.weight"))
            for first, second in (("lora_A", "lora_down"), ("lora_B", "lora_up"))
        ]
        down, up = pair
        if down is None or up is None:
            raise WeightsError(f"{place}: {name} has a magnitude and no factors")
        number = len(up) if magnitudes.by_row else down.shape[1]
        if len(lengths) != number:
            raise WeightsError(
                f"{place}: {name} has {len(lengths)} magnitudes, not {number}, one per "
                f"{'row' if magnitudes.by_row else 'column'}"
            )
        column, row = torch.ones(len(up), 1), torch.ones(down[:1].shape)
        if magnitudes.by_row:
            column = lengths[:, None]
        else:
            row = row * lengths.reshape(1, -1, *[1] * (down.ndim - 2))
        found |= dict(factor_keys(name, column, row.flatten(1), find(name)))
    return found


def _loha(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Return B [out, k], A [k, in] and the rank of w1 o w2."""
    names = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
    a1, b1, a2, b2 = (parts[name] for name in names)
    if "hada_t1" in parts or "hada_t2" in parts:
        one = _tucker(parts["hada_t1"], a1, b1)
        return *_any(one * _tucker(parts["hada_t2"], a2, b2)), len(b1)
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return up, down, len(b1)


def _lokr(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, int | None]:
    """Return B [out, k], A [k, in] and the rank, nothing where both matrices are whole."""
    rank = None
    pairs = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts:
            pairs.append(_any(parts[name]))
            continue
        up, down = parts[f"{name}_a"], parts[f"{name}_b"]
        rank = len(down)
        core = parts.get("lokr_t2") if name == "lokr_w2" else None
        pairs.append((up, down) if core is None else _any(_tucker(core, up, down)))
    (up1, down1), (up2, down2) = pairs
    return torch.kron(up1, up2), torch.kron(down1, down2), rank


def _tucker(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """Return the kernel [out, in, ...] of a core [r, r, ...] and both its factors, [r, out/in]."""
    return torch.einsum("ij...,ip,jr->pr...", core, outputs, inputs)


def _any(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix, or a kernel laid out as one, as two factors of which one is the identity."""
    matrix = weight.flatten(1)
    height, width = matrix.shape
    if width <= height:
        return matrix, torch.eye(width)
    return torch.eye(height), matrix
