"""The mean velocity over a coarse step: what a field says of a whole step, as a field."""

import torch
from torch import Tensor

from danceflow.fields.field import Condition, VelocityField

_SAME = 1e-6
"""Noise levels that differ by rounding alone."""


def substep_grid(coarse: Tensor, fine: Tensor) -> Tensor:
    """Return a grid of N*m steps in which every step of the coarse grid is m steps, [N*m+1].

    Where the family's own grid of N*m steps holds the coarse one, which is so for a shift that is
    fixed, it is that one: the steps that the teacher itself is sampled with. Where it does not
    (stock schedulers begin their last step at another noise level for every number of steps), each
    coarse step is cut into m equal ones. The coarse noise levels stay to the last bit.

    Args:
        coarse: [N+1] decreasing sigmas.
        fine: [N*m+1] sigmas of the family's own grid.

    Raises:
        ValueError: the fine grid's steps are no multiple of the coarse one's.
    """
    num_steps = len(coarse) - 1
    num_substeps, rest = divmod(len(fine) - 1, num_steps)
    if rest or not num_substeps:
        raise ValueError(f"{len(fine) - 1} substeps do not share out among {num_steps} steps")
    grid = fine.clone()
    if not bool(((fine[::num_substeps] - coarse).abs() <= _SAME).all()):
        part = torch.arange(num_substeps, dtype=torch.float64, device=coarse.device) / num_substeps
        steps = coarse.double()[:-1, None] + coarse.double().diff()[:, None] * part
        grid[:-1] = steps.flatten().to(grid)
    grid[::num_substeps] = coarse
    return grid


class SteppedField:
    """A field's mean velocity over the step of a coarse grid that begins at a state.

    From a state at sigma_i the inner field is integrated with m Euler substeps to sigma_{i+1}; the
    velocity is (z_end - z) / (sigma_{i+1} - sigma_i), so that one Euler step of the coarse grid
    ends where the m substeps end. A field that learns it answers in N steps as the inner one does
    in N*m. It costs m evaluations of the inner field per state; with m = 1 it is the inner field.

    Attributes:
        field: the field that is integrated.
        grid: [N*m+1] sigmas; every m-th is one of the coarse grid.
        num_substeps: m.
    """

    def __init__(self, field: VelocityField, grid: Tensor, num_substeps: int) -> None:
        """Keep the field and its steps.

        Raises:
            ValueError: m below 1, or a grid whose steps it does not divide.
        """
        if num_substeps < 1 or len(grid) < 2 or (len(grid) - 1) % num_substeps:
            raise ValueError(f"{num_substeps} substeps do not divide a grid of {len(grid) - 1}")
        self.field, self.grid, self.num_substeps = field, grid, num_substeps

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the mean velocity over each state's own step.

        Raises:
            ValueError: a state's sigma begins no step of the coarse grid.
        """
        if self.num_substeps == 1:
            return self.field(z_BCHW, sigma_B, condition)
        sigmas_BM = self._steps(sigma_B)
        z = z_BCHW
        for now_B, next_B in zip(sigmas_BM.T[:-1], sigmas_BM.T[1:], strict=True):
            step_B111 = (next_B - now_B).reshape(-1, *[1] * (z.ndim - 1))
            z = z + step_B111 * self.field(z, now_B, condition)
        length_B = sigmas_BM[:, -1] - sigmas_BM[:, 0]
        return (z - z_BCHW) / length_B.reshape(-1, *[1] * (z.ndim - 1))

    def _steps(self, sigma_B: Tensor) -> Tensor:
        """Return the sigmas of each state's substeps, [B, m+1]."""
        grid = self.grid.to(sigma_B)
        is_there_BN = sigma_B[:, None] == grid[: -1 : self.num_substeps]
        if not bool(is_there_BN.any(dim=1).all()):
            lost = sigma_B[~is_there_BN.any(dim=1)][0]
            raise ValueError(
                f"sigma {float(lost):g} begins no step of the grid "
                f"{[round(value, 4) for value in grid[:: self.num_substeps].tolist()]}, so there "
                "is no step to take the mean velocity over"
            )
        first_B1 = is_there_BN.int().argmax(dim=1, keepdim=True) * self.num_substeps
        return grid[first_B1 + torch.arange(self.num_substeps + 1, device=grid.device)]
