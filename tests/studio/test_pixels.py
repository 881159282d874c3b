"""Arithmetic on pictures, against what it promises."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from danceflow.errors import DataError
from danceflow.report.page.difference import CHANGE
from danceflow.studio.pixels import animated, digest_of, kept, put_back

BLACK, WHITE = (Image.new("RGB", (20, 16), name) for name in ("black", "white"))


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (20, 16)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 19),
    st.integers(0, 15),
    st.integers(1, 20),
    st.integers(1, 16),
    st.sampled_from([(20, 16), (200, 160)]),
)
def test_outside_of_the_mask_every_pixel_is_the_sources(x, y, width, height, size) -> None:
    scale = size[0] // 20
    mask = mask_of((x * scale, y * scale, (x + width) * scale, (y + height) * scale), size)
    rng = np.random.default_rng(x * 100 + y)
    source, made = (
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        for _ in range(2)
    )
    found = np.asarray(put_back(source, made, mask))
    outside = np.asarray(mask) == 0
    assert (found[outside] == np.asarray(source)[outside]).all()


def test_the_seam_rises_inside_and_deep_inside_all_is_new() -> None:
    size = (320, 320)
    source, made = Image.new("RGB", size, "black"), Image.new("RGB", size, "white")
    found = np.asarray(put_back(source, made, mask_of((80, 80, 240, 240), size)))[160, :, 0]
    assert found[79] == 0
    assert found[160] == 255
    rise = found[80:90].astype(int)
    assert (np.diff(rise) >= 0).all()
    assert 0 < rise[0] < rise[2] < 255 == rise[-1]


def test_a_mask_to_the_edge_has_no_seam_there() -> None:
    found = put_back(BLACK, WHITE, mask_of((0, 0, 20, 16)))
    assert found.tobytes() == WHITE.tobytes()


def test_an_empty_mask_and_other_sizes_are_told() -> None:
    with pytest.raises(DataError, match="the mask is empty"):
        put_back(BLACK, WHITE, mask_of((0, 0, 0, 0)))
    with pytest.raises(DataError, match=r"different sizes: 20 x 16 and 5 x 5"):
        kept(BLACK, Image.new("RGB", (5, 5)))


def test_what_was_kept_is_counted_within_a_tolerance_and_exactly() -> None:
    other = BLACK.copy()
    other.paste((CHANGE, 0, 0), (0, 0, 10, 16))
    other.paste((0, CHANGE + 1, 0), (0, 0, 5, 16))
    found = kept(BLACK, other)
    assert (found.exactly, found.nearly) == (0.5, 0.75)


def test_a_strip_moves_through_all_pictures_without_a_loss() -> None:
    small = Image.new("RGB", (8, 8), "red")
    moving = Image.open(io.BytesIO(animated([BLACK, WHITE, small])))
    assert moving.n_frames == 3
    frames = []
    for place in range(3):
        moving.seek(place)
        frames.append(moving.convert("RGB"))
    assert frames[0].size == (240, 192)
    assert frames[0].getpixel((120, 96)) == (0, 0, 0)
    assert frames[2].getpixel((120, 96)) == (255, 0, 0)
    assert frames[2].getpixel((2, 2)) == (255, 255, 255)


def test_a_digest_is_of_pixels_and_size() -> None:
    assert digest_of(Image.new("RGB", (2, 3))) != digest_of(Image.new("RGB", (3, 2)))
    assert digest_of(BLACK) == digest_of(BLACK.copy())
