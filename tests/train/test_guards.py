"""What cannot be right stops the training with a reason."""

import pytest
import torch
from torch import nn

from danceflow.errors import TrainingError
from danceflow.train.guards import (
    require_different,
    require_finite,
    require_frozen,
    require_gradient,
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_told_with_its_update(value: float) -> None:
    with pytest.raises(TrainingError, match=r"update 7: the loss is .*lower distill.learning_rate"):
        require_finite(value, "loss", 7)
    with pytest.raises(TrainingError, match="update 7: the gradient norm is"):
        require_gradient(value, 7)


def test_a_finite_number_passes() -> None:
    require_finite(0.0, "loss", 0)
    require_gradient(1e-20, 0)


def test_a_zero_gradient_is_told() -> None:
    with pytest.raises(TrainingError, match="update 0: the student's gradient is zero"):
        require_gradient(0.0, 0)


def test_a_student_that_is_its_teacher_is_told() -> None:
    velocity = torch.randn(2, 3, 4, 4)
    with pytest.raises(TrainingError, match="capability 't2i': student and teacher give the same"):
        require_different(velocity, velocity.clone(), "t2i")
    other = velocity.clone()
    other[1, 2, 3, 3] += 1e-3
    require_different(velocity, other, "t2i")


def test_fields_of_two_state_spaces_are_told() -> None:
    with pytest.raises(TrainingError, match="do not share a state space"):
        require_different(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8), "t2i")


def test_a_teacher_that_could_be_trained_is_told() -> None:
    frozen, free = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    free.weight.requires_grad_(False)
    require_frozen([frozen])
    with pytest.raises(TrainingError, match="parameters are not frozen"):
        require_frozen([frozen, free])
