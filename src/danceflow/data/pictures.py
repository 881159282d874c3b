"""Pictures of any kind to pixels of one kind: upright, opaque RGB, of a size that models take."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from danceflow.errors import DataError

_MAX_ASPECT_DIFFERENCE = 0.02
"""How much the aspects of source and target may differ before a crop would shift one of them."""


@dataclass(frozen=True)
class Frame:
    """What every picture of a data set is made to be.

    Attributes:
        sizes: the (width, height) to choose from, by aspect.
        fit: ``crop`` fills the frame and cuts what is over; ``pad`` keeps all and adds paper.
        paper: colour behind transparent pixels and beside what is padded, ``#rrggbb``.
        min_side: pixels; a picture with a smaller side is refused.
    """

    sizes: tuple[tuple[int, int], ...]
    fit: Literal["crop", "pad"]
    paper: str
    min_side: int

    def size_for(self, image: Image.Image) -> tuple[int, int]:
        """Returns the (width, height) whose aspect is nearest to the picture's."""
        aspect = math.log(image.width / image.height)
        return min(self.sizes, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


def frame_sizes(
    image_size: int, aspect_ratios: Sequence[str], size_multiple: int
) -> tuple[tuple[int, int], ...]:
    """Returns the (width, height) of every aspect ratio, each of about ``image_size`` squared.

    Args:
        image_size: side of the square frame.
        aspect_ratios: such as ``3:2``, width first.
        size_multiple: sides of the other frames are multiples of it.
    """
    sizes = []
    for ratio in aspect_ratios:
        width, height = (int(part) for part in ratio.split(":"))
        if width == height:
            sizes.append((image_size, image_size))
            continue
        root = math.sqrt(width / height)
        sides = (image_size * root, image_size / root)
        rounded = [max(1, round(side / size_multiple)) * size_multiple for side in sides]
        sizes.append((rounded[0], rounded[1]))
    return tuple(sizes)


def open_picture(data: bytes, paper: str) -> Image.Image:
    """Returns a picture upright, opaque and in RGB.

    EXIF orientation is applied, transparency is laid on ``paper``, gray, palette, 16-bit and CMYK
    pictures are converted. Of an animation the first image is taken.

    Raises:
        DataError: the bytes are no complete picture, or one of a size that no photograph has.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                return _opaque(ImageOps.exif_transpose(opened), paper)
    except UnidentifiedImageError:
        raise DataError("is no picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"is too large a picture: {error}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"is a damaged picture: {error}") from None


def _opaque(image: Image.Image, paper: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_gray(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, ImageColor.getrgb(paper))
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """Returns a 16-bit gray picture with its full range; Pillow's own conversion clips it."""
    levels = np.asarray(image, dtype=np.float64)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"its gray levels ({image.mode}) have no known range")
    scaled = np.round(levels / 257).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def fit_picture(image: Image.Image, size: tuple[int, int], frame: Frame) -> Image.Image:
    """Returns a picture resized to ``size``, cropped or padded around its centre as told."""
    if image.size == size:
        return image
    if frame.fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=frame.paper)


def fit_pair(
    source: Image.Image | None, target: Image.Image, frame: Frame
) -> tuple[Image.Image | None, Image.Image]:
    """Returns source and target in one frame, a place of one over the same place of the other.

    The target's aspect chooses the frame. Both are cut alike, as their aspects must agree: a
    centred crop then takes the same part of both.

    Raises:
        DataError: a side is too small, or the two have different aspects.
    """
    for name, image in (("source", source), ("target", target)):
        if image is not None and min(image.size) < frame.min_side:
            raise DataError(
                f"{name} is {image.width} x {image.height} pixels, less than {frame.min_side}"
            )
    if source is not None:
        aspects = source.width / source.height, target.width / target.height
        if abs(aspects[0] / aspects[1] - 1) > _MAX_ASPECT_DIFFERENCE:
            raise DataError(
                f"source is {source.width} x {source.height} pixels and target {target.width} x "
                f"{target.height}: they cannot lie over each other"
            )
    size = frame.size_for(target)
    fitted = None if source is None else fit_picture(source, size, frame)
    return fitted, fit_picture(target, size, frame)


def png_bytes(image: Image.Image) -> bytes:
    """Returns a picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
