"""Rollouts of exact Gaussian fields against their closed-form trajectories."""

import pytest
import torch

from danceflow.fields import Condition, GaussianField, normal, rollout, sample, shifted_grid

NOISE = normal((2, 4, 4), list(range(16))).double()
CONDITION = Condition({"row": torch.zeros(16, 1)})
FIELD = GaussianField(torch.linspace(-1.0, 1.0, 4, dtype=torch.float64), 0.5)
STEPS = [16, 32, 64, 128, 256]


def slope(errors):
    """The least-squares slope of log(error) over log(number of steps)."""
    x = torch.tensor(STEPS, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


def test_the_field_is_the_expected_noise_minus_data():
    """A regression of eps - x on z at a fixed sigma recovers the closed form."""
    sigma = 0.6
    x = 0.3 + 0.5 * normal((100_000,), [1])[0].double()
    eps = normal((100_000,), [2])[0].double()
    z = (1.0 - sigma) * x + sigma * eps
    fitted = (torch.cov(torch.stack([z, eps - x])))[0, 1] / z.var()
    field = GaussianField(torch.tensor(0.3), 0.5)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    low, high = field(ends, torch.full((2,), sigma), CONDITION).flatten()
    assert (high - low).item() == pytest.approx(fitted.item(), abs=0.01)
    at_mean = low + (high - low) * z.mean()
    assert at_mean.item() == pytest.approx((eps - x).mean().item(), abs=0.01)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_error_falls_with_slope_minus_one(shift):
    errors = [
        (sample(FIELD, NOISE, CONDITION, shifted_grid(n, shift)) - FIELD.exact(NOISE, 0.0))
        .square()
        .mean()
        .sqrt()
        .item()
        for n in STEPS
    ]
    assert errors == sorted(errors, reverse=True)
    assert -1.1 < slope(errors) < -0.9


def test_the_error_at_a_kept_middle_state_has_order_one_too():
    errors = []
    for n in STEPS:
        keep = torch.full((16, 1), n // 2)
        states = rollout(FIELD, NOISE, CONDITION, shifted_grid(n, 1.0), keep)
        exact = FIELD.exact(NOISE, 0.5)
        errors.append((states.z[:, 0] - exact).square().mean().sqrt().item())
    assert -1.1 < slope(errors) < -0.9


def test_the_exact_trajectory_ends_in_the_data():
    data = FIELD.exact(NOISE, 0.0)
    assert torch.allclose(data, FIELD.mean + 0.5 * NOISE)
    assert torch.equal(FIELD.exact(NOISE, 1.0), NOISE)


def test_the_exact_trajectory_solves_the_field():
    """A central difference of the closed form equals the field on it."""
    for sigma in (0.1, 0.4, 0.9):
        h = 1e-5
        derivative = (FIELD.exact(NOISE, sigma + h) - FIELD.exact(NOISE, sigma - h)) / (2.0 * h)
        z = FIELD.exact(NOISE, sigma)
        velocity = FIELD(z, torch.full((16,), sigma, dtype=torch.float64), CONDITION)
        assert torch.allclose(derivative, velocity, atol=1e-8)


def test_float32_rollouts_agree_with_float64_ones():
    grid = shifted_grid(28, 3.0)
    single = sample(FIELD, NOISE.float(), CONDITION, grid)
    assert single.dtype == torch.float32
    difference = single.double() - sample(FIELD, NOISE, CONDITION, grid)
    assert difference.abs().max() < 1e-5
