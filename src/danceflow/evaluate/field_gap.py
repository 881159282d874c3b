"""How far a field is from its teacher, on the states that the field itself visits."""

import torch
from torch import Tensor

from danceflow.evaluate.evaluator import Task
from danceflow.fields import VelocityField, rollout

NUM_BINS = 4


def field_gap(
    student: VelocityField, teacher: VelocityField, task: Task, num_steps: int, stride: int = 2
) -> dict[str, float]:
    """Returns the mean squared gap |v_student - v_teacher|^2 per element, by sigma bin.

    The states are the student's own Euler rollout, as in training (method.md, section 3). Bins
    that hold no state are left out; ``all`` is the mean over all states.

    Args:
        student: the field that is rolled out.
        teacher: the field it is compared with.
        task: conditions and noise.
        num_steps: number of steps of the rollout.
        stride: every how many steps a state is compared, back from the last one before clean.
    """
    grid = task.family.grid(num_steps).to(task.noise.device)
    kept = torch.arange(num_steps - 1, -1, -stride).flip(0)
    keep = kept.repeat(task.num_rows, 1)
    states = rollout(student, task.noise, task.condition, grid, keep)
    gaps = []
    with torch.no_grad():
        for slot in range(len(kept)):
            z, sigma = states.z[:, slot], states.sigma[:, slot]
            difference = student(z, sigma, task.condition) - teacher(z, sigma, task.condition)
            gaps.append(difference.square().mean())
    return _by_bin(grid[kept.to(grid.device)].cpu(), torch.stack(gaps).cpu())


def bin_name(index: int) -> str:
    """Returns the name of a sigma bin, such as ``0.25-0.50``."""
    return f"{index / NUM_BINS:.2f}-{(index + 1) / NUM_BINS:.2f}"


def _by_bin(sigma: Tensor, gap: Tensor) -> dict[str, float]:
    bins = (sigma * NUM_BINS).long().clamp(0, NUM_BINS - 1)
    result = {"all": float(gap.mean())}
    for index in range(NUM_BINS):
        if bool((bins == index).any()):
            result[bin_name(index)] = float(gap[bins == index].mean())
    return result
