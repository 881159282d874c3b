"""Which states of a rollout to ask the teacher about.

A query is a rollout index 0..N-1 (0 is noise, N-1 the last state before clean), never a sigma:
u ~ Beta(a, b) and index = min(floor(u * N), N-1) (DanceOPD, arXiv 2606.27377).

The samples of a batch draw independently of each other, or coupled: every sample keeps the query's
distribution, but the batch covers it more evenly, so that a batch's loss varies less.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from danceflow.fields.names import lookup
from danceflow.fields.seeds import Seeds, derive_seeds, uniform

Sampler = Callable[[int, int, list[int], float], Tensor]
Shape = Callable[[float], tuple[float, float]]

INDEPENDENT = "independent"

_POINTS_PER_INDEX = 512


def draw_queries(
    name: str,
    num_samples: int,
    num_steps: int,
    num_queries: int,
    seeds: Seeds,
    *,
    progress: float = 0.0,
    coupling: str = INDEPENDENT,
    runs: Sequence[int] | None = None,
) -> Tensor:
    """Return rollout indices [B, K] long, ascending and distinct within a row.

    Row i depends on seeds[i] alone, unless it is coupled. K indices are drawn one after the other
    without replacement; K = N gives every index, whatever the name.

    Args:
        name: "low" noise Beta(5, 2), "median" Beta(5, 5), "high" noise Beta(2, 5), "uniform",
            "stratified" (one uniform draw in each of K runs of indices) or "curriculum"
            Beta(2 + 3p, 5 - 3p), from high noise to low noise with training progress p.
        num_samples: B.
        num_steps: N, the number of steps of the rollout.
        num_queries: K.
        seeds: one per sample.
        progress: training progress p in 0..1, used by "curriculum".
        coupling: a name of COUPLINGS: "independent", "antithetic" (neighbours mirror each other)
            or "stratified" (the samples of a run share out the distribution evenly); needs K = 1.
        runs: sizes of the runs of samples that are coupled with each other; None: all B.

    Raises:
        ValueError: unknown name, K outside 1..N, progress outside 0..1, not B seeds, runs that do
            not sum to B, or coupled samples of several queries.
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
    spread = lookup(COUPLINGS, coupling, "coupling")
    if spread is None:
        return sampler(num_steps, num_queries, derive_seeds(seeds, "query"), progress)
    require_single(coupling, num_queries)
    sizes = [num_samples] if runs is None else list(runs)
    if sum(sizes) != num_samples:
        raise ValueError(f"runs {sizes} do not sum to {num_samples} samples")
    ends = list(accumulate(sizes))
    given = derive_seeds(seeds, "query")
    u_B = torch.cat(
        [spread(given[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    )
    edges = beta_index_probabilities(*SHAPES[name](progress), num_steps).cumsum(0)
    # Without the last edge, which may round to below 1: no point may fall past it.
    return torch.searchsorted(edges[:-1], u_B, right=True)[:, None]


def require_single(coupling: str, num_queries: int | str) -> None:
    """Raise ValueError when coupled samples have more than one query each."""
    if COUPLINGS.get(coupling) is not None and num_queries != 1:
        raise ValueError(
            f"coupling {coupling!r} spreads one query per sample over the batch, but num_queries "
            f"is {num_queries}"
        )


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


def _antithetic(seeds: list[int]) -> Tensor:
    """Return [n] points in pairs u, 1 - u; a last single one is on its own."""
    first = uniform(seeds[::2])
    return torch.stack([first, 1.0 - first], dim=1).flatten()[: len(seeds)]


def _even(seeds: list[int]) -> Tensor:
    """Return [n] points, one in each n-th of (0, 1), in an order drawn from the first seed."""
    place = uniform(derive_seeds(seeds[:1], "order"), (len(seeds),)).flatten().argsort()
    return (place + uniform(seeds)) / len(seeds)


COUPLINGS: Mapping[str, Callable[[list[int]], Tensor] | None] = {
    INDEPENDENT: None,
    "antithetic": _antithetic,
    "stratified": _even,
}
"""How the samples of a batch share out the distribution of their query; None: they do not."""


def _biased(shape: Shape) -> Sampler:
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


SHAPES: Mapping[str, Shape] = {
    "low": lambda _: (5.0, 2.0),
    "median": lambda _: (5.0, 5.0),
    "high": lambda _: (2.0, 5.0),
    "uniform": lambda _: (1.0, 1.0),
    "stratified": lambda _: (1.0, 1.0),
    "curriculum": lambda progress: (2.0 + 3.0 * progress, 5.0 - 3.0 * progress),
}
"""(alpha, beta) of a single query's Beta distribution, by training progress."""

QUERIES: Mapping[str, Sampler] = {name: _biased(shape) for name, shape in SHAPES.items()} | {
    "stratified": _stratified
}
