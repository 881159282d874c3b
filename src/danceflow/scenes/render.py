"""Scenes to pixels: anti-aliased shapes on a plain background, then one exact colour style.

A scene is rendered flat, every shape in one colour, or shaded: domed shapes in a light from the top
left that throw soft shadows to the bottom right. Both are exact functions of the scene.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from danceflow.scenes.world import (
    BACKGROUNDS,
    COLORS,
    GRID_SIZE,
    NUM_CELLS,
    SHAPES,
    STYLES,
    Scene,
)

Rendering = Literal["flat", "shaded"]
FLAT: Rendering = "flat"
SHADED: Rendering = "shaded"
RENDERINGS: tuple[Rendering, ...] = get_args(Rendering)

LUMINANCE = (0.299, 0.587, 0.114)
_SUPERSAMPLING = 8

# Shading, in units of half a cell. The light falls from the top left, out of the picture.
_LIGHT = (-0.5, -0.5, 0.7071)
_DOME_RADIUS = 1.3
_CONTRAST = 0.6
_SHADOW_SHIFT = 0.25
_SHADOW_DEPTH = 0.3


def _inside(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Return whether points in [-1, 1] of a cell (y down) are inside ``shape``."""
    radius = torch.sqrt(x * x + y * y)
    tests: dict[str, Callable[[], Tensor]] = {
        "circle": lambda: radius < 0.80,
        "square": lambda: torch.maximum(x.abs(), y.abs()) < 0.74,
        "triangle": lambda: (y < 0.78) & (y > -0.82 + 2.0 * x.abs()),
        "diamond": lambda: x.abs() + y.abs() < 0.90,
        "cross": lambda: (
            (torch.minimum(x.abs(), y.abs()) < 0.25) & (torch.maximum(x.abs(), y.abs()) < 0.85)
        ),
        "ring": lambda: (radius < 0.85) & (radius > 0.42),
    }
    return tests[shape]()


def _axes(num: int) -> tuple[Tensor, Tensor]:
    """Return x and y of the middles of ``num`` by ``num`` pixels of a cell, in [-1, 1]."""
    axis = (torch.arange(num) + 0.5) / num * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def _coverage(cell_size: int, shift: float) -> Tensor:
    """Return the coverage of each shape moved right and down, [shapes, cell, cell]."""
    x, y = _axes(cell_size * _SUPERSAMPLING)
    fine = torch.stack([_inside(shape, x - shift, y - shift) for shape in SHAPES]).float()
    return torch.nn.functional.avg_pool2d(fine[:, None], _SUPERSAMPLING)[:, 0]


@lru_cache(maxsize=8)
def shape_masks(cell_size: int) -> Tensor:
    """Return the coverage of each shape in a cell, [shapes, cell, cell] float32 in [0, 1]."""
    return _coverage(cell_size, 0.0)


@lru_cache(maxsize=8)
def shape_light(cell_size: int) -> Tensor:
    """Return the factor of light on each shape, [shapes, cell, cell] float32, 1 on its mean.

    Lambert's law on a dome, factor = 1 + c * (n . l - mean over the shape): brighter towards the
    light at the top left.
    """
    x, y = _axes(cell_size)
    height = (_DOME_RADIUS**2 - x * x - y * y).clamp_min(0).sqrt()
    normal = torch.stack([x, y, height]) / _DOME_RADIUS
    lambert = (normal * torch.tensor(_LIGHT)[:, None, None]).sum(0).clamp_min(0)
    masks = shape_masks(cell_size)
    mean = (masks * lambert).sum((1, 2)) / masks.sum((1, 2))
    return 1 + _CONTRAST * (lambert - mean[:, None, None])


@lru_cache(maxsize=8)
def shape_shadow(cell_size: int) -> Tensor:
    """Return the share of light that each shape's soft shadow takes, [shapes, cell, cell]."""
    shifted = _coverage(cell_size, _SHADOW_SHIFT)
    padded = torch.nn.functional.pad(shifted[:, None], (1, 1, 1, 1), mode="replicate")
    return _SHADOW_DEPTH * torch.nn.functional.avg_pool2d(padded, 3, stride=1)[:, 0]


@lru_cache(maxsize=1)
def color_table() -> Tensor:
    """Return the object colours, [colours, 3] float32 in [0, 1]."""
    return torch.tensor(list(COLORS.values())) / 255.0


@lru_cache(maxsize=1)
def background_table() -> Tensor:
    """Return the background colours, [backgrounds, 3] float32 in [0, 1]."""
    return torch.tensor(list(BACKGROUNDS.values())) / 255.0


def _affine(images: Tensor, scale: tuple[float, ...], shift: tuple[float, ...]) -> Tensor:
    return (
        images * images.new_tensor(scale)[:, None, None] + images.new_tensor(shift)[:, None, None]
    )


