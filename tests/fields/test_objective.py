import itertools
import math
from dataclasses import replace

import pytest
import torch

from danceflow.fields import (
    OBJECTIVES,
    REDUCTIONS,
    Condition,
    Queries,
    Sde,
    resolve_objective,
    shifted_grid,
    velocity_mse,
    with_reduction,
)
from danceflow.fields.rollout import sde_transition

WEIGHTED = ["mse", "snr", "kl", "consistency", "mix", "diffusionopd", "diffusionopd_uniform"]


def queries_at(index_BK, grid, **changes):
    """Queries at the given rollout indices, with random states of shape (1, 2, 3)."""
    index = torch.tensor(index_BK)
    flat = index.flatten()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(len(flat), 1, 2, 3, generator=generator)
    return replace(
        Queries(
            z=z,
            sigma=grid[flat],
            sigma_next=grid[flat + 1],
            index=flat,
            condition=Condition({"row": torch.arange(len(flat))[:, None]}),
            num_queries=index.shape[1],
            grid=grid,
        ),
        **changes,
    )


def unit_losses(name, queries):
    """Row losses when the squared velocity gap is 1 everywhere, that is, the row weights."""
    target = torch.zeros_like(queries.z)
    return resolve_objective(name)(target + 1.0, target, queries)[1]


QUERIES = queries_at([[0, 5], [8, 15]], shifted_grid(16, 3.0))


def test_the_mix_weighs_a_whole_rollout_as_plain_mse_does():
    """Its two halves have the same mean over the N states, so neither drowns the other."""
    every = queries_at([list(range(16))], shifted_grid(16, 3.0))
    weights = unit_losses("mix", every)
    assert abs(weights.mean() - 1.0) < 1e-5
    assert (weights - 0.5).mean().item() == pytest.approx(0.5, abs=1e-5)
    assert torch.allclose(
        unit_losses("mix", queries_at([[0, 7]], shifted_grid(8, 1.0))), torch.ones(2)
    )


def test_velocity_mse_is_the_mean_over_the_state():
    student = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 4.0]]]])
    target = torch.tensor([[[[0.0, 0.0]]], [[[0.0, 0.0]]]])
    assert velocity_mse(student, target).tolist() == [2.5, 8.0]


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_objectives_are_a_state_weight_times_the_mse(name):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(QUERIES.z.shape, generator=generator)
    target = torch.randn(QUERIES.z.shape, generator=generator)
    _, rows = resolve_objective(name)(student, target, QUERIES)
    assert torch.allclose(rows, unit_losses(name, QUERIES) * velocity_mse(student, target))


def test_row_weights_by_hand():
    sigma = QUERIES.sigma
    step = QUERIES.sigma_next - sigma
    snr = ((1.0 - sigma) / sigma).square()
    g = 0.7 * (sigma / (1.0 - torch.where(sigma == 1.0, QUERIES.sigma_next, sigma))).sqrt()
    gain = (1.0 + g**2 * (1.0 - sigma) / (2.0 * sigma)) * step
    expected = {
        "mse": torch.ones(4),
        "snr": snr.clamp(max=5.0) * sigma**2,
        "kl": gain**2 / (2.0 * g**2 * step.abs()),
        "consistency": sigma**2,
        "mix": 0.5 + 0.5 * step**2 / QUERIES.grid.diff().square().mean(),
        "diffusionopd": step**2 / 2.0,
        "diffusionopd_uniform": torch.full((4,), 1.0 / 512.0),
    }
    for name, weights in expected.items():
        assert torch.allclose(unit_losses(name, QUERIES), weights), name


