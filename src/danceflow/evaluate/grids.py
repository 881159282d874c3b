"""Image grids that explain themselves: one row per prompt, one named column per field."""

import textwrap
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_PAPER = (255, 255, 255)
_INK = (38, 42, 48)
_FAINT = (110, 116, 124)
_FRAME = (222, 225, 230)
_MARGIN = 16
_GAP = 10
_LETTERS = 26
_TEXT_WIDTH = 205
_TEXT_SIZE = 15
_LINE = 20
_MIN_TILE = 160


def image_grid(
    columns: Mapping[str, Tensor], labels: Sequence[str], notes: Sequence[str] = ()
) -> Image.Image:
    """Returns a picture of images side by side, with a heading per column and a label per row.

    Small images are enlarged without smoothing, by the first whole factor that makes them at
    least 160 pixels wide.

    Args:
        columns: heading to images [B, 3, H, W] in [0, 1], all of one size.
        labels: B texts, such as prompts.
        notes: B fainter texts below the labels, such as categories; none, or one per row.

    Raises:
        ValueError: there are no columns, or they do not have one image per label.
    """
    counts = {len(images) for images in columns.values()}
    if counts != {len(labels)}:
        raise ValueError(f"{len(labels)} labels do not fit columns of {sorted(counts)} images")
    size = next(iter(columns.values())).shape[-1]
    tile = size * max(1, -(-_MIN_TILE // size))
    font = ImageFont.load_default(_TEXT_SIZE)
    left, top = _MARGIN + _TEXT_WIDTH + _GAP, _MARGIN + _LINE + _GAP
    width = left + len(columns) * (tile + _GAP) - _GAP + _MARGIN
    height = top + len(labels) * (tile + _GAP) - _GAP + _MARGIN
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    for number, (heading, images) in enumerate(columns.items()):
        x = left + number * (tile + _GAP)
        draw.text((x + tile / 2, _MARGIN), heading, _INK, font, anchor="ma")
        for row, image in enumerate(images):
            y = top + row * (tile + _GAP)
            draw.rectangle((x - 1, y - 1, x + tile, y + tile), outline=_FRAME)
            enlarged = to_picture(image).resize((tile, tile), Image.Resampling.NEAREST)
            picture.paste(enlarged, (x, y))
    for row, label in enumerate(labels):
        y = top + row * (tile + _GAP)
        lines = [(line, _INK) for line in textwrap.wrap(label, _LETTERS)]
        lines += [(line, _FAINT) for line in textwrap.wrap(notes[row] if notes else "", _LETTERS)]
        for number, (line, colour) in enumerate(lines[: tile // _LINE]):
            draw.text((_MARGIN, y + number * _LINE), line, colour, font)
    return picture


def tile_sheet(columns: Sequence[Tensor], max_size: int = 256) -> Image.Image:
    """Returns images without any text, row by row and column by column, for a page to cut up.

    Args:
        columns: images [B, 3, H, W] in [0, 1], all of one size.
        max_size: larger images are made smaller.
    """
    size = columns[0].shape[-1]
    stacked = torch.stack(list(columns), dim=1)
    rows, count = stacked.shape[:2]
    sheet = stacked.permute(2, 0, 3, 1, 4).reshape(3, rows * size, count * size)
    picture = to_picture(sheet)
    if size > max_size:
        picture = picture.resize((count * max_size, rows * max_size), Image.Resampling.LANCZOS)
    return picture


def to_picture(image_3HW: Tensor) -> Image.Image:
    """Returns an image in [0, 1] as a PIL image."""
    pixels = (image_3HW.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
