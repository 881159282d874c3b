"""How alike two sets of images are: FID and KID through torchmetrics, named after their features.

Those of ``conv64``, a small fixed convolution network of our own, compare fields here and cannot be
compared with figures from Inception features, whose network lies on this machine.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.evaluate.measurement import Measurement
from danceflow.evaluate.task import Task
from danceflow.fields import normal, seed_for

EXTRACTOR = "conv64"

_EXTRACTOR_SEED = 20260627
_INCEPTION_BATCH = 32


def distribution(task: Task, images: Sequence[Tensor]) -> Iterator[Measurement]:
    """Yield ``fid_conv64`` and ``kid_conv64`` between the images and the exact targets."""
    return _distances(EXTRACTOR, Conv64(), task, images)


def _distances(
    name: str,
    features: nn.Module,
    task: Task,
    images: Sequence[Tensor],
    batch_size: int | None = None,
) -> Iterator[Measurement]:
    """Yield FID and KID between the images and the exact targets; both need two images at least.

    KID is the unbiased estimate over all images at once.

    Args:
        name: of the features.
        features: takes images in [0, 1]; its ``num_features`` tells how many it gives for each.
        task: what was asked.
        images: an answer to every row.
        batch_size: images at a time; ``None``: all of one size.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    count = len(images)
    if count < 2:
        return
    # Of several processes one has all answers: the others do not come to add theirs.
    alone = {"sync_on_compute": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        metrics: dict[str, Any] = {
            f"fid_{name}": FrechetInceptionDistance(feature=features, **alone),
            f"kid_{name}": KernelInceptionDistance(
                feature=features, subsets=1, subset_size=count, **alone
            ),
        }
    for metric_name, metric in metrics.items():
        for part, images_B3HW in task.of_sizes(images):
            size = batch_size or len(images_B3HW)
            for target, answers in zip(
                part.target.split(size), images_B3HW.split(size), strict=True
            ):
                metric.update(target, real=True)
                metric.update(answers, real=False)
        value = metric.compute()
        yield Measurement(metric_name, float(value[0] if isinstance(value, tuple) else value))


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


class InceptionDistances:
    """FID and KID between a field's images and the targets, on Inception features.

    The file is TorchScript that maps uint8 images [B, 3, H, W] to features [B, N], such as the
    ``inception-2015-12-05.pt`` that goes round with StyleGAN's metrics.
    """

    def __init__(self, path: Path) -> None:
        """Load the network."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = _Features(torch.jit.load(str(path), map_location="cpu"))

    def __call__(self, task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        """Yield ``fid_inception`` and ``kid_inception``; both need two images at least."""
        return _distances("inception", self.network, task, images, _INCEPTION_BATCH)


class _Features(nn.Module):
    """Lets a network of uint8 images take images in [0, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            probe = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
            features = self._run(probe)
        if features.ndim != 2:
            raise ValueError(f"it gives {features.ndim} axes, not images by features")
        self.num_features = int(features.shape[1])

    def _run(self, images: Tensor) -> Tensor:
        try:
            features: Tensor = self.network(images, return_features=True)
        except RuntimeError:  # a network without that argument gives features anyway
            features = self.network(images)
        return features

    @torch.no_grad()
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the features, [B, N] float64."""
        return self._run((images_B3HW * 255).round().to(torch.uint8)).double()
