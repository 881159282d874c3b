"""Image grids that explain themselves: one row per prompt, one named column per field."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from danceflow.pictures import to_picture

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
    columns: Mapping[str, Sequence[Tensor]], labels: Sequence[str], notes: Sequence[str] = ()
) -> Image.Image:
    """Return a picture of images side by side, with a heading per column and a label per row.

    Small images are enlarged without smoothing, all by the first whole factor that makes the
    longest side at least 160 pixels. Each lies in the middle of a square of that side.

    Args:
        columns: heading to B images [3, H, W] in [0, 1].
        labels: B texts, such as prompts.
        notes: B fainter texts below the labels, such as categories; none, or one per row.

    Raises:
        ValueError: there are no columns, or they do not have one image per label.
    """
    counts = {len(images) for images in columns.values()}
    if counts != {len(labels)}:
        raise ValueError(f"{len(labels)} labels do not fit columns of {sorted(counts)} images")
    size = _longest_side(columns.values())
    factor = max(1, -(-_MIN_TILE // size))
    tile = size * factor
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
            small = to_picture(image)
            enlarged = small.resize(
                (small.width * factor, small.height * factor), Image.Resampling.NEAREST
            )
            picture.paste(enlarged, _middle(enlarged, x, y, tile))
    for row, label in enumerate(labels):
        y = top + row * (tile + _GAP)
        lines = [(line, _INK) for line in textwrap.wrap(label, _LETTERS)]
        lines += [(line, _FAINT) for line in textwrap.wrap(notes[row] if notes else "", _LETTERS)]
        for number, (line, colour) in enumerate(lines[: tile // _LINE]):
            draw.text((_MARGIN, y + number * _LINE), line, colour, font)
    return picture


def tile_sheet(columns: Sequence[Sequence[Tensor]], max_size: int = 256) -> Image.Image:
    """Return images without any text, row by row and column by column, for a page to cut up.

    Every tile is a square of the longest side, with an image in its middle.

    Args:
        columns: images [3, H, W] in [0, 1].
        max_size: larger tiles are made smaller.
    """
    size, rows = _longest_side(columns), len(columns[0])
    picture = Image.new("RGB", (len(columns) * size, rows * size), _PAPER)
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            tile = to_picture(image)
            picture.paste(tile, _middle(tile, column * size, row * size, size))
    if size > max_size:
        small = (len(columns) * max_size, rows * max_size)
        picture = picture.resize(small, Image.Resampling.LANCZOS)
    return picture


def _longest_side(columns: Iterable[Sequence[Tensor]]) -> int:
    return max(max(image.shape[-2:]) for images in columns for image in images)


def _middle(image: Image.Image, x: int, y: int, side: int) -> tuple[int, int]:
    """Return where an image lies in the middle of the square of ``side`` at (x, y)."""
    return x + (side - image.width) // 2, y + (side - image.height) // 2
