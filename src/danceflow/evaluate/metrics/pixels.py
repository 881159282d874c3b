"""Image metrics through torchmetrics: what must not change, and how alike two sets of images are.

FID and KID are named after their feature extractor, a small fixed convolution network of our own
(``conv64``): they compare fields here and cannot be compared with figures from Inception features.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from danceflow.evaluate.measurement import Measurement, by_rows, row_by_row
from danceflow.evaluate.task import Task
from danceflow.fields import normal, seed_for
from danceflow.worlds.rows import similarity_maps

EXTRACTOR = "conv64"
MAX_PSNR = 60.0
"""Decibels reported for an image that equals its target."""

_EXTRACTOR_SEED = 20260627
_SSIM_WINDOW = 11


@row_by_row
def preservation(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yield ``psnr`` (dB, at most 60) and ``ssim`` over the pixels that an edit must preserve.

    Which those are its world says.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if task.source is None:
        raise ValueError(f"{task.capability}: its rows are no edits")
    kept = task.world.preserved(task.samples, task.source, task.target)
    psnr = [
        float(peak_signal_noise_ratio(image[:, mask], target[:, mask], data_range=1.0))
        for image, target, mask in zip(images_B3HW, task.target, kept, strict=True)
    ]
    yield by_rows(task, "psnr", [min(value, MAX_PSNR) for value in psnr])
    if min(images_B3HW.shape[-2:]) < _SSIM_WINDOW:
        return
    # Outside the mask the target stands in, so that a window at its border sees no edit.
    composed = torch.where(kept[:, None], images_B3HW, task.target)
    maps = similarity_maps(composed, task.target)
    rows = [float(part[mask].mean()) for part, mask in zip(maps, kept, strict=True)]
    yield by_rows(task, "ssim", rows)


class Conv64(nn.Module):
    """The feature extractor: three fixed convolutions, then means and spreads, 64 features.

    Its weights are drawn once and for all from counter-based seeds, so it needs no file and is the
    same everywhere. Random convolutions keep colours, edges and their layout, which is what
    differs between images of plain shapes.
    """

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        for index, (inputs, outputs) in enumerate(((3, 16), (16, 32), (32, 32))):
            seeds = [seed_for(_EXTRACTOR_SEED, EXTRACTOR, index, row) for row in range(outputs)]
            weight = normal((inputs, 3, 3), seeds) * math.sqrt(2 / (9 * inputs))
            self.register_buffer(f"weight_{index}", weight)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the features, [B, 64] float64, of images in [0, 1].

        KID takes images in a random order; in float64 the order does not reach its digits.
        """
        hidden = images_B3HW * 2 - 1
        for index in range(3):
            weight = self.get_buffer(f"weight_{index}")
            hidden = nn.functional.conv2d(hidden, weight, stride=1 + (index > 0), padding=1)
            hidden = nn.functional.leaky_relu(hidden, 0.2)
        pixels = hidden.flatten(2).double()
        return torch.cat([pixels.mean(-1), pixels.std(-1)], dim=1)


def distribution(task: Task, images: Sequence[Tensor]) -> Iterator[Measurement]:
    """Yield ``fid_conv64`` and ``kid_conv64`` between the images and the exact targets.

    KID is the unbiased estimate over all images at once. Both need two images at least.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if len(images) < 2:
        return
    fid = FrechetInceptionDistance(feature=Conv64())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        kid = KernelInceptionDistance(feature=Conv64(), subsets=1, subset_size=len(images))
    for name, metric in ((f"fid_{EXTRACTOR}", fid), (f"kid_{EXTRACTOR}", kid)):
        for part, images_B3HW in task.of_sizes(images):
            metric.update(part.target, real=True)
            metric.update(images_B3HW, real=False)
        value = metric.compute()
        yield Measurement(name, float(value[0] if isinstance(value, tuple) else value))