def test_diffusion_opd_weights_match_a_hand_sum_on_the_shift_3_grid():
    sigmas = [3.0 * (1.0 - k / 16.0) / (1.0 + 2.0 * (1.0 - k / 16.0)) for k in range(17)]
    by_hand = [0.5 * (b - a) ** 2 for a, b in itertools.pairwise(sigmas)]
    queries = queries_at([list(range(16))], shifted_grid(16, 3.0))
    loss, rows = resolve_objective("diffusionopd")(queries.z + 1.0, queries.z, queries)
    assert rows.tolist() == pytest.approx(by_hand, rel=1e-4)
    assert loss.item() == pytest.approx(sum(by_hand), rel=1e-4)
    assert round(100.0 * (rows[-4:].sum() / rows.sum()).item()) == 73


def test_the_uniform_variant_agrees_only_on_a_uniform_grid():
    everything = [list(range(16))]
    even = queries_at(everything, shifted_grid(16, 1.0))
    assert torch.allclose(
        unit_losses("diffusionopd", even), unit_losses("diffusionopd_uniform", even), rtol=1e-5
    )
    shifted = queries_at(everything, shifted_grid(16, 3.0))
    weights = unit_losses("diffusionopd_uniform", shifted)
    assert (weights[-4:].sum() / weights.sum()).item() == pytest.approx(0.25)


def test_kl_weight_is_the_kl_of_the_two_transitions():
    queries = replace(QUERIES, dynamics=Sde(0.4))
    target = torch.zeros_like(queries.z)
    _, rows = resolve_objective("kl")(target + 0.3, target, queries)
    for row, value in enumerate(rows):
        parts = [
            sde_transition(
                queries.z[row : row + 1],
                velocity[row : row + 1],
                queries.sigma[row : row + 1],
                queries.sigma_next[row : row + 1],
                0.4,
            )
            for velocity in (target + 0.3, target)
        ]
        student, teacher = (torch.distributions.Normal(mean, std) for mean, std in parts)
        exact = torch.distributions.kl_divergence(student, teacher).mean()
        assert value.item() == pytest.approx(exact.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("mean", (2.5 + 5.0) / 2.0), ("sum", (5.0 + 10.0) / 2.0), ("weighted", (3.4 + 5.0) / 2.0)],
)
def test_reductions_over_the_queries(reduction, expected):
    gaps = torch.tensor([1.0, 4.0, 5.0, 5.0]).sqrt().reshape(4, 1, 1, 1)
    objective = with_reduction(resolve_objective("mse"), reduction)
    loss, rows = objective(QUERIES.z + gaps, QUERIES.z, QUERIES)
    assert rows.tolist() == pytest.approx([1.0, 4.0, 5.0, 5.0], rel=1e-4)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_weighted_reduction_has_no_gradient_through_its_shares():
    student = (QUERIES.z + torch.tensor([1.0, 2.0, 1.0, 3.0]).reshape(4, 1, 1, 1)).requires_grad_()
    objective = with_reduction(resolve_objective("mse"), "weighted")
    loss, _ = objective(student, QUERIES.z, QUERIES)
    (gradient,) = torch.autograd.grad(loss, student)
    shares = torch.tensor([0.2, 0.8, 0.1, 0.9]).reshape(4, 1, 1, 1)
    expected = shares * 2.0 * (student - QUERIES.z).detach() / 6.0 / 2.0
    assert torch.allclose(gradient, expected, rtol=1e-4)


def test_the_weighted_reduction_of_zero_losses_is_zero():
    loss, _ = with_reduction(resolve_objective("mse"), "weighted")(QUERIES.z, QUERIES.z, QUERIES)
    assert loss.item() == 0.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
