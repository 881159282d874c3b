"""How far images are lit as the shaded rendering of what they show."""

from torch import Tensor

from danceflow.scenes.parse import parse
from danceflow.scenes.render import FLAT, SHADED, render_codes


def score_realism(images_B3HW: Tensor) -> list[float]:
    """Return each image's share of the exact shading, in [0, 1].

    The scene is read from the image and rendered flat and shaded. With r the image less the flat
    rendering and d the shaded less the flat one, the score is

        <r, d> / max(|r| |d|, |d|^2),

    the correlation of r with d, times how strong r is where it is weaker than d. A flat image has
    0, a shaded one 1; a scene without objects has no shading to show and 0.

    Args:
        images_B3HW: float32 in [0, 1], in no style.
    """
    size = images_B3HW.shape[-1]
    codes = parse(images_B3HW, style="plain", rendering=None).codes()
    flat = render_codes(codes, size, FLAT)
    shading = (render_codes(codes, size, SHADED) - flat).flatten(1)
    found = (images_B3HW - flat).flatten(1)
    length = shading.norm(dim=1)
    bound = length * found.norm(dim=1).maximum(length)
    scores = (found * shading).sum(1) / bound.clamp_min(1e-12)
    return [float(score) for score in scores.clamp(0, 1)]
