"""Checks that stop a training that cannot be right."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from danceflow.errors import TrainingError
from danceflow.fields import Queries


def require_finite(value: float, what: str, step: int) -> None:
    """Raise ``TrainingError`` if ``value`` is not finite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"update {step}: the {what} is {value}, though the student's and the teachers' "
            "velocities are finite; lower distill.learning_rate"
        )


def require_finite_velocities(
    queries: Queries, target: Tensor, velocity: Tensor, capability: str, asked: str, step: int
) -> None:
    """Raise ``TrainingError`` that tells whose values are not finite, if any are.

    Args:
        queries: the states and their conditions.
        target: what the student is to learn there.
        velocity: the student's velocity there.
        capability: of the rows.
        asked: who gave the target.
        step: the update.
    """
    causes = {
        "the cached prompts or sources are not finite; run the stage cache again": tuple(
            queries.condition.tensors.values()
        ),
        "the student's rollout reached states that are not finite; lower distill.learning_rate": (
            queries.z,
        ),
        f"{asked} gives velocities that are not finite at states that are: its weights are damaged "
        "or its guidance is too strong; the learning rate is not the cause": (target,),
        f"the student's velocities are not finite, though the states and those of {asked} are; "
        "lower distill.learning_rate": (velocity,),
    }
    finite = [torch.stack([_is_finite(v) for v in values]).all() for values in causes.values()]
    for cause, is_finite in zip(causes, torch.stack(finite).tolist(), strict=True):
        if not is_finite:
            raise TrainingError(f"update {step}, capability {capability!r}: {cause}")


def _is_finite(value: Tensor) -> Tensor:
    """Return whether all numbers are finite, a scalar on their device."""
    if not value.is_floating_point() or not value.numel():
        return torch.ones((), dtype=torch.bool, device=value.device)
    ends = value.detach().aminmax()  # a tenth of the time that asking every value takes
    return torch.stack(ends).isfinite().all()


def require_gradient(norm: float, step: int) -> None:
    """Raise ``TrainingError`` if the gradient norm is zero or not finite."""
    require_finite(norm, "gradient norm", step)
    if norm == 0:
        raise TrainingError(
            f"update {step}: the student's gradient is zero; nothing would be learned (is every "
            "parameter frozen, or is the student its own teacher?)"
        )


def require_different(student: Tensor, teacher: Tensor, capability: str) -> None:
    """Raise ``TrainingError`` if the student's velocity is the teacher's to the last bit."""
    if student.shape != teacher.shape:
        raise TrainingError(
            f"capability {capability!r}: the student's velocity has shape {tuple(student.shape)}, "
            f"the teacher's {tuple(teacher.shape)}; they do not share a state space"
        )
    if bool((student == teacher).all()):
        raise TrainingError(
            f"capability {capability!r}: student and teacher give the same velocity; the weights "
            "of one were loaded as the other's"
        )


def require_frozen(modules: Iterable[nn.Module]) -> None:
    """Raise ``TrainingError`` if a teacher's parameter could be trained."""
    for module in modules:
        if any(p.requires_grad for p in module.parameters()):
            raise TrainingError("a teacher's parameters are not frozen")
