"""Pictures in and out: files, bytes and base64 text, PIL pictures, tensors.

Wherever a picture comes from (a row of training data, ``danceflow edit``, a request of the served
model), it is read and framed here: upright, opaque RGB, of a size that models take. So the student
sees a picture as its training saw it. What a picture may cost is known before it is decoded.
"""

import base64
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from danceflow.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read. Others are not even tried: some start programs, many have no careful reader."""

MAX_BYTES = 64 << 20
"""Of an encoded picture. What a picture costs to parse grows with it, whatever it shows."""

MAX_PIXELS = 89_478_485
"""Width times height: 256 MiB of RGB, where Pillow begins to warn."""

MAX_SIDE = 32_768
"""Pixels of a side. One pixel wide and very long costs far more than its pixels."""

FIT: Literal["crop"] = "crop"
PAPER = "#ffffff"
"""How a student edits pictures whose training data, being drawn, does not say it."""

_MAX_ASPECT_DIFFERENCE = 0.02
"""How much the aspects of source and target may differ before a crop would shift one of them."""

_MADE_UP = {"JPEG": {127, 128}, "PNG": {0}, "TIFF": {0}}
"""By format, the levels that Pillow makes up where a picture's data ends early."""

# A JPEG's markers of one byte and its zeros and restarts within a scan begin no segment.
_SEGMENT = re.compile(rb"\xff+([^\x00\x01\xd0-\xd8\xff])")
_END, _SCAN, _PROGRESSIVE = 0xD9, 0xDA, (0xC2, 0xC6, 0xCA, 0xCE)
_NUM_COEFFICIENTS = 64

_GARBAGE = bytes(range(1, 255))  # without 255, which begins JPEG's markers
_STRIP_PIXELS = 1 << 20
_URL_SAFE = str.maketrans("-_", "+/")


@dataclass(frozen=True)
class Frame:
    """What every picture of a data set is made to be.

    Attributes:
        sizes: the (width, height) to choose from, by aspect.
        fit: ``crop`` fills the frame and cuts what is over; ``pad`` keeps all and adds paper.
        paper: colour behind transparent pixels and beside what is padded, ``#rrggbb``.
        min_side: pixels; a picture of a pair with a smaller side is refused.
    """

    sizes: tuple[tuple[int, int], ...]
    fit: Literal["crop", "pad"]
    paper: str
    min_side: int = 1

    def size_for(self, image: Image.Image) -> tuple[int, int]:
        """Return the (width, height) whose aspect is nearest to the picture's."""
        aspect = math.log(image.width / image.height)
        return min(self.sizes, key=lambda size: abs(math.log(size[0] / size[1]) - aspect))


def frame_sizes(
    image_size: int, aspect_ratios: Sequence[str], size_multiple: int
) -> tuple[tuple[int, int], ...]:
    """Return the (width, height) of every aspect ratio, each of about ``image_size`` squared.

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


# ---------------------------------------------------------------------------------------------
# In: files, text and bytes of strangers


def read_file(path: "Path") -> bytes:
    """Return what a picture's file holds; a FIFO is not waited for, a device not read.

    Raises:
        DataError: there is no such file, it is no regular one, or it is too large.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        with open(path, "rb", opener=opened) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError("is no regular file")
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    _require_few_bytes(len(data))
    return data


