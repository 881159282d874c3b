"""Reads shape, colour and place of every object back from pixels, by analysis through synthesis.

Each cell is modelled as background + mask * (colour - background). For a given mask the best colour
is a least-squares fit in closed form; the mask with the smallest residual is the shape. Every style
is undone, read and rendered again; the style whose rendering is nearest to the image wins. Shaded
scenes are read the same way, with the mask and the background that the light leaves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from danceflow.scenes.render import (
    FLAT,
    RENDERINGS,
    Rendering,
    apply_style,
    background_table,
    color_table,
    render_codes,
    shape_masks,
    shape_model,
    undo_style,
)
from danceflow.scenes.world import COLORS, GRID_SIZE, NUM_CELLS, STYLES

MIN_EXPLAINED = 0.80
"""Share of a cell's contrast that a shape must explain to be recognised.

Rendered scenes reach 1; the most alike pair of shapes (circle and diamond) reaches about 0.9.
"""


@dataclass(frozen=True)
class Reading:
    """What was read from a batch of images; every tensor's first dimension is the batch.

    Attributes:
        background: [B] background codes.
        style: [B] style codes.
        shape: [B, 16] shape codes, -1 for an empty cell, -2 for something unrecognised.
        color: [B, 16] colour codes, -1 for an empty cell.
        explained: [B, 16] share of each cell's contrast that its shape explains, 1 for empty cells.
    """

    background: Tensor
    style: Tensor
    shape: Tensor
    color: Tensor
    explained: Tensor

    def codes(self) -> Tensor:
        """Return scene codes, [B, 18]; unrecognised cells count as empty."""
        cells = torch.where(self.shape >= 0, 1 + self.shape * len(COLORS) + self.color, 0)
        return torch.cat([self.background[:, None], self.style[:, None], cells], dim=1)


def parse(
    images_B3HW: Tensor, style: str | None = None, rendering: Rendering | None = FLAT
) -> Reading:
    """Return the reading of ``images_B3HW``, float32 in [0, 1].

    Args:
        images_B3HW: square images whose size is a multiple of the grid.
        style: the style to assume; ``None`` finds the best one per image.
        rendering: the rendering to assume; ``None`` finds the best one per image.
    """
    size = images_B3HW.shape[-1]
    kinds = [
        (name, kind)
        for name in (STYLES if style is None else (style,))
        for kind in (RENDERINGS if rendering is None else (rendering,))
    ]
    readings = [_read(images_B3HW, name, kind) for name, kind in kinds]
    errors = torch.stack(
        [
            (render_codes(reading.codes(), size, kind) - images_B3HW).square().mean((1, 2, 3))
            for reading, (_, kind) in zip(readings, kinds, strict=True)
        ]
    )
    best = errors.argmin(0)
    rows = torch.arange(len(images_B3HW))

    def pick(name: str) -> Tensor:
        return torch.stack([getattr(reading, name) for reading in readings])[best, rows]

    return Reading(*(pick(name) for name in ("background", "style", "shape", "color", "explained")))


def _read(images: Tensor, style: str, rendering: Rendering) -> Reading:
    plain = undo_style(images, style)
    colors, backgrounds = color_table(), background_table()
    if style == "grayscale":
        colors = apply_style(colors.T[:, :, None], style)[:, :, 0].T
        backgrounds = apply_style(backgrounds.T[:, :, None], style)[:, :, 0].T
    cell = images.shape[-1] // GRID_SIZE
    cells = plain.view(-1, 3, GRID_SIZE, cell, GRID_SIZE, cell).permute(0, 2, 4, 1, 3, 5)
    cells = cells.reshape(len(images), NUM_CELLS, 3, cell * cell)
    masks = shape_masks(cell).flatten(1)

    empty_pixels = masks.amax(0) == 0
    level = cells[..., empty_pixels].permute(0, 2, 1, 3).flatten(2).median(-1).values
    background = torch.cdist(level, backgrounds).argmin(-1)

    # pixel = level * (1 + behind) + template * (colour - level); flat shapes have behind = 0.
    template, behind = (part.flatten(1) for part in shape_model(cell, rendering))
    contrast = cells - level[:, None, :, None]
    energy = contrast.square().sum((-2, -1))
    power = template.square().sum(-1)
    light = level[:, None, None]
    along = torch.einsum("bncp,sp->bnsc", contrast, template)
    amplitude = (along - light * (behind * template).sum(-1)[:, None]) / power[:, None]
    shift = torch.einsum("bncp,sp->bnsc", contrast, behind)
    base = (light.square() * behind.square().sum(-1)[:, None] - 2 * light * shift).sum(-1)
    residual = energy[..., None] + base - amplitude.square().sum(-1) * power
    smallest, shape = residual.min(-1)
    explained = 1 - smallest / energy.clamp_min(1e-8)

    difference = amplitude.gather(2, shape[..., None, None].expand(-1, -1, 1, 3)).squeeze(2)
    found = level[:, None] + difference
    color_distance, color = torch.cdist(found, colors.expand(len(images), -1, -1)).min(-1)
    is_empty = difference.norm(dim=-1) < color_distance
    shape = torch.where(explained < MIN_EXPLAINED, -2, shape)
    return Reading(
        background=background,
        style=torch.full_like(background, STYLES.index(style)),
        shape=torch.where(is_empty, -1, shape),
        color=torch.where(is_empty, -1, color),
        explained=torch.where(is_empty, 1.0, explained),
    )
