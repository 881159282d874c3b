"""Images in and out of the student: files, base64 text and pixels."""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING

import PIL.Image
from PIL import ImageOps

from danceflow.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


def read_image(data: bytes, name: str) -> Image:
    """Return an RGB image from the bytes of an image file.

    Args:
        data: PNG, JPEG or whatever Pillow reads.
        name: what to call it in the message.

    Raises:
        DataError: the bytes are no complete image.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except PIL.UnidentifiedImageError:
        raise DataError(f"{name}: is no readable image") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{name}: is no readable image: {error}") from None


def image_from_base64(text: str, name: str) -> Image:
    """Return an RGB image from base64 text, with or without a ``data:`` prefix.

    Raises:
        DataError: the text is no base64, or not of an image.
    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: is no base64: {error}") from None
    return read_image(data, name)


def image_to_base64(image: Image) -> str:
    """Return an image as the base64 text of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def to_pixels(image: Image, height: int, width: int) -> Tensor:
    """Return the image as [3, height, width] float32 in [0, 1], cropped around its centre."""
    import numpy as np
    import torch

    fitted = ImageOps.fit(image.convert("RGB"), (width, height))
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255.0).permute(2, 0, 1)


def to_images(pixels_B3HW: Tensor) -> list[Image]:
    """Return images from pixels in [0, 1]."""
    levels = (pixels_B3HW.clamp(0.0, 1.0) * 255.0).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [PIL.Image.fromarray(level) for level in levels]
