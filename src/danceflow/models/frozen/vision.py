"""What prepares pictures for a vision language model."""

import math
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor, nn

from danceflow.pictures import to_picture

_UNIT = 32


def _sides(area: int, aspect: float) -> tuple[int, int]:
    """Return width and height of about that many pixels, as the stock pipeline rounds them."""
    width = math.sqrt(area * aspect)
    sides = width, width / aspect
    rounded = [round(side / _UNIT) * _UNIT for side in sides]
    return rounded[0], rounded[1]


class Pictures:
    """The image processor of a vision language model."""

    def __init__(self, processor: Any, area: int | None = None) -> None:
        """Keep the processor.

        Args:
            processor: of ``transformers``.
            area: pixels that every picture is resized to, about; ``None``: it stays as it is.
        """
        self.processor = processor
        self.area = area

    def __call__(self, image_3HW: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return patches, their grid and the number of tokens of an image in [0, 1]."""
        picture = to_picture(image_3HW)
        if self.area is not None:
            picture = picture.resize(
                _sides(self.area, picture.width / picture.height), Resampling.LANCZOS
            )
        inputs = self.processor(images=[picture], return_tensors="pt")
        grid: Tensor = inputs.image_grid_thw
        return inputs.pixel_values, grid, int(grid[0].prod()) // self.processor.merge_size**2

    def to(self, _device: torch.device | str, _dtype: torch.dtype | None = None) -> "Pictures":
        """Return this object, which has no weights."""
        return self

    def networks(self) -> dict[str, nn.Module]:
        """Return nothing: there are no weights."""
        return {}

    def release(self) -> None:
        """Do nothing: there are no weights."""

    def save(self, folder: Path) -> None:
        """Write the processor to ``folder``."""
        self.processor.save_pretrained(folder / "processor")
