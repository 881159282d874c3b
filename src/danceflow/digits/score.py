"""Reads digits back from pictures: which one it is, and whether it looks like a real one."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from danceflow.digits.world import SCAN_SIZE, Digit, load_digits

Array = NDArray[np.float64]
_REAL_SHARE = 0.95
"""Share of the real digits that the reader takes for real."""


class DigitReader:
    """A support vector machine that reads digits, trained on the scans of the train split.

    A picture also has to lie as near to some scan of the train split as 95 % of those scans lie to
    another one, and that scan has to show the same digit: a support vector machine alone gives
    everything a name.
    """

    def __init__(self, digits: tuple[Digit, ...]) -> None:
        """Learn from the digits of the train split."""
        from sklearn.neighbors import NearestNeighbors
        from sklearn.svm import SVC

        train = [digit for digit in digits if digit.split == "train"]
        features = _features(digit_images(train))
        self.labels = np.array([digit.label for digit in train])
        self.classifier = SVC(gamma=0.001, C=10.0).fit(features, self.labels)
        self.neighbours = NearestNeighbors(n_neighbors=1).fit(features)
        distances, _ = self.neighbours.kneighbors(n_neighbors=1)  # of each to another one
        self.max_distance = float(np.quantile(distances, _REAL_SHARE))

    def read(self, images_B3HW: Tensor) -> list[int | None]:
        """Return the digit that each picture shows, None where it looks like none.

        Args:
            images_B3HW: in [0, 1], bright ink on a dark ground, of any size.
        """
        features = _features(images_B3HW)
        distances, nearest = self.neighbours.kneighbors(features)
        labels = self.classifier.predict(features)
        real = (distances[:, 0] <= self.max_distance) & (self.labels[nearest[:, 0]] == labels)
        return [int(label) if ok else None for label, ok in zip(labels, real, strict=True)]


@lru_cache(maxsize=1)
def digit_reader() -> DigitReader:
    """Return the reader, trained once in a process."""
    return DigitReader(load_digits())


def digit_images(digits: list[Digit]) -> Tensor:
    """Return the scans as pictures, [B, 3, 16, 16] in [0, 1]."""
    pixels = np.stack([digit.pixels for digit in digits])
    return torch.from_numpy(pixels).float().div(255)[:, None].expand(-1, 3, -1, -1)


def _features(images_B3HW: Tensor) -> Array:
    """Return the gray levels at the scans' own resolution, [B, 64] from 0 to 16."""
    gray = images_B3HW.detach().cpu().float().mean(1, keepdim=True)
    small = torch.nn.functional.adaptive_avg_pool2d(gray, SCAN_SIZE)
    features: Array = (small.flatten(1) * 16).double().numpy()
    return features
