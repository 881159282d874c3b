"""Arithmetic on pictures: what an edit left alone, and putting back what it should have."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from danceflow.errors import DataError
from danceflow.report.page.difference import kept_share, require_one_size

_STRIP_SIDE = 256
_STRIP_MS = 1200


@dataclass(frozen=True)
class Kept:
    """How much of a picture another one left alone, as shares of its pixels.

    Attributes:
        exactly: every channel is the same.
        nearly: no colour is seen to move, as the report counts it.
    """

    exactly: float
    nearly: float


def digest_of(picture: Image.Image) -> str:
    """Return the SHA-256 of an RGB picture's size and pixels, whatever file holds it."""
    head = f"{picture.width}x{picture.height}\n".encode()
    return hashlib.sha256(head + picture.tobytes()).hexdigest()


def kept(one: Image.Image, other: Image.Image) -> Kept:
    """Return how much of one picture the other has.

    Raises:
        DataError: they have different sizes.
    """
    return Kept(kept_share(one, other, 0), kept_share(one, other))


def put_back(source: Image.Image, made: Image.Image, mask: Image.Image) -> Image.Image:
    """Return what was made inside a mask and exactly the source outside of it.

    The seam lies inside: towards the mask's edge the source shines through more and more.

    Args:
        source: RGB.
        made: RGB, of the same size.
        mask: L, white where the picture may change; another size is scaled.

    Raises:
        DataError: the sizes differ, or the mask is empty.
    """
    require_one_size(source, made)
    inside = mask.convert("L").resize(source.size, Image.Resampling.NEAREST)
    inside = inside.point([0] * 128 + [255] * 128)
    if inside.getextrema() == (0, 0):
        raise DataError("the mask is empty: paint where the picture may change, or clear it")
    share = _soft(inside)[..., None]
    blended = share * np.asarray(made, float) + (1 - share) * np.asarray(source, float)
    return Image.fromarray(blended.round().astype(np.uint8))


def _soft(inside: Image.Image) -> NDArray[np.float64]:
    """Return how much of the new picture each pixel gets: 0 outside, 1 deep inside."""
    width = max(1, min(inside.size) // 64)
    layers = [np.asarray(inside, float) / 255]
    # A mask that reaches the picture's edge has no seam there.
    wide = Image.fromarray(np.pad(np.asarray(inside), width, mode="edge"))
    for _ in range(width):
        wide = wide.filter(ImageFilter.MinFilter(3))
        layers.append(np.asarray(ImageOps.crop(wide, width), float) / 255)
    share: NDArray[np.float64] = np.stack(layers).mean(axis=0)
    return share


def animated(pictures: Sequence[Image.Image]) -> bytes:
    """Return pictures as an animated PNG, one after the other; small ones are shown enlarged."""
    side = max(max(picture.size) for picture in pictures)
    factor = max(1, _STRIP_SIDE // side)
    width = max(picture.width for picture in pictures) * factor
    height = max(picture.height for picture in pictures) * factor
    frames = []
    for picture in pictures:
        large = picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
        frame = Image.new("RGB", (width, height), "#ffffff")
        frame.paste(large, ((width - large.width) // 2, (height - large.height) // 2))
        frames.append(frame)
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="PNG",
        save_all=True,
        append_images=frames[1:],
        duration=_STRIP_MS,
        loop=0,
    )
    return buffer.getvalue()
