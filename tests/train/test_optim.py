"""Muon against its definition and torch's own, and the schedule's end points."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from danceflow.params.sections import DistillParams
from danceflow.train.optim import (
    FINAL_FACTORS,
    Muon,
    make_optimizer,
    orthogonalise,
    schedule,
    set_learning_rate,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]


def step_with(optimizer, params, seed: int) -> None:
    for index, param in enumerate(params):
        param.grad = random(*param.shape, seed=100 * seed + index)
    optimizer.step()


@pytest.mark.parametrize("shape", [(3, 8, 24), (3, 24, 8), (1, 5, 6)])
def test_orthogonalising_brings_singular_values_near_one(shape) -> None:
    matrices = random(*shape) * 7
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() <= values.max() < 1.3


@pytest.mark.parametrize("shape", [(1, 9, 9), (1, 9, 13), (1, 9, 14), (1, 40, 9)])
def test_every_singular_value_goes_the_way_of_the_polynomial(shape) -> None:
    matrix = random(*shape)
    found = torch.linalg.svdvals(orthogonalise(matrix)[0])
    values = torch.linalg.svdvals(matrix[0]) / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(found, values.sort(descending=True).values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 16, 16), (32, 16, 96), (32, 96, 16)])
def test_a_vanishing_singular_value_loses_no_digits(shape) -> None:
    """Gradients have few directions where a batch is small; rounding must not fill the others."""
    few = random(shape[0], shape[1], 3) * torch.tensor([1, 0.1, 0.01])
    stack = few @ random(shape[0], 3, shape[2], seed=1)
    torch.testing.assert_close(
        orthogonalise(stack).double(), orthogonalise(stack.double()), atol=3e-5, rtol=0
    )


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    matrix = random(1, 6, 20)
    u, values, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    core = u.T @ orthogonalise(matrix)[0] @ vh.T
    assert (core - core.diag().diag()).abs().max() < 1e-4
    assert (core.diag() > 0.5).all()
    assert values.max() / values.min() > 1.5


def test_a_stack_is_its_single_matrices_and_zero_stays_zero() -> None:
    stack = torch.cat([random(2, 6, 10), torch.zeros(1, 6, 10)])
    whole = orthogonalise(stack)
    singles = torch.cat([orthogonalise(stack[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, singles)
    assert not whole[2].any()


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
def test_an_update_has_a_fifth_of_the_learning_rate_as_rms(shape) -> None:
    (param,) = parameters(shape)
    before = param.detach().clone()
    step_with(Muon([param], lr=0.1), [param], 0)
    rms = float((param.detach() - before).square().mean().sqrt())
    assert rms == pytest.approx(0.2 * 0.1, rel=0.2)


def test_matrices_move_as_torchs_own_muon_moves_them() -> None:
    shape = (12, 40)
    ours, theirs = parameters(shape, shape)
    theirs.data.copy_(ours.data)
    start = ours.detach().clone()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.3}
    one = Muon([ours], **settings)
    other = torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        step_with(one, [ours], seed)
        step_with(other, [theirs], seed)
    # torch's runs its iterations in bfloat16.
    moved = (ours.detach() - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_everything_else_moves_as_adamw_at_half_the_rate() -> None:
    shapes = (7,), (1, 6), (3, 2, 2, 2), ()
    ours, theirs = parameters(*shapes), parameters(*shapes)
    one = Muon(ours, lr=0.2, betas=(0.8, 0.95), weight_decay=0.5)
    other = torch.optim.AdamW(theirs, lr=0.1, betas=(0.8, 0.95), weight_decay=0.0)
    for seed in range(3):
        step_with(one, ours, seed)
        step_with(other, theirs, seed)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_only_matrices_are_matrices() -> None:
    matrix, tall, row, vector, kernel = parameters((4, 6), (6, 4), (1, 6), (6,), (3, 2, 2, 2))
    groups = Muon([matrix, row, tall, vector, kernel], lr=0.1).param_groups
    members = {group["kind"]: {id(p) for p in group["params"]} for group in groups}
    assert members["matrix"] == {id(matrix), id(tall)}
    assert members["rest"] == {id(row), id(vector), id(kernel)}


def test_weight_decay_shrinks_matrices_alone() -> None:
    matrix, vector = parameters((4, 6), (6,))
    before = [p.detach().clone() for p in (matrix, vector)]
    optimizer = Muon([matrix, vector], lr=0.1, weight_decay=0.5)
    for param in (matrix, vector):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), before[0] * 0.95)
    assert torch.equal(vector.detach(), before[1])


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    used, unused, vector = parameters((4, 6), (4, 6), (3,))
    before = [unused.detach().clone(), vector.detach().clone()]
    optimizer = Muon([used, unused, vector], lr=0.1)
    used.grad = random(4, 6)
    optimizer.step()
    assert torch.equal(unused.detach(), before[0])
    assert torch.equal(vector.detach(), before[1])


def test_a_closure_is_refused() -> None:
    with pytest.raises(ValueError, match="takes no closure"):
        Muon(parameters((4, 6)), lr=0.1).step(lambda: 0.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_quadratic_is_solved(name: str) -> None:
    goal = random(6, 10, seed=9)
    params = parameters((6, 10), (10,))
    optimizer = make_optimizer(name, params, 0.3, 0.0)
    losses = []
    for step in range(150):
        set_learning_rate(optimizer, schedule(step, 150, 5))
        optimizer.zero_grad()
        loss = (params[0] - goal).square().sum() + (params[1] - goal[0]).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str, tmp_path) -> None:
    shapes = (4, 6), (6,)
    params = parameters(*shapes)
    optimizer = make_optimizer(name, params, 0.1, 0.1)
    set_learning_rate(optimizer, 0.5)
    for seed in range(2):
        step_with(optimizer, params, seed)
    torch.save([optimizer.state_dict(), [p.detach() for p in params]], tmp_path / "state.pt")
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = [nn.Parameter(value) for value in values]
    other = make_optimizer(name, resumed, 0.1, 0.1)
    other.load_state_dict(state)
    for optim, owned in ((optimizer, params), (other, resumed)):
        set_learning_rate(optim, 0.25)
        step_with(optim, owned, 5)
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))
    assert all(group["lr"] == group["base_lr"] * 0.25 for group in other.param_groups)


def test_an_unknown_optimizer_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown optimizer 'adam': did you mean 'adamw'"):
        make_optimizer("adam", parameters((2, 2)), 0.1, 0.0)


def test_the_schedule_rises_to_one_and_falls_to_its_end() -> None:
    factors = [schedule(step, 100, 10) for step in range(101)]
    assert factors[:3] == [0.1, 0.2, 0.3]
    assert factors[9] == factors[10] == 1.0
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.02 + 0.98 / 2)
    assert factors[100] == pytest.approx(0.02)
    assert schedule(1000, 100, 10) == pytest.approx(0.02)


def test_a_schedule_without_warmup_or_of_one_update_works() -> None:
    assert schedule(0, 10, 0) == 1.0
    assert schedule(0, 1, 0) == 1.0
    assert schedule(0, 2, 5) == 0.2


def test_a_constant_schedule_stays_after_its_warmup() -> None:
    factors = [schedule(step, 20, 2, "constant") for step in range(21)]
    assert factors == [0.5, 1.0] + [1.0] * 19


def test_every_schedule_of_the_parameters_is_known() -> None:
    names = DistillParams.model_fields["schedule"].annotation.__args__
    assert set(names) == set(FINAL_FACTORS)


def test_setting_the_rate_does_not_add_up() -> None:
    optimizer = Muon(parameters((4, 6), (6,)), lr=0.1)
    for factor in (0.5, 0.5, 0.1):
        set_learning_rate(optimizer, factor)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.005])
