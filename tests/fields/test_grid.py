import pytest
import torch

from danceflow.fields import shifted_grid

# The shift-3 grid of 16 steps as the method's description prints it.
SHIFT_3 = [1, 0.978, 0.955, 0.929, 0.9, 0.868, 0.833, 0.794, 0.75, 0.7, 0.643, 0.577, 0.5, 0.409,
           0.3, 0.167, 0]  # fmt: skip


def test_a_grid_without_shift_falls_evenly_from_one_to_zero():
    grid = shifted_grid(4, 1.0)
    assert grid.dtype == torch.float32
    assert grid.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_shifted_grid_is_the_printed_one():
    assert torch.allclose(shifted_grid(16, 3.0), torch.tensor(SHIFT_3), atol=5e-4)


@pytest.mark.parametrize("num_steps", [1, 7, 28])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.0])
def test_every_grid_ends_exactly_and_falls(num_steps, shift):
    grid = shifted_grid(num_steps, shift)
    assert len(grid) == num_steps + 1
    assert (grid[0], grid[-1]) == (1.0, 0.0)
    assert (grid.diff() < 0).all()


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        shifted_grid(0, 1.0)
    with pytest.raises(ValueError, match="positive"):
        shifted_grid(8, 0.0)
