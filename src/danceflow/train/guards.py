"""Checks that stop a training that cannot be right."""

import math
from collections.abc import Iterable

from torch import Tensor, nn

from danceflow.errors import TrainingError


def require_finite(value: float, what: str, step: int) -> None:
    """Raises ``TrainingError`` if ``value`` is not finite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"update {step}: the {what} is {value}; lower distill.learning_rate or check the "
            "teachers"
        )


def require_gradient(norm: float, step: int) -> None:
    """Raises ``TrainingError`` if the gradient norm is zero or not finite."""
    require_finite(norm, "gradient norm", step)
    if norm == 0:
        raise TrainingError(
            f"update {step}: the student's gradient is zero; nothing would be learned (is every "
            "parameter frozen, or is the student its own teacher?)"
        )


def require_different(student: Tensor, teacher: Tensor, capability: str) -> None:
    """Raises ``TrainingError`` if the student's velocity is the teacher's to the last bit."""
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
    """Raises ``TrainingError`` if a teacher's parameter could be trained."""
    for module in modules:
        if any(p.requires_grad for p in module.parameters()):
            raise TrainingError("a teacher's parameters are not frozen")
