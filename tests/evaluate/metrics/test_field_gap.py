"""The gap of fields whose difference is known."""

import pytest
import torch

from danceflow.evaluate.metrics.field_gap import bin_name, field_gap


def constant(value: float):
    return lambda z, sigma, condition: torch.full_like(z, value)


def test_a_field_has_no_gap_to_itself(tasks) -> None:
    gap = field_gap(constant(0.3), constant(0.3), tasks["t2i"], 8)
    assert set(gap.values()) == {0.0}


def test_a_constant_difference_has_its_square(tasks) -> None:
    gap = field_gap(constant(0.5), constant(0.2), tasks["t2i"], 16)
    assert list(gap) == ["all", *(bin_name(i) for i in range(4))]
    assert list(gap.values()) == pytest.approx([0.09] * 5)


def test_bins_hold_their_own_noise_levels(tasks) -> None:
    """|v - v'|^2 = sigma^2, so each bin must hold the mean square of its grid values."""
    task = tasks["local_edit"]
    grid = task.family.grid(16)[:-1]
    gap = field_gap(
        constant(0.0),
        lambda z, sigma, condition: torch.ones_like(z) * sigma[:, None, None, None],
        task,
        16,
        stride=1,
    )
    for index in range(4):
        held = grid[(grid * 4).long().clamp(0, 3) == index]
        assert gap[bin_name(index)] == pytest.approx(float(held.square().mean()), rel=1e-5)
    assert gap["all"] == pytest.approx(float(grid.square().mean()), rel=1e-5)


def test_states_are_the_students_own(tasks) -> None:
    seen: list[torch.Tensor] = []

    def teacher(z, sigma, condition):
        seen.append(z.clone())
        return torch.zeros_like(z)

    task = tasks["t2i"]
    field_gap(constant(1.0), teacher, task, 4, stride=2)
    grid = task.family.grid(4)
    assert len(seen) == 2
    for state, index in zip(seen, (1, 3), strict=True):
        assert torch.allclose(state, task.noise + (grid[index] - grid[0]), atol=1e-6)


def test_empty_bins_are_left_out(tasks) -> None:
    assert list(field_gap(constant(0.0), constant(1.0), tasks["t2i"], 1)) == ["all", "0.75-1.00"]