def read_base64(text: str) -> bytes:
    """Return what base64 text holds, however it was written.

    Line breaks, a ``data:`` address around it, the alphabet for addresses and missing ``=`` at the
    end are all taken.

    Raises:
        DataError: it is none, or holds too much. The text is not repeated.
    """
    payload = text
    if text[:5].lower() == "data:":
        head, comma, payload = text.partition(",")
        if not (comma and head.lower().endswith(";base64")):
            raise DataError("is a data: address that holds no base64")
    payload = "".join(payload.split()).translate(_URL_SAFE)
    _require_few_bytes(len(payload) * 3 // 4)
    try:
        return base64.b64decode(payload + "=" * (-len(payload) % 4), validate=True)
    except ValueError:
        raise DataError("is no base64 text") from None


def decode(data: bytes) -> Image.Image:
    """Return a whole picture as it was encoded, its pixels decoded: ``plain`` makes it RGB.

    Of an animation it is the first image. Size and format are looked at first.

    Raises:
        DataError: the bytes are no picture of ``FORMATS``, too large a one, or not all of one.
    """
    _require_few_bytes(len(data))
    try:
        with warnings.catch_warnings(action="ignore"):  # what matters is an error here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _require_few_pixels(image)
            image.load()
            is_cut = _is_cut(image, data)
    except UnidentifiedImageError:
        kinds = ", ".join(FORMATS)
        raise DataError(f"is no picture, or of another kind than {kinds}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"is too large a picture: {error}") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever they stumble over
        reason = str(error) or type(error).__name__
        raise DataError(f"is a damaged picture: {reason}") from error
    if is_cut:
        raise DataError("is a damaged picture: its data ends early")
    return image


def open_picture(data: bytes, paper: str) -> Image.Image:
    """Return a picture upright, opaque and in RGB.

    Args:
        data: a file's bytes.
        paper: colour behind transparent pixels, ``#rrggbb``.

    Raises:
        DataError: as ``decode`` and ``plain``.
    """
    return plain(decode(data), paper)


def read_own(data: bytes) -> Image.Image:
    """Return a PNG file that danceflow wrote itself, of any size, in RGB.

    Raises:
        DataError: it is damaged.
    """
    try:
        return Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"is a damaged picture: {error}") from error


def _require_few_bytes(count: int) -> None:
    if count > MAX_BYTES:
        raise DataError(f"is too large a file: more than {MAX_BYTES >> 20} MiB")


def _require_few_pixels(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise DataError(
            f"is too large a picture: {width} x {height} pixels, at most {MAX_PIXELS:,} and "
            f"{MAX_SIDE:,} on a side are read"
        )


def _is_cut(image: Image.Image, data: bytes) -> bool:
    """Return whether Pillow made up the end of a picture, as it does where the data ends in order.

    A last pixel of a level that may be made up is looked into: over another ground, or with more
    data before a JPEG's end marker, what was decoded comes out the same and what was made up does
    not. A progressive JPEG shows no such pixels: it is only coarser. It is always looked into.
    """
    is_progressive = "progressive" in image.info
    if is_progressive and _lacks_scans(data):
        return True
    made_up = _MADE_UP.get(image.format or "", set())
    last = image.getpixel((image.width - 1, image.height - 1))
    if not is_progressive and not {*(last if isinstance(last, tuple) else (last,))} <= made_up:
        return False
    is_jpeg = image.format == "JPEG"
    end = data.rfind(b"\xff\xd9") if is_jpeg else len(data)
    again = Image.open(io.BytesIO(data[:end] + _GARBAGE * is_jpeg + data[end:]), formats=FORMATS)
    if not is_jpeg:
        again.im = Image.new(again.mode, again.size, 255).im
    again.load()
    return any(image.crop(at).tobytes() != again.crop(at).tobytes() for at in _strips(image))


def _lacks_scans(data: bytes) -> bool:
    """Return whether a progressive JPEG ends before the last bit of every coefficient.

    Each scan brings some coefficients of some components down to a bit, 0 being the last (ITU-T
    T.81, G.1.1). Such a file has an end marker as where somebody else closed a file that was cut.
    """
    open_bits: dict[int, list[int]] = {}
    position = 2
    while found := _SEGMENT.search(data, position):
        code, begin = found[1][0], found.end()
        if code == _END:
            break
        segment = data[begin : begin + int.from_bytes(data[begin : begin + 2])]
        if code in _PROGRESSIVE:
            ids = segment[8::3]
            open_bits = {number: [1] * _NUM_COEFFICIENTS for number in ids}
        elif code == _SCAN:
            count = segment[2]
            first, last, bits = segment[3 + 2 * count : 6 + 2 * count]
            for number in segment[3 : 3 + 2 * count : 2]:
                if number in open_bits:
                    opened = range(first, last + 1)
                    open_bits[number][first : last + 1] = [bits & 15] * len(opened)
        position = begin + len(segment)
    return any(any(bits) for bits in open_bits.values())


# ---------------------------------------------------------------------------------------------
# One kind of pixels


def plain(image: Image.Image, paper: str) -> Image.Image:
    """Return a picture upright, opaque and in RGB; itself where it is that already.

    The orientation that EXIF or XMP tells is applied and transparency is laid on paper; gray,
    palette, 16-bit and CMYK pictures are converted.

    Args:
        image: of any mode.
        paper: colour behind transparent pixels, ``#rrggbb``.

    Raises:
        DataError: its levels have no known range or no RGB.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _from_deep_gray(image, paper)
        if image.has_transparency_data:
            return _on_paper(image, paper)
        return image if image.mode == "RGB" else image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # as in ``decode``: EXIF is parsed here
        raise DataError(f"is a damaged picture: {error or type(error).__name__}") from error


def _on_paper(image: Image.Image, paper: str) -> Image.Image:
    """Return a picture with paper behind it, made strip by strip to spare memory."""
    result = Image.new("RGB", image.size)
    for at in _strips(image):
        strip = image.crop(at).convert("RGBA")
        ground = Image.new("RGBA", strip.size, ImageColor.getrgb(paper))
        result.paste(Image.alpha_composite(ground, strip).convert("RGB"), at)
    return result


def _from_deep_gray(image: Image.Image, paper: str) -> Image.Image:
    """Return a 16-bit gray picture with its full range; Pillow's own conversion clips it."""
    levels = np.asarray(image)
    if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
        raise DataError(f"is a picture whose gray levels ({image.mode}) have no known range")
    shown = np.round(np.arange(65536) / 257).astype(np.uint8)
    result = Image.fromarray(shown[levels]).convert("RGB")
    if (clear := image.info.get("transparency")) is not None:
        result.paste(ImageColor.getrgb(paper), mask=Image.fromarray(levels == clear))
    return result


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes of strips that cover a picture from top to bottom."""
    height = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield 0, top, image.width, min(top + height, image.height)


# ---------------------------------------------------------------------------------------------
# One size


def fit_picture(image: Image.Image, size: tuple[int, int], frame: Frame) -> Image.Image:
    """Return a picture resized to ``size``, cropped or padded around its centre as told.

    Raises:
        DataError: it is so long that a padded frame would show nothing of it.
    """
    if image.size == size:
        return image
    if frame.fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    scale = min(size[0] / image.width, size[1] / image.height)
    if round(min(image.size) * scale) < 1:
        raise DataError(
            f"{image.width} x {image.height} pixels are too long for a frame of "
            f"{size[0]} x {size[1]}"
        )
    return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=frame.paper)


def fit_pair(
    source: Image.Image | None, target: Image.Image, frame: Frame
) -> tuple[Image.Image | None, Image.Image]:
    """Return source and target in one frame, a place of one over the same place of the other.

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


# ---------------------------------------------------------------------------------------------
# Tensors, and out


def to_pixels(image: Image.Image) -> "Tensor":
    """Return an RGB picture as [3, H, W] float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def to_picture(image_3HW: "Tensor") -> Image.Image:
    """Return an image in [0, 1] as a PIL picture, each level the nearest of 256."""
    levels = (image_3HW.detach().clamp(0, 1) * 255).permute(1, 2, 0).contiguous().cpu().numpy()
    # By NumPy: torch shares the rounding of the smallest picture out among all its threads.
    return Image.fromarray(np.rint(levels).astype(np.uint8))


def png_bytes(image: Image.Image, compress_level: int = 1) -> bytes:
    """Return a picture as a PNG file.

    Args:
        image: what to write.
        compress_level: from 1, fast, to 9, small.
    """
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()


def png_base64(png: bytes) -> str:
    """Return a PNG file as base64 text."""
    return base64.b64encode(png).decode()


def data_uri(png: bytes) -> str:
    """Return a PNG file as an address that holds it, for pages and requests."""
    return f"data:image/png;base64,{png_base64(png)}"
