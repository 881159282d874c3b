"""How far a field is from its teacher, on the states that the field itself visits."""

import torch
from torch import Tensor

from danceflow.evaluate.task import Task
from danceflow.fields import VelocityField, rollout

NUM_BINS = 4


def field_gap(
    student: VelocityField, teacher: VelocityField, task: Task, num_steps: int, stride: int = 2
) -> dict[str, float]:
    """Return the mean squared gap |v_student - v_teacher|^2 per element, by sigma bin.

    The states are the student's own Euler rollout, as in training (method.md, section 3). Bins
    that hold no state are left out; ``all`` is the mean over all states.

    Args:
        student: the field that is rolled out.
        teacher: the field it is compared with.
        task: conditions and noise.
        num_steps: number of steps of the rollout.
        stride: every how many steps a state is compared, back from the last one before clean.
    """
    kept = torch.arange(num_steps - 1, -1, -stride).flip(0)
    sigmas, gaps, weights = [], [], []
    for part in task.parts:
        grid = part.family.grid(num_steps).to(part.noise.device)
        states = rollout(
            student, part.noise, part.condition, grid, kept.repeat(len(part.places), 1)
        )
        with torch.no_grad():
            for slot in range(len(kept)):
                z, sigma = states.z[:, slot], states.sigma[:, slot]
                difference = student(z, sigma, part.condition) - teacher(z, sigma, part.condition)
                gaps.append(difference.square().mean().cpu())
        sigmas.append(grid[kept.to(grid.device)].cpu())
        weights += [len(part.places) / task.num_rows] * len(kept)
    return _by_bin(torch.cat(sigmas), torch.stack(gaps), torch.tensor(weights))


def bin_name(index: int) -> str:
    """Return the name of a sigma bin, such as ``0.25-0.50``."""
    return f"{index / NUM_BINS:.2f}-{(index + 1) / NUM_BINS:.2f}"


def _by_bin(sigma: Tensor, gap: Tensor, weight: Tensor) -> dict[str, float]:
    """Return the weighted mean gap of all states and of each bin's."""
    bins = (sigma * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    held = {"all": torch.ones_like(bins, dtype=torch.bool)}
    held |= {bin_name(index): bins == index for index in range(NUM_BINS)}
    return {
        name: float((gap * weight)[at].sum() / weight[at].sum())
        for name, at in held.items()
        if bool(at.any())
    }
