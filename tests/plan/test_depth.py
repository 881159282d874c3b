"""The expected depth of a rollout, against the indices that are really drawn."""

import pytest
import torch

from danceflow.fields.query import QUERIES, draw_queries
from danceflow.method import METHODS, resolve_method
from danceflow.plan.depth import expected_depth

NUM_SAMPLES = 8000
CASES = [
    *({"query": name} for name in QUERIES),
    *({"query": name, "num_queries": 3} for name in QUERIES),
    {"num_queries": "all"},
    {"warm_start": 3},
    {"updates_per_rollout": 4},
    {"query": "stratified", "num_queries": 2, "updates_per_rollout": 2},
    {"coupling": "antithetic"},
    {"coupling": "stratified", "query": "median"},
    {"method": "flowopd"},
]


def drawn(method, num_steps: int) -> torch.Tensor:
    """How deep each of many samples goes, with the training's progress spread evenly."""
    depths = []
    for tenth in range(10):
        rounds = [
            draw_queries(
                method.query,
                NUM_SAMPLES // 10,
                num_steps,
                method.queries_per_sample(num_steps),
                [100_000 * number + 1000 * tenth + i for i in range(NUM_SAMPLES // 10)],
                progress=(tenth + 0.5) / 10,
                coupling=method.coupling,
            )
            for number in range(method.updates_per_rollout)
        ]
        deepest = torch.cat(rounds, dim=1).max(dim=1).values + method.objective.needs_successors
        depths.append((deepest - method.states.warm_start).clamp_min(0))
    return torch.cat(depths).double()


@pytest.mark.parametrize("options", CASES, ids=str)
def test_depth_is_the_mean_of_what_is_drawn(options) -> None:
    method = resolve_method(options.pop("method", "danceopd"), **options)
    found = drawn(method, 10)
    error = float(found.std()) / NUM_SAMPLES**0.5
    assert expected_depth(method, 10) == pytest.approx(float(found.mean()), abs=4 * error + 0.02)
    if method.coupling == "independent":
        deepest = found.reshape(-1, 4).amax(dim=1)
        error = float(deepest.std()) / len(deepest) ** 0.5
        planned = expected_depth(method, 10, 4)
        assert planned == pytest.approx(float(deepest.mean()), abs=4 * error + 0.02)


def test_known_values() -> None:
    """E[index] of Beta(5, 2): 5.21, 6.64, 10.93 and 19.50 for 8, 10, 16 and 28 steps."""
    found = [expected_depth(METHODS["danceopd"], n) for n in (8, 10, 16, 28)]
    assert found == pytest.approx([5.21, 6.64, 10.93, 19.50], abs=0.005)
    assert expected_depth(METHODS["diffusionopd"], 16) == pytest.approx(15)
    assert expected_depth(METHODS["flowopd"], 16) == pytest.approx(16)


@pytest.mark.parametrize("name", ["joint", "offpolicy", "offpolicy_random_latent", "merge"])
def test_what_rolls_nothing_out_costs_nothing(name: str) -> None:
    assert expected_depth(METHODS[name], 16) == 0
