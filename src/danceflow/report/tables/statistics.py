"""A mean over seeds with its 95 % interval by Student's t."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_TAIL = 0.975


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds' values.
        half: half the width of its 95 % t interval; ``None`` where one seed ran.
        num: of seeds.
    """

    mean: float
    half: float | None
    num: int

    @staticmethod
    def of(values: Sequence[float]) -> "Estimate":
        """Return the mean of at least one value, with its interval."""
        num = len(values)
        mean = math.fsum(values) / num
        if num < 2:
            return Estimate(mean, None, num)
        variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
        return Estimate(mean, t_quantile(num - 1) * math.sqrt(variance / num), num)


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t, by bisection of its distribution function.

    Args:
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1e3
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_distribution(middle, degrees) < _TAIL else (low, middle)
    return high


def _t_distribution(t: float, degrees: int) -> float:
    """Return P(T <= t) for t >= 0 (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(theta), degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if degrees == 1:
        total = 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    inside = math.sin(theta) * total
    both = (theta + inside) * 2 / math.pi if odd else inside
    return 0.5 + both / 2
