"""The mean velocity over a step of the grid: closed forms, the last step, its cost, its errors."""

import pytest
import torch

from danceflow.fields import (
    Condition,
    CountingField,
    GaussianField,
    GuidedField,
    SteppedField,
    normal,
    rollout,
    sample,
    shifted_grid,
    substep_grid,
)

NUM_STEPS = 4
COARSE = shifted_grid(NUM_STEPS, 3.0)
NOISE = normal((2, 3, 5), list(range(8)))
CONDITION = Condition({"row": torch.arange(8.0)[:, None]})
GAUSSIAN = GaussianField(torch.tensor(0.4), 0.5)


def stepped(field, num_substeps):
    fine = shifted_grid(NUM_STEPS * num_substeps, 3.0)
    return SteppedField(field, substep_grid(COARSE, fine), num_substeps)


def linear(z, sigma, condition):
    """v = 0.7 z: a field whose Euler steps multiply."""
    return 0.7 * z


@pytest.mark.parametrize("num_substeps", [1, 2, 3, 4])
def test_a_linear_field_gives_the_product_of_its_euler_steps_for_states_at_all_steps(num_substeps):
    sigma = COARSE[torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])]
    mean = stepped(linear, num_substeps)(NOISE, sigma, CONDITION)
    for row, index in enumerate([0, 1, 2, 3, 3, 2, 1, 0]):
        fine = shifted_grid(NUM_STEPS * num_substeps, 3.0).double()
        part = fine[index * num_substeps : (index + 1) * num_substeps + 1]
        factor = ((1.0 + 0.7 * part.diff()).prod() - 1.0) / (part[-1] - part[0])
        torch.testing.assert_close(
            mean[row].double(), factor * NOISE[row].double(), rtol=1e-5, atol=1e-6
        )


def test_one_substep_is_the_field_itself_bit_for_bit():
    sigma = COARSE[torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])]
    mean = stepped(GAUSSIAN, 1)(NOISE, sigma, CONDITION)
    assert torch.equal(mean, GAUSSIAN(NOISE, sigma, CONDITION))


@pytest.mark.parametrize("num_substeps", [2, 4])
def test_coarse_steps_by_it_end_where_fine_steps_by_the_field_do(num_substeps):
    """All of the way, so the last step, to sigma 0, is among them."""
    ends = sample(stepped(GAUSSIAN, num_substeps), NOISE, CONDITION, COARSE)
    fine = sample(GAUSSIAN, NOISE, CONDITION, shifted_grid(NUM_STEPS * num_substeps, 3.0))
    torch.testing.assert_close(ends, fine)


def test_many_substeps_approach_the_exact_path_as_their_number_grows():
    state = rollout(GAUSSIAN, NOISE, CONDITION, shifted_grid(512, 3.0), torch.full((8, 1), 512))
    errors = []
    for num_substeps in (4, 8, 16):
        ends = sample(stepped(GAUSSIAN, num_substeps), NOISE, CONDITION, COARSE)
        errors.append(float((ends - GAUSSIAN.exact(NOISE, 0.0)).abs().mean()))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.3)
    assert float((state.z[:, 0] - GAUSSIAN.exact(NOISE, 0.0)).abs().mean()) < errors[2]


def test_a_state_costs_its_substeps_of_the_inner_field_guidance_included():
    counting = CountingField(GAUSSIAN)
    guided = GuidedField(counting, lambda condition: condition, 2.0)
    stepped(guided, 3)(NOISE, COARSE[:1].repeat(8), CONDITION)
    assert counting.num_evaluations == 3 * 2 * 8
    assert counting.num_calls == 3


def test_a_level_where_no_step_begins_is_refused():
    field = stepped(GAUSSIAN, 2)
    for sigma in (0.42, 0.0):
        with pytest.raises(ValueError, match=f"sigma {sigma:g} begins no step of the grid"):
            field(NOISE, torch.full((8,), sigma), CONDITION)


def test_a_grid_that_nests_is_taken_and_one_that_does_not_is_cut_evenly():
    fine = shifted_grid(8, 3.0)
    assert torch.equal(substep_grid(COARSE, fine), fine)
    other = torch.tensor([1.0, 0.8, 0.0])
    cut = substep_grid(other, torch.tensor([1.0, 0.95, 0.9, 0.7, 0.4, 0.1, 0.0]))
    expected = torch.tensor([1.0, 1.0 - 0.2 / 3, 1.0 - 0.4 / 3, 0.8, 1.6 / 3, 0.8 / 3, 0.0])
    torch.testing.assert_close(cut, expected)
    assert torch.equal(cut[::3], other)


def test_substeps_that_do_not_share_out_are_refused():
    with pytest.raises(ValueError, match="7 substeps do not share out among 4 steps"):
        substep_grid(COARSE, shifted_grid(7, 3.0))
    with pytest.raises(ValueError, match="3 substeps do not divide a grid of 4"):
        SteppedField(GAUSSIAN, COARSE, 3)