_SUNSET = ((0.85, 0.66, 0.50), (0.13, 0.04, 0.02))
_NIGHT = ((0.28, 0.33, 0.45), (0.02, 0.03, 0.14))


def _dusk(images: Tensor) -> Tensor:
    """Return the vertical falloff of the sunset's light, [H, 1]: 1 at the top, 0.7 below."""
    return torch.linspace(1.0, 0.7, images.shape[-2], device=images.device)[:, None]


def apply_style(images: Tensor, style: str) -> Tensor:
    """Return ``images`` [..., 3, H, W] in [0, 1] in the named style, same shape and range."""
    if style == "plain":
        return images
    if style == "grayscale":
        weights = images.new_tensor(LUMINANCE)[:, None, None]
        return (images * weights).sum(-3, keepdim=True).expand_as(images)
    if style == "inverted":
        return 1 - images
    if style == "sunset":
        return _affine(images, *_SUNSET) * _dusk(images)
    if style == "night":
        return _affine(images, *_NIGHT)
    raise ValueError(f"unknown style {style!r}; known: {', '.join(STYLES)}")


def undo_style(images: Tensor, style: str) -> Tensor:
    """Return the plain images behind styled ones; grayscale, not invertible, stays as it is."""
    if style == "inverted":
        return 1 - images
    if style in ("sunset", "night"):
        scale, shift = _SUNSET if style == "sunset" else _NIGHT
        lit = images / _dusk(images) if style == "sunset" else images
        inverse = tuple(1 / s for s in scale)
        return _affine(lit, inverse, tuple(-b / s for b, s in zip(shift, scale, strict=True)))
    return images


def _illumination(cell_size: int, rendering: Rendering) -> tuple[Tensor, Tensor]:
    """Return the light on each shape and on the background behind it, [shapes, h, w] factors."""
    ones = torch.ones_like(shape_masks(cell_size))
    if rendering == FLAT:
        return ones, ones
    return shape_light(cell_size), 1 - shape_shadow(cell_size)


@lru_cache(maxsize=8)
def shape_model(cell_size: int, rendering: Rendering) -> tuple[Tensor, Tensor]:
    """Return T and D, [shapes, cell, cell], of pixel = b * (1 + D) + T * (colour - b).

    b is the background's colour. Flat shapes have their coverage as T, and D = 0.
    """
    masks = shape_masks(cell_size)
    light, open_share = _illumination(cell_size, rendering)
    # b * open * (1 - mask) + colour * light * mask, sorted by b and colour - b.
    return masks * light, (masks * light - masks) + (1 - masks) * (open_share - 1)


@lru_cache(maxsize=8)
def _cell_table(cell_size: int, rendering: Rendering) -> Tensor:
    """Return every possible cell, [backgrounds, 1 + shapes * colours, 3, cell, cell]."""
    masks = shape_masks(cell_size)[:, None, None]
    light, open_share = (part[:, None, None] for part in _illumination(cell_size, rendering))
    colors = (color_table()[None, :, :, None, None] * light).clamp(0, 1)
    rows = []
    for background in background_table():
        base = background[None, :, None, None].expand(1, 3, cell_size, cell_size)
        behind = base[None] * open_share
        objects = behind + masks * (colors - behind)
        rows.append(torch.cat([base, objects.flatten(0, 1)]))
    return torch.stack(rows)


def render_codes(codes: Tensor, image_size: int, rendering: Rendering = FLAT) -> Tensor:
    """Return the images of scene codes, [B, 3, size, size] float32 in [0, 1].

    Args:
        codes: [B, 18] integers as :meth:`Scene.codes` gives them.
        image_size: height and width in pixels, a multiple of the grid size.
        rendering: ``flat`` or ``shaded``; a style comes on top of it.
    """
    if image_size % GRID_SIZE:
        raise ValueError(f"image_size {image_size} is not a multiple of {GRID_SIZE}")
    cell_size = image_size // GRID_SIZE
    codes = codes.long()
    cells = _cell_table(cell_size, rendering)[codes[:, :1].expand(-1, NUM_CELLS), codes[:, 2:]]
    grid = cells.view(-1, GRID_SIZE, GRID_SIZE, 3, cell_size, cell_size)
    images = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, image_size, image_size)
    for index, style in enumerate(STYLES):
        rows = codes[:, 1] == index
        if index and bool(rows.any()):
            images[rows] = apply_style(images[rows], style)
    return images


def render(scenes: Sequence[Scene], image_size: int = 32, rendering: Rendering = FLAT) -> Tensor:
    """Return the images of ``scenes``, [B, 3, size, size] float32 in [0, 1]."""
    return render_codes(torch.tensor([scene.codes() for scene in scenes]), image_size, rendering)
