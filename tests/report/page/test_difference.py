"""What changed is marked and counted; what is only padding is not."""

import numpy as np
import pytest
from PIL import Image

from danceflow.errors import DataError
from danceflow.report.page.difference import CHANGE, difference, kept_share, without_bars


def test_noise_is_no_change_and_what_is_more_is_one() -> None:
    source = Image.new("RGB", (4, 4), (100, 100, 100))
    almost = Image.new("RGB", (4, 4), (100, 100, 100 + CHANGE))
    other = source.copy()
    other.putpixel((0, 0), (100, 100, 100 + CHANGE + 1))
    assert kept_share(source, source) == kept_share(source, almost) == 1.0
    assert kept_share(source, other) == 15 / 16
    assert kept_share(other, source) == 15 / 16


def test_what_changed_more_is_drawn_stronger() -> None:
    source = Image.new("RGB", (3, 1))
    edited = source.copy()
    edited.putpixel((1, 0), (40, 0, 0))
    edited.putpixel((2, 0), (255, 0, 0))
    kept, little, much = np.asarray(difference(source, edited))[0].astype(int)
    assert len(set(kept)) == 1
    assert little[0] > little[2] + 100 > 0
    assert much[0] - much[1] > little[0] - little[1]


def test_other_sizes_are_told() -> None:
    with pytest.raises(DataError, match="different sizes: 4 x 4 and 3 x 1 pixels"):
        difference(Image.new("RGB", (4, 4)), Image.new("RGB", (3, 1)))


def test_bars_that_all_pictures_have_do_not_count() -> None:
    source, edited = (Image.new("RGB", (8, 8), "white") for _ in range(2))
    source.paste("navy", (0, 2, 8, 6))
    edited.paste("red", (0, 2, 8, 6))
    assert kept_share(source, edited) == 0.5
    assert kept_share(*without_bars([source, edited])) == 0.0


def test_a_white_edge_of_one_picture_alone_stays() -> None:
    source, edited = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "navy")
    assert [one.size for one in without_bars([source, edited])] == [(8, 8), (8, 8)]
    assert [one.size for one in without_bars([source, source])] == [(8, 8), (8, 8)]  # all white
    upright = Image.new("RGB", (8, 8), "white")
    upright.paste("navy", (3, 0, 5, 8))
    assert [one.size for one in without_bars([upright])] == [(2, 8)]
