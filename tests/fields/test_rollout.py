import pytest
import torch

from danceflow.fields import (
    Condition,
    CountingField,
    GaussianField,
    Ode,
    Sde,
    normal,
    rollout,
    sample,
    shifted_grid,
)

NUM_STEPS = 8
GRID = shifted_grid(NUM_STEPS, 3.0)
SEEDS = list(range(100, 106))
NOISE = normal((2, 3, 5), SEEDS)
CONDITION = Condition({"shift": torch.linspace(-1.0, 1.0, 6)[:, None, None, None]})
GAUSSIAN = GaussianField(torch.tensor(0.4), 0.5)
DYNAMICS = [Ode(), Sde(0.7)]


def field(z, sigma, condition):
    """An elementwise field, hence the same bits in any batch; it uses its condition."""
    return GAUSSIAN(z, sigma, condition) + condition.tensors["shift"]


def full(dynamics):
    """Every state of the full rollout, [B, N+1, C, H, W]."""
    keep = torch.arange(NUM_STEPS + 1).expand(6, -1)
    return rollout(field, NOISE, CONDITION, GRID, keep, dynamics=dynamics, sample_seeds=SEEDS).z


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_stopped_rollout_is_the_full_one_at_the_kept_indices_bit_for_bit(dynamics):
    keep = torch.tensor([[3], [0], [8], [5], [1], [3]])
    states = rollout(field, NOISE, CONDITION, GRID, keep, dynamics=dynamics, sample_seeds=SEEDS)
    assert torch.equal(states.z, full(dynamics)[torch.arange(6)[:, None], keep])
    assert torch.equal(states.index, keep)
    assert torch.equal(states.sigma, GRID[keep])


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_kept_indices_come_in_any_order_and_may_repeat(dynamics):
    keep = torch.tensor([[7, 0, 2], [1, 1, 1], [0, 8, 4], [5, 3, 4], [0, 0, 0], [2, 6, 8]])
    states = rollout(field, NOISE, CONDITION, GRID, keep, dynamics=dynamics, sample_seeds=SEEDS)
    assert torch.equal(states.z, full(dynamics)[torch.arange(6)[:, None], keep])


def test_each_sample_costs_exactly_its_deepest_kept_index():
    counting = CountingField(field)
    keep = torch.tensor([[3, 1], [0, 0], [8, 2], [5, 4], [1, 1], [0, 3]])
    rollout(counting, NOISE, CONDITION, GRID, keep)
    assert counting.num_evaluations == keep.amax(dim=1).sum()
    assert counting.num_calls == keep.max()


def test_keeping_only_the_noise_costs_nothing():
    counting = CountingField(field)
    states = rollout(counting, NOISE, CONDITION, GRID, torch.zeros(6, 1, dtype=torch.int64))
    assert torch.equal(states.z[:, 0], NOISE)
    assert counting.num_calls == 0


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_sample_i_is_the_same_in_any_batch(dynamics):
    keep = torch.tensor([[3], [0], [8], [5], [1], [3]])
    whole = rollout(field, NOISE, CONDITION, GRID, keep, dynamics=dynamics, sample_seeds=SEEDS)
    for rows in ([2], [5, 0], [4, 3, 2, 1]):
        part = rollout(
            field,
            NOISE[rows],
            CONDITION.select(torch.tensor(rows)),
            GRID,
            keep[rows],
            dynamics=dynamics,
            sample_seeds=torch.tensor(SEEDS)[rows],
        )
        assert torch.equal(part.z, whole.z[rows])


def test_sample_is_the_clean_end():
    assert torch.equal(sample(field, NOISE, CONDITION, GRID), full(Ode())[:, -1])


def test_one_euler_step_by_hand():
    grid = torch.tensor([1.0, 0.75, 0.0])
    keep = torch.ones(6, 1, dtype=torch.int64)
    velocity = field(NOISE, torch.ones(6), CONDITION)
    states = rollout(field, NOISE, CONDITION, grid, keep)
    assert torch.equal(states.z[:, 0], NOISE - 0.25 * velocity)


def test_a_rollout_carries_no_gradient_and_leaves_its_noise_alone():
    slope = torch.ones((), requires_grad=True)
    noise = NOISE.clone().requires_grad_()
    keep = torch.full((6, 1), 4)
    states = rollout(lambda z, s, c: slope * z, noise, CONDITION, GRID, keep)
    assert not states.z.requires_grad
    assert torch.equal(noise, NOISE)


def test_the_field_sees_the_grid_and_one_condition_row_per_sample():
    seen = []

    def spy(z, sigma, condition):
        seen.append((sigma.tolist(), condition.tensors["shift"].flatten().tolist()))
        return torch.zeros_like(z)

    rollout(spy, NOISE[:2], CONDITION.select(slice(2)), GRID, torch.tensor([[1], [2]]))
    shift = CONDITION.tensors["shift"].flatten()
    assert seen == [
        ([GRID[0], GRID[0]], [shift[1], shift[0]]),
        ([GRID[1]], [shift[1]]),
    ]


KEEP = torch.zeros(6, 1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": NOISE.half()}, "float32"),
        ({"noise": NOISE[:3]}, "batch sizes differ"),
        ({"keep": KEEP + 9}, "leave the grid 0..8"),
        ({"keep": KEEP - 1}, "leave the grid"),
        ({"keep": KEEP.float()}, "long"),
        ({"keep": KEEP[:, 0]}, "long"),
        ({"grid": GRID[:1]}, "grid is"),
        ({"dynamics": Sde(0.7)}, "sample_seeds"),
        ({"dynamics": Sde(0.7), "sample_seeds": SEEDS[:2]}, "sample_seeds"),
        ({"keep": KEEP + 1, "field": lambda z, s, c: z[:1]}, "the field returned"),
        ({"keep": KEEP + 1, "field": lambda z, s, c: z.bfloat16()}, "the field returned"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    arguments = {
        "field": field, "noise": NOISE, "condition": CONDITION, "grid": GRID, "keep": KEEP
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        rollout(**arguments)


def test_an_sde_without_noise_is_refused():
    with pytest.raises(ValueError, match="eta"):
        Sde(0.0)
