"""Rendering is exact and stays in range; styles are undone where that is possible."""

import pytest
import torch

from danceflow.scenes.render import (
    apply_style,
    background_table,
    color_table,
    render,
    render_codes,
    shape_light,
    shape_masks,
    shape_model,
    shape_shadow,
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


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("style", STYLES)
def test_shaded_scenes_stay_in_range(size: int, style: str) -> None:
    image = render([Scene(SCENE.background, SCENE.objects, style)], size, "shaded")
    assert image.shape == (1, 3, size, size)
    assert image.min() >= 0
    assert image.max() <= 1


def test_the_light_comes_from_the_top_left_and_keeps_every_shapes_mean() -> None:
    light, masks = shape_light(16), shape_masks(16)
    means = (light * masks).sum((1, 2)) / masks.sum((1, 2))
    assert torch.allclose(means, torch.ones(len(SHAPES)), atol=1e-5)
    assert torch.allclose(light, light.transpose(1, 2), atol=1e-6)
    assert (light[:, 4, 4] > light[:, 11, 11] + 0.1).all()
    assert (light > 0.3).all()


def test_shadows_fall_to_the_bottom_right_and_only_beside_objects() -> None:
    shadow = shape_shadow(8)
    assert (shadow[:, 6:, 6:].mean((1, 2)) > shadow[:, :2, :2].mean((1, 2))).all()
    flat, shaded = render([SCENE]), render([SCENE], rendering="shaded")
    changed = (flat != shaded).any(1)[0].view(4, 8, 4, 8).permute(0, 2, 1, 3).flatten(2).any(-1)
    assert changed.flatten().nonzero().flatten().tolist() == [6, 9]
    # Behind an object the background gets darker, never lighter.
    edge = (shape_masks(8) == 0)[SHAPES.index("ring")]
    cell = (shaded - flat)[0, :, 16:24, 8:16]
    assert cell[:, edge].max() <= 1e-6
    assert cell[:, edge].min() < -0.1


def test_the_model_of_a_shape_is_what_is_rendered() -> None:
    """pixel = b * (1 + D) + T * (colour - b), as the parser inverts it."""
    scene = Scene("gray", (Object(0, "cross", "blue"),))
    back = background_table()[list(BACKGROUNDS).index("gray")][:, None, None]
    color = color_table()[COLOR_NAMES.index("blue")][:, None, None]
    for rendering in ("flat", "shaded"):
        template, behind = (part[SHAPES.index("cross")] for part in shape_model(8, rendering))
        expected = back * (1 + behind) + template * (color - back)
        image = render([scene], rendering=rendering)[0, :, :8, :8]
        assert torch.allclose(image, expected, atol=1e-6)
    assert not shape_model(8, "flat")[1].any()
