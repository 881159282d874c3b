"""What cannot be right stops the training with a reason."""

import pytest
import torch
from torch import nn

from danceflow.errors import TrainingError
from danceflow.fields import Condition, Queries
from danceflow.train.distill.guards import (
    require_different,
    require_finite,
    require_finite_velocities,
    require_frozen,
    require_gradient,
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_told_with_its_update(value: float) -> None:
    with pytest.raises(TrainingError, match=r"update 7: the loss is .*lower distill.learning_rate"):
        require_finite(value, "loss", 7)
    with pytest.raises(TrainingError, match="update 7: the gradient norm is"):
        require_gradient(value, 7)


def asked_at(part: str, value: float) -> tuple[Queries, torch.Tensor, torch.Tensor]:
    """States, target and velocity, one value of which is another."""
    found = {name: torch.ones(2, 3, 4, 4) for name in ("states", "target", "velocity")}
    tensors = {"prompt_embeds": torch.ones(2, 5, 6), "mask": torch.ones(2, 5).bool()}
    ({**found, **tensors})[part].view(-1)[-1] = value
    sigma = torch.ones(2)
    queries = Queries(
        z=found["states"],
        sigma=sigma,
        sigma_next=sigma,
        index=sigma.long(),
        condition=Condition(tensors),
        num_queries=1,
        grid=sigma,
    )
    return queries, found["target"], found["velocity"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("part", "cause"),
    [
        ("prompt_embeds", "the cached prompts or sources are not finite; run the stage cache"),
        ("states", "the student's rollout reached states .*; lower distill.learning_rate"),
        ("target", "teacher 'local' gives velocities .* the learning rate is not the cause"),
        ("velocity", "the student's velocities are not finite, .* teacher 'local' .*; lower"),
    ],
)
def test_whose_values_are_not_finite_is_told(part: str, cause: str, value: float) -> None:
    require_finite_velocities(*asked_at(part, 2.0), "t2i", "teacher 'local'", 7)
    with pytest.raises(TrainingError, match=f"update 7, capability 't2i': {cause}"):
        require_finite_velocities(*asked_at(part, value), "t2i", "teacher 'local'", 7)


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
