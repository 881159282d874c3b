"""Grids hold the images they are given, unchanged, and text where it can be read."""

import numpy as np
import pytest
import torch

from danceflow.evaluate.grids import image_grid, tile_sheet
from danceflow.pictures import to_picture

RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32)
BLUE = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 32, 32)


def test_every_image_stands_in_its_place() -> None:
    columns = {"source": torch.stack([RED, BLUE]), "student": torch.stack([BLUE, RED])}
    picture = np.asarray(image_grid(columns, ["first prompt", "second prompt"]))
    height, width = picture.shape[:2]
    assert (width, height) == (231 + 2 * 170 - 10 + 16, 46 + 2 * 170 - 10 + 16)
    middles = [[picture[46 + y, 231 + x].tolist() for x in (80, 250)] for y in (80, 250)]
    red, blue = [255, 0, 0], [0, 0, 255]
    assert middles == [[red, blue], [blue, red]]


def test_labels_headings_and_notes_are_written() -> None:
    columns = {"student": RED[None]}
    plain = np.asarray(image_grid(columns, [""]))
    for more in (
        image_grid(columns, ["a red square"]),
        image_grid(columns, [""], ["a note"]),
        image_grid({"another heading": RED[None]}, [""]),
    ):
        assert (np.asarray(more) != plain).any()
    long = image_grid(columns, ["word " * 200])
    assert np.asarray(long).shape == plain.shape
    assert (np.asarray(long)[46:206, 231:391] == [255, 0, 0]).all()


@pytest.mark.parametrize(("size", "tile"), [(16, 160), (32, 160), (64, 192), (200, 200)])
def test_small_images_are_enlarged_by_whole_factors(size: int, tile: int) -> None:
    picture = image_grid({"a": torch.rand(1, 3, size, size)}, ["prompt"])
    assert picture.width == 231 + tile + 16


@pytest.mark.parametrize("columns", [{}, {"a": RED[None]}, {"a": torch.stack([RED] * 3)}])
def test_columns_must_fit_the_labels(columns) -> None:
    with pytest.raises(ValueError, match="2 labels do not fit"):
        image_grid(columns, ["one", "two"])


def test_a_sheet_is_all_tiles_and_no_text() -> None:
    sheet = np.asarray(tile_sheet([torch.stack([RED, BLUE]), torch.stack([BLUE, RED])]))
    assert sheet.shape == (64, 64, 3)
    assert (sheet[:32, :32] == [255, 0, 0]).all()
    assert (sheet[32:, :32] == [0, 0, 255]).all()
    assert (sheet[:32, 32:] == [0, 0, 255]).all()


def test_large_tiles_are_made_smaller() -> None:
    assert tile_sheet([torch.rand(2, 3, 64, 64)], max_size=16).size == (16, 32)


def test_pictures_are_rounded_and_clipped() -> None:
    image = torch.tensor([-1.0, 0.0, 0.5, 2.0]).view(1, 2, 2).expand(3, 2, 2)
    assert np.asarray(to_picture(image))[..., 0].tolist() == [[0, 0], [128, 255]]
