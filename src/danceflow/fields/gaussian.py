"""The exact field of Gaussian data: a closed form to hold rollouts and training against."""

import math
from dataclasses import dataclass

from torch import Tensor

from danceflow.fields.field import Condition


@dataclass(frozen=True)
class GaussianField:
    """The velocity field whose data are independent N(mean, std^2) in every element.

    With c = z - (1-sigma) * mean and V = (1-sigma)^2 std^2 + sigma^2, the expectation of eps - x
    given z is v = (sigma/V) * c - mean - ((1-sigma) std^2 / V) * c.

    Attributes:
        mean: broadcastable to [B, C, H, W].
        std: standard deviation of the data, above 0.
    """

    mean: Tensor
    std: float

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, _condition: Condition, /) -> Tensor:
        """Return the exact velocity; every operation is elementwise."""
        sigma = sigma_B.reshape(-1, *[1] * (z_BCHW.ndim - 1))
        mean = self.mean.to(z_BCHW)
        variance = (1.0 - sigma).square() * self.std**2 + sigma.square()
        centred = z_BCHW - (1.0 - sigma) * mean
        return (sigma - (1.0 - sigma) * self.std**2) / variance * centred - mean

    def exact(self, noise: Tensor, sigma: float) -> Tensor:
        """Return the exact state (1-sigma) mean + sqrt(V) * noise on the path from that noise."""
        variance = (1.0 - sigma) ** 2 * self.std**2 + sigma**2
        return (1.0 - sigma) * self.mean.to(noise) + math.sqrt(variance) * noise
