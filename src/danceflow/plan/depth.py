"""How deep a rollout is expected to go: the mean of the deepest of a sample's queries."""

import torch
from torch import Tensor

from danceflow.fields import OnPolicy
from danceflow.fields.query import SHAPES, beta_index_probabilities
from danceflow.method import Method

_NUM_POINTS = 512
_NUM_PROGRESS = 64


def expected_depth(method: Method, num_steps: int, num_samples: int = 1) -> float:
    """Return the student's expected evaluations per sample in the rollout of an update.

    Of several samples those of the one that goes deepest: how often the network is called for them
    all. They are taken to draw independently of each other; coupled ones reach a little deeper.

    A rollout of a sample ends at its deepest query, and goes one step further where the objective
    needs successors; a warm start saves the steps before it. Averaged over the whole training, for
    a query that changes with its progress.

    Args:
        method: with states from a rollout; noised states cost none.
        num_steps: N, the steps of the rollout.
        num_samples: that are rolled out together.
    """
    if not isinstance(method.states, OnPolicy) or not method.trains:
        return 0.0
    below = _below(method, num_steps, num_samples)  # P(deepest < index), index 0..N
    probability = below.diff()
    depth = torch.arange(num_steps, dtype=torch.float64) + float(method.objective.needs_successors)
    return float((probability * (depth - method.states.warm_start).clamp_min(0)).sum())


def _below(method: Method, num_steps: int, num_samples: int) -> Tensor:
    """Return P(the deepest of all samples' and rounds' queries < index), [N + 1] float64."""
    num_queries = method.queries_per_sample(num_steps)
    draws = num_samples * method.updates_per_rollout
    if method.query == "stratified":
        # One query in each of K runs of indices: the deepest is uniform in the last run.
        first = (num_queries - 1) * num_steps // num_queries
        below = (torch.arange(num_steps + 1, dtype=torch.float64) - first) / (num_steps - first)
        return below.clamp_min(0).pow(draws)
    progress = (torch.arange(_NUM_PROGRESS, dtype=torch.float64) + 0.5) / _NUM_PROGRESS
    # Most queries have one distribution, whatever the progress.
    shapes = dict.fromkeys(map(SHAPES[method.query], progress.tolist()))
    each = [
        _all_below(beta_index_probabilities(*shape, num_steps), num_queries).pow(draws)
        for shape in shapes
    ]
    return torch.stack(each).mean(0)


def _all_below(probability_N: Tensor, num_queries: int) -> Tensor:
    """Return P(K draws without replacement are all < index), [N + 1] float64.

    The draws are the first K arrivals of an exponential race with these rates. All are below the
    index when K indices below arrive before the first of the others, whose arrival is exponential
    too: the integral over that arrival of a Poisson-binomial tail.
    """
    num_steps = len(probability_N)
    result = torch.zeros(num_steps + 1, dtype=torch.float64)
    result[num_steps] = 1.0
    survival = (torch.arange(_NUM_POINTS, dtype=torch.float64) + 0.5) / _NUM_POINTS
    for index in range(num_queries, num_steps):
        rest = probability_N[index:].sum()
        time = -survival.log() / rest
        # [points, 0..K]: how many of the indices below have arrived, K and more in one place.
        arrived = torch.zeros(_NUM_POINTS, num_queries + 1, dtype=torch.float64)
        arrived[:, 0] = 1.0
        for rate in probability_N[:index]:
            there = (1.0 - (-rate * time).exp())[:, None]
            moved = arrived * there
            arrived = arrived - moved
            arrived[:, 1:] += moved[:, :-1]
            arrived[:, -1] += moved[:, -1]
        result[index] = arrived[:, -1].mean()
    return result
