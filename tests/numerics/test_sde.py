"""The SDE's transition, its likelihood ratio and the marginals it must keep."""

import math

import pytest
import torch

from danceflow.fields import Condition, GaussianField, Queries, Sde, normal, rollout, shifted_grid
from danceflow.fields.objective import transition_log_prob
from danceflow.fields.rollout import sde_transition

ETA = 0.7


def condition(num_samples):
    return Condition({"row": torch.zeros(num_samples, 1)})


def field(z, sigma, condition):
    return 2.0 * z - 1.0


def moments_by_hand(z, sigma, sigma_next):
    """The transition's mean and standard deviation from plain numbers."""
    dt = sigma_next - sigma
    g = ETA * math.sqrt(sigma / (1.0 - (sigma_next if sigma == 1.0 else sigma)))
    velocity = 2.0 * z - 1.0
    mean = z * (1.0 + g * g / (2.0 * sigma) * dt)
    mean += velocity * (1.0 + g * g * (1.0 - sigma) / (2.0 * sigma)) * dt
    return mean, g * math.sqrt(-dt)


@pytest.mark.parametrize("sigmas", [(1.0, 0.8, 0.0), (0.8, 0.5, 0.0), (0.2, 0.0)])
def test_transition_moments_by_simulation(sigmas):
    num_samples, start = 40_000, 0.3
    states = rollout(
        field,
        torch.full((num_samples, 1, 1, 1), start),
        condition(num_samples),
        torch.tensor(sigmas),
        torch.ones(num_samples, 1, dtype=torch.int64),
        dynamics=Sde(ETA),
        sample_seeds=list(range(num_samples)),
    )
    drawn = states.z.flatten().double()
    mean, std = moments_by_hand(start, sigmas[0], sigmas[1])
    assert abs(drawn.mean().item() - mean) < 4.0 * std / math.sqrt(num_samples)
    assert abs(drawn.std().item() / std - 1.0) < 4.0 / math.sqrt(2.0 * num_samples)


def test_the_sde_keeps_the_marginals_of_the_ode():
    """With the exact field of N(0.4, 0.5^2), many SDE steps end in just those data."""
    num_samples = 16  # of many numbers each: every sample draws its own noise at every step
    grid = shifted_grid(400, 1.0)
    keep = torch.tensor([[200, 399]]).repeat(num_samples, 1)
    states = rollout(
        GaussianField(torch.tensor(0.4), 0.5),
        normal((1, 32, 32), list(range(num_samples))),
        condition(num_samples),
        grid,
        keep,
        dynamics=Sde(ETA),
        sample_seeds=list(range(num_samples)),
    )
    for slot, index in enumerate((200, 399)):
        sigma = grid[index].item()
        variance = (1.0 - sigma) ** 2 * 0.25 + sigma**2
        z = states.z[:, slot].double()
        assert z.mean().item() == pytest.approx((1.0 - sigma) * 0.4, abs=0.02)
        assert z.std().item() == pytest.approx(math.sqrt(variance), rel=0.02)


def test_noise_is_fresh_at_every_step_and_for_every_sample():
    states = rollout(
        lambda z, s, c: torch.zeros_like(z),
        torch.zeros(64, 1, 8, 8),
        condition(64),
        shifted_grid(4, 1.0),
        torch.tensor([[1, 2, 3]]).repeat(64, 1),
        dynamics=Sde(ETA),
        sample_seeds=list(range(64)),
    )
    first, second = states.z[:, 0].flatten(1), states.z[:, 1].flatten(1)
    pull = 1.0 - ETA**2 * 0.75 / 0.25 / (2.0 * 0.75) * 0.25
    added = second - pull * first
    correlation = torch.corrcoef(torch.stack([first.flatten(), added.flatten()]))[0, 1]
    assert abs(correlation) < 4.0 / math.sqrt(first.numel())
    between = torch.corrcoef(first) - torch.eye(64)
    assert between.abs().max() < 5.0 / math.sqrt(64)


def test_rescoring_an_unchanged_policy_gives_ratio_exactly_one():
    """The velocities the rollout used and those of a second look give the same likelihood."""
    grid, num_samples = shifted_grid(8, 3.0), 5
    policy = GaussianField(torch.tensor(0.2), 0.6)
    recorded = []

    def recording(z, sigma, condition):
        recorded.append(policy(z, sigma, condition))
        return recorded[-1]

    seeds = list(range(num_samples))
    states = rollout(
        recording,
        normal((2, 3, 3), seeds),
        condition(num_samples),
        grid,
        torch.arange(9).repeat(num_samples, 1),
        dynamics=Sde(ETA),
        sample_seeds=seeds,
    )
    for step, velocity in enumerate(recorded):
        queries = Queries(
            z=states.z[:, step],
            sigma=states.sigma[:, step],
            sigma_next=states.sigma[:, step + 1],
            index=states.index[:, step],
            condition=condition(num_samples),
            num_queries=1,
            grid=grid,
            dynamics=Sde(ETA),
        )
        z_next = states.z[:, step + 1]
        again = policy(queries.z, queries.sigma, queries.condition)
        old, new = (transition_log_prob(z_next, v, queries, ETA) for v in (velocity, again))
        assert torch.equal((new - old).exp(), torch.ones(num_samples))
        other = transition_log_prob(z_next, again + 0.1, queries, ETA)
        assert not torch.equal((other - old).exp(), torch.ones(num_samples))


def test_the_log_probability_is_that_of_a_normal_distribution():
    z, velocity, z_next = (normal((1, 2, 2), range(first, first + 3)) for first in (0, 10, 20))
    sigma, sigma_next = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.9, 0.4, 0.0])
    queries = Queries(
        z=z,
        sigma=sigma,
        sigma_next=sigma_next,
        index=torch.arange(3),
        condition=condition(3),
        num_queries=1,
        grid=torch.tensor([1.0, 0.0]),
        dynamics=Sde(ETA),
    )
    mean, std = sde_transition(z, velocity, sigma, sigma_next, ETA)
    exact = torch.distributions.Normal(mean, std.reshape(3, 1, 1, 1)).log_prob(z_next)
    expected = exact.flatten(1).mean(dim=1) + 0.5 * math.log(2.0 * math.pi)
    assert torch.allclose(transition_log_prob(z_next, velocity, queries, ETA), expected, rtol=1e-4)
