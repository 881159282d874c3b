"""Rendering is exact and stays in range; styles are undone where that is possible."""

import pytest
import torch

from danceflow.scenes.render import (
    apply_style,
    color_table,
    render,
    render_codes,
    shape_masks,
    undo_style,
)
from danceflow.scenes.world import BACKGROUNDS, COLOR_NAMES, SHAPES, STYLES, Object, Scene

SCENE = Scene("beige", (Object(6, "square", "blue"), Object(9, "ring", "red")))


def test_pixels_are_background_or_object() -> None:
    image = render([SCENE])[0]
    assert image.shape == (3, 32, 32)
    assert torch.allclose(image[:, 0, 0] * 255, torch.tensor(BACKGROUNDS["beige"]).float())
    blue = color_table()[COLOR_NAMES.index("blue")]
    # Cell 6 is row 1, column 2; the middle of a square is all colour.
    assert torch.allclose(image[:, 8 + 4, 16 + 4], blue)


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("style", STYLES)
def test_every_size_and_style_stays_in_range(size: int, style: str) -> None:
    image = render([Scene(SCENE.background, SCENE.objects, style)], size)
    assert image.shape == (1, 3, size, size)
    assert image.min() >= 0
    assert image.max() <= 1


def test_a_size_that_does_not_fit_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of 4"):
        render([SCENE], 30)


def test_unknown_styles_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown style 'cubist'"):
        apply_style(torch.zeros(1, 3, 8, 8), "cubist")


def test_masks_are_smooth_and_all_different() -> None:
    masks = shape_masks(8)
    assert masks.shape == (len(SHAPES), 8, 8)
    assert ((masks > 0) & (masks < 1)).any()
    assert torch.cdist(masks.flatten(1), masks.flatten(1))[~torch.eye(6, dtype=bool)].min() > 0.5
    assert (masks[:, 0, 0] == 0).all()


@pytest.mark.parametrize("style", [s for s in STYLES if s != "grayscale"])
def test_styles_are_undone(style: str) -> None:
    plain = render([SCENE])
    assert torch.allclose(undo_style(apply_style(plain, style), style), plain, atol=1e-5)


def test_grayscale_has_no_colour_left() -> None:
    gray = apply_style(render([SCENE]), "grayscale")
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(undo_style(gray, "grayscale"), gray)


def test_an_image_does_not_depend_on_the_images_beside_it() -> None:
    other = Scene("black", (Object(0, "cross", "cyan"),), "night")
    codes = torch.tensor([SCENE.codes(), other.codes(), SCENE.codes()])
    together = render_codes(codes, 32)
    assert torch.equal(together[0], render([SCENE])[0])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], render([other])[0])
