"""Pictures of several sizes in one bucket: which size a row has, rows of one size together.

What is computed together has one size. Everything that must keep to that (cache, training batches,
evaluation, serving) groups its rows here.
"""

import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from danceflow.errors import DataError, UsageError
from danceflow.fields import uniform

Size = tuple[int, int]
"""Height and width in pixels."""

_PNG = b"\x89PNG\r\n\x1a\n"
_HEAD = 24  # a PNG file begins with its signature, a length, a name, the width and the height


def sizes_of(dataset: Any, rows: Sequence[int]) -> list[Size]:
    """Return the size of each row's target, which is its source's too.

    Only the heads of the PNG files are read, so this is cheap on a bucket of any size.

    Args:
        dataset: what ``read_bucket`` gives.
        rows: their numbers.

    Raises:
        DataError: naming the row whose target is missing or no PNG file.
    """
    import pyarrow.compute as pc

    cells = dataset.select(rows).with_format("arrow")[:]["target"]
    heads = pc.binary_slice(pc.struct_field(cells, "bytes"), 0, _HEAD).to_pylist()
    sizes = []
    for row, head in zip(rows, heads, strict=True):
        if head is None or len(head) < _HEAD or not head.startswith(_PNG):
            what = "there is no image" if head is None else "the image is corrupt: it is no PNG"
            raise DataError(f"row {row} ({dataset[row]['uid']}), target: {what}")
        width, height = struct.unpack(">II", head[16:])
        sizes.append((height, width))
    return sizes


def by_size(sizes: Iterable[Size]) -> dict[Size, list[int]]:
    """Return the positions of each size, in order; the sizes are sorted."""
    groups: dict[Size, list[int]] = {}
    for position, size in enumerate(sizes):
        groups.setdefault(size, []).append(position)
    return dict(sorted(groups.items()))


def draw_group(counts: Sequence[int], seed: int) -> int:
    """Return which group of rows a batch is drawn from.

    A group is as likely as it has rows; with a uniform draw within it, every row keeps the
    probability that it has among all rows.

    Args:
        counts: the number of rows of each group, at least one of them above 0.
        seed: decides.
    """
    ends = torch.tensor(counts).cumsum(0)
    place = (uniform([seed]) * ends[-1]).long()
    return int(torch.searchsorted(ends, place, right=True))


def shown(size: Size) -> str:
    """Return a size as people write it, width first: ``768x512``."""
    return f"{size[1]}x{size[0]}"


def read_size(text: str) -> Size:
    """Return the size that people write as ``768x512``, width first.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if found is None:
        raise UsageError(f"{text!r}: write a size as WIDTHxHEIGHT, such as 768x512")
    return int(found[2]), int(found[1])
