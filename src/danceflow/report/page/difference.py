"""What an edit left alone: a picture of the difference, and the share of pixels that were kept."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danceflow.errors import DataError

_Levels = NDArray[np.int16]

CHANGE = 8
"""Levels of 255 by which a colour may move before somebody sees it."""

_WHITE = 255
_PALE, _DARKEST = 0.35, 150
_FAINT, _STRONG = np.array([246.0, 178.0, 107.0]), np.array([176.0, 24.0, 24.0])
_FULL = 128
"""Levels at which a change is drawn as strongly as it can be."""


def difference(source: Image.Image, edited: Image.Image) -> Image.Image:
    """Return the source as a pale grey picture, with what was changed in orange to red.

    Args:
        source: RGB.
        edited: RGB.

    Raises:
        DataError: they have different sizes.
    """
    gap = moved(source, edited)
    grey = np.asarray(source.convert("L"), dtype=np.float64)[..., None]
    pale = np.repeat(_DARKEST + (_WHITE - _DARKEST) * (1 - _PALE) + _PALE * (grey - _DARKEST), 3, 2)
    strength = np.clip((gap - CHANGE) / (_FULL - CHANGE), 0, 1)[..., None]
    marked = _FAINT + strength * (_STRONG - _FAINT)
    shown = np.where(gap[..., None] > CHANGE, marked, pale)
    return Image.fromarray(np.clip(shown, 0, _WHITE).astype(np.uint8))


def kept_share(source: Image.Image, edited: Image.Image, levels: int = CHANGE) -> float:
    """Return the share of pixels whose colour moves by no more than some levels.

    Args:
        source: RGB.
        edited: RGB.
        levels: of 255, in the channel that moves most.

    Raises:
        DataError: they have different sizes.
    """
    return float((moved(source, edited) <= levels).mean())


def without_bars(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Return pictures of one size without the white bars that all of them have on two sides.

    Tiles are squares: a picture that is none lies in the middle of one.

    Args:
        pictures: RGB, at least one.
    """
    white = np.logical_and.reduce([(np.asarray(one) == _WHITE).all(2) for one in pictures])
    height, width = white.shape
    top, left = (_bar(white.all(axis)) for axis in (1, 0))
    if top:  # a tile has bars along one axis only
        left = 0
    box = (left, top, width - left, height - top)
    return [one.crop(box) for one in pictures]


def moved(source: Image.Image, edited: Image.Image) -> _Levels:
    """Return by how many levels the colour that moves most does, [H, W].

    Raises:
        DataError: the pictures have different sizes.
    """
    require_one_size(source, edited)
    one, other = (np.asarray(item, dtype=np.int16) for item in (source, edited))
    gap: _Levels = np.abs(one - other).max(2)
    return gap


def require_one_size(one: Image.Image, other: Image.Image) -> None:
    """Check that two pictures can be compared; raises ``DataError`` if not."""
    if one.size != other.size:
        raise DataError(
            f"the pictures have different sizes: {one.width} x {one.height} and {other.width} x "
            f"{other.height} pixels"
        )


def _bar(white: NDArray[np.bool_]) -> int:
    """Return how many lines are white at both ends; none where all are."""
    if white.all():
        return 0
    return int(min(np.argmin(white), np.argmin(white[::-1])))