def test_chunk_losses_and_gradients_sum_to_the_whole(name, reduction):
    generator = torch.Generator().manual_seed(2)
    index = [[0, 3, 7], [2, 9, 15], [1, 4, 6], [5, 5, 5], [0, 14, 15]]
    queries = queries_at(index, shifted_grid(16, 3.0), dynamics=Sde(0.7))
    queries = replace(queries, z_next=torch.randn(queries.z.shape, generator=generator))
    target = torch.randn(queries.z.shape, generator=generator)
    slope = torch.tensor(0.3, requires_grad=True)
    objective = with_reduction(resolve_objective(name), reduction)

    def ema(z, sigma, condition):
        return 0.5 * z

    loss, rows = objective(slope * queries.z, target, queries, ema)
    (whole,) = torch.autograd.grad(loss, slope)
    assert torch.isfinite(whole)
    assert whole != 0
    assert loss.dtype == torch.float32
    assert not rows.requires_grad

    total, chunk_rows, seen = 0.0, [], []
    for chunk, share in queries.split(max_rows=7):
        assert len(chunk.z) <= 7
        wanted = target[chunk.condition.tensors["row"].flatten()]
        part, part_rows = objective(slope * chunk.z, wanted, chunk, ema)
        (share * part).backward()
        total += share * part.item()
        chunk_rows.append(part_rows)
        seen.append(chunk.index)
    assert torch.equal(torch.cat(seen), queries.index)
    assert torch.allclose(torch.cat(chunk_rows), rows)
    assert total == pytest.approx(loss.item(), rel=1e-5)
    assert slope.grad.item() == pytest.approx(whole.item(), rel=1e-4)


def test_a_chunk_holds_at_least_one_sample():
    assert [len(chunk.z) for chunk, _ in QUERIES.split(max_rows=1)] == [2, 2]


def test_dmd_ema_moves_the_student_along_the_emas_gap():
    student = torch.zeros_like(QUERIES.z).requires_grad_()
    target = torch.full_like(QUERIES.z, 1.0)

    def ema(z, sigma, condition):
        return torch.full_like(z, 3.0)

    loss, rows = resolve_objective("dmd-ema")(student, target, QUERIES, ema)
    (gradient,) = torch.autograd.grad(loss, student)
    assert rows.tolist() == [4.0] * 4
    assert torch.allclose(gradient, torch.full_like(student, 2.0 * (3.0 - 1.0) / 6.0 / 4.0))


def test_dmd_ema_of_an_ema_that_is_the_student_is_the_mse():
    student = torch.full_like(QUERIES.z, 0.2).requires_grad_()
    target = torch.full_like(QUERIES.z, 1.0)
    gradients = [
        torch.autograd.grad(
            resolve_objective(name)(student, target, QUERIES, lambda z, s, c: student)[0], student
        )[0]
        for name in ("mse", "dmd-ema")
    ]
    assert torch.allclose(*gradients)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - {"dmd-ema"}))
def test_the_target_gets_no_gradient(name):
    queries = replace(QUERIES, dynamics=Sde(0.7), z_next=QUERIES.z)
    target = torch.zeros_like(queries.z).requires_grad_()
    student = torch.ones_like(queries.z).requires_grad_()
    resolve_objective(name)(student, target, queries)[0].backward()
    assert target.grad is None


def test_snr_weight_vanishes_at_both_ends_and_is_capped():
    sigma = torch.tensor([1.0, 0.5, 0.1, 0.01])
    grid = torch.cat([sigma, torch.zeros(1)])
    weights = unit_losses("snr", queries_at([[0], [1], [2], [3]], grid))
    assert weights.tolist() == pytest.approx([0.0, 0.25, 0.05, 0.0005], abs=1e-7)
    assert math.isclose(weights.max().item(), 0.25)


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="did you mean 'mse'"):
        resolve_objective("mes")
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        with_reduction(resolve_objective("mse"), "maen")
    with pytest.raises(ValueError, match="needs the EMA"):
        resolve_objective("dmd-ema")(QUERIES.z, QUERIES.z, QUERIES)
    with pytest.raises(ValueError, match="SDE states with their successors"):
        resolve_objective("flowopd")(QUERIES.z, QUERIES.z, QUERIES)
    with pytest.raises(ValueError, match="states' shape"):
        resolve_objective("mse")(QUERIES.z, QUERIES.z[:1], QUERIES)
