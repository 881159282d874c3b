import base64
import io

import numpy as np
import pytest
from PIL import Image

from danceflow.errors import DataError
from danceflow.registry.images import (
    image_from_base64,
    image_to_base64,
    read_image,
    to_images,
    to_pixels,
)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_base64_gives_the_image_back(picture):
    text = image_to_base64(picture)
    for form in (text, f"data:image/png;base64,{text}"):
        assert np.array_equal(np.asarray(image_from_base64(form, "row 0")), np.asarray(picture))


def test_other_modes_become_rgb():
    grey = Image.new("LA", (4, 4), (100, 255))
    assert read_image(png(grey), "grey").mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image_are_named(data):
    with pytest.raises(DataError, match=r"in\.png: is no readable image$"):
        read_image(data, "in.png")


def test_a_truncated_image_is_named(picture):
    data = png(picture)
    with pytest.raises(DataError, match="row 3"):
        read_image(data[: len(data) // 2], "row 3")


def test_text_that_is_no_base64_is_named(picture):
    with pytest.raises(DataError, match="row 1: is no base64"):
        image_from_base64("§§", "row 1")
    with pytest.raises(DataError, match="row 1: is no readable image"):
        image_from_base64(base64.b64encode(b"words").decode(), "row 1")


def test_pixels_and_images_are_inverse(picture):
    pixels = to_pixels(picture, 16, 16)
    assert pixels.shape == (3, 16, 16)
    assert 0.0 <= float(pixels.min()) <= float(pixels.max()) <= 1.0
    (back,) = to_images(pixels[None])
    assert np.array_equal(np.asarray(back), np.asarray(picture))
