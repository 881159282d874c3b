"""Sigma grids: the decreasing noise levels a rollout visits."""

import torch
from torch import Tensor


def shifted_grid(num_steps: int, shift: float) -> Tensor:
    """Return sigma = shift*s / (1 + (shift-1)*s) on uniform s, [N+1] float32, from 1 down to 0.

    Shift 1 is the uniform grid; a larger shift spends more steps at high noise (Esser et al.
    2024, arXiv 2403.03206, eq. 23).

    Raises:
        ValueError: num_steps below 1, or a shift that is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {num_steps}")
    if not shift > 0:
        raise ValueError(f"the grid's shift must be positive, got {shift}")
    uniform = torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64)
    return (shift * uniform / (1.0 + (shift - 1.0) * uniform)).float()
