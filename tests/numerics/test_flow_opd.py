"""Flow-OPD's gradient: the KL's when the advantage is not detached, nothing when it is."""

import math

import pytest
import torch

from danceflow.fields import Condition, Queries, Sde, normal, resolve_objective
from danceflow.fields.objective import policy_loss, transition_kl
from danceflow.fields.rollout import sde_transition

ETA, NUM, SHAPE = 0.7, 40_000, (1, 2, 2)
SIGMAS = [(1.0, 0.9), (0.5, 0.4), (0.1, 0.0)]
STUDENT, TEACHER = torch.tensor(0.8), torch.tensor(-0.4)


def drawn_queries(sigma, sigma_next):
    """NUM successors that the student's policy drew from one and the same state."""
    z = normal(SHAPE, [0]).repeat(NUM, 1, 1, 1)
    levels = torch.full((NUM,), sigma), torch.full((NUM,), sigma_next)
    mean, std = sde_transition(z, STUDENT.expand_as(z), *levels, ETA)
    noise = normal(SHAPE, list(range(1, NUM + 1)))
    return Queries(
        z=z,
        sigma=levels[0],
        sigma_next=levels[1],
        index=torch.zeros(NUM, dtype=torch.int64),
        condition=Condition({"row": torch.zeros(NUM, 1)}),
        num_queries=1,
        grid=torch.tensor([1.0, 0.0]),
        dynamics=Sde(ETA),
        z_next=mean + std.reshape(-1, 1, 1, 1) * noise,
    )


def row_gradients(name, queries):
    """The gradient of each row's loss with respect to its student velocity, [NUM, ...]."""
    student = STUDENT.expand_as(queries.z).clone().requires_grad_()
    loss, _ = resolve_objective(name)(student, TEACHER.expand_as(queries.z), queries)
    return NUM * torch.autograd.grad(loss, student)[0]


def analytic_kl_gradient(sigma, sigma_next):
    """d/dv of gain^2 / (2 std^2) * mean((v - v_m)^2), from plain numbers."""
    dt = sigma_next - sigma
    g = ETA * math.sqrt(sigma / (1.0 - (sigma_next if sigma == 1.0 else sigma)))
    gain = (1.0 + g * g * (1.0 - sigma) / (2.0 * sigma)) * dt
    weight = gain**2 / (2.0 * g * g * -dt)
    return weight * 2.0 * (STUDENT - TEACHER).item() / math.prod(SHAPE)


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_the_mean_gradient_is_that_of_the_kl(sigmas):
    gradients = row_gradients("flowopd", drawn_queries(*sigmas)).double()
    expected = analytic_kl_gradient(*sigmas)
    mean, error = gradients.mean(dim=0), gradients.std(dim=0) / math.sqrt(NUM)
    assert ((mean - expected).abs() < 4.0 * error).all()
    assert (4.0 * error < 0.1 * expected).all()


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_the_detached_variants_mean_gradient_is_zero(sigmas):
    gradients = row_gradients("flowopd_detached", drawn_queries(*sigmas)).double()
    mean, error = gradients.mean(dim=0), gradients.std(dim=0) / math.sqrt(NUM)
    assert (mean.abs() < 4.0 * error).all()
    assert (4.0 * error < 0.1 * analytic_kl_gradient(*sigmas)).all()
    assert (gradients != 0).any()


def test_the_two_variants_differ_by_just_the_kls_gradient():
    queries = drawn_queries(0.5, 0.4)
    difference = row_gradients("flowopd", queries) - row_gradients("flowopd_detached", queries)
    expected = torch.full_like(difference, analytic_kl_gradient(0.5, 0.4))
    assert torch.allclose(difference, expected, rtol=1e-3)


def test_the_row_losses_of_an_unchanged_policy_are_the_kl():
    queries = drawn_queries(0.5, 0.4)
    student, teacher = (value.expand_as(queries.z) for value in (STUDENT, TEACHER))
    _, rows = resolve_objective("flowopd")(student, teacher, queries)
    assert torch.equal(rows, transition_kl(student, teacher, queries, ETA))


@pytest.mark.parametrize(
    ("log_ratio", "expected_slope"),
    [(0.0, 1.0), (5e-5, 1.0), (0.5, 1.0), (-5e-5, 1.0), (-0.5, 0.0)],
)
def test_the_clip_stops_what_is_already_rarer(log_ratio, expected_slope):
    """With advantage -kl < 0, a ratio below 1 - clip gets no more gradient; above, all of it."""
    log_prob = torch.tensor([log_ratio], requires_grad=True)
    loss = policy_loss(torch.tensor([2.0]), log_prob, torch.zeros(1), clip=1e-4)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert gradient.item() == pytest.approx(expected_slope * 2.0 * math.exp(log_ratio))
