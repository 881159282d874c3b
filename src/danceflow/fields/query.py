"""Which states of a rollout to ask the teacher about.

A query is a rollout index 0..N-1 (0 is noise, N-1 the last state before clean), never a sigma:
u ~ Beta(a, b) and index = min(floor(u * N), N-1) (DanceOPD, arXiv 2606.27377).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from danceflow.fields.names import lookup
from danceflow.fields.seeds import Seeds, derive_seeds, uniform

Sampler = Callable[[int, int, list[int], float], Tensor]

_POINTS_PER_INDEX = 512


def draw_queries(
    name: str,
    num_samples: int,
    num_steps: int,
    num_queries: int,
    seeds: Seeds,
    *,
    progress: float = 0.0,
) -> Tensor:
    """Return rollout indices [B, K] long, ascending and distinct within a row.

    Row i depends on seeds[i] alone. K indices are drawn one after the other without replacement;
    K = N gives every index, whatever the name.

    Args:
        name: "low" noise Beta(5, 2), "median" Beta(5, 5), "high" noise Beta(2, 5), "uniform",
            "stratified" (one uniform draw in each of K runs of indices) or "curriculum"
            Beta(2 + 3p, 5 - 3p), from high noise to low noise with training progress p.
        num_samples: B.
        num_steps: N, the number of steps of the rollout.
        num_queries: K.
        seeds: one per sample.
        progress: training progress p in 0..1, used by "curriculum".

    Raises:
        ValueError: unknown name, K outside 1..N, progress outside 0..1, or not B seeds.
    """
    sampler = lookup(QUERIES, name, "query")
    if not 1 <= num_queries <= num_steps:
        raise ValueError(
            f"num_queries is {num_queries}, but a rollout of {num_steps} steps has "
            f"{num_steps} states to choose from"
        )
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"training progress lies in 0..1, got {progress}")
    if len(seeds) != num_samples:
        raise ValueError(f"{num_samples} samples need as many seeds, got {len(seeds)}")
    return sampler(num_steps, num_queries, derive_seeds(seeds, "query"), progress)


@lru_cache(maxsize=64)
def beta_index_probabilities(alpha: float, beta: float, num_steps: int) -> Tensor:
    """Return P(floor(u * N) = index) for u ~ Beta(alpha, beta), [N] float64.

    By the midpoint rule on 512 points per index (alpha and beta at least 1, so the density is
    bounded); the error is below 1e-6.
    """
    num_points = _POINTS_PER_INDEX * num_steps
    u = (torch.arange(num_points, dtype=torch.float64) + 0.5) / num_points
    density = u.pow(alpha - 1.0) * (1.0 - u).pow(beta - 1.0)
    mass = density.reshape(num_steps, _POINTS_PER_INDEX).sum(dim=1)
    return mass / mass.sum()


def _biased(shape: Callable[[float], tuple[float, float]]) -> Sampler:
    """Return a sampler of Beta-biased indices; `shape` gives (alpha, beta) of the progress."""

    def draw(num_steps: int, num_queries: int, seeds: list[int], progress: float) -> Tensor:
        probabilities = beta_index_probabilities(*shape(progress), num_steps)
        # An exponential race: the first K arrivals are K draws without replacement.
        arrival = -uniform(seeds, (num_steps,)).log() / probabilities
        return arrival.argsort(dim=1)[:, :num_queries].sort(dim=1).values

    return draw


def _stratified(num_steps: int, num_queries: int, seeds: list[int], _progress: float) -> Tensor:
    """Return one uniform index from each of K runs of floor or ceil(N/K) consecutive indices."""
    edges = torch.arange(num_queries + 1) * num_steps // num_queries
    offset = uniform(seeds, (num_queries,)) * edges.diff()
    return edges[:-1] + offset.long()


QUERIES: Mapping[str, Sampler] = {
    "low": _biased(lambda _: (5.0, 2.0)),
    "median": _biased(lambda _: (5.0, 5.0)),
    "high": _biased(lambda _: (2.0, 5.0)),
    "uniform": _biased(lambda _: (1.0, 1.0)),
    "stratified": _stratified,
    "curriculum": _biased(lambda progress: (2.0 + 3.0 * progress, 5.0 - 3.0 * progress)),
}
