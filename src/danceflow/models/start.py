"""The student's initial weights: a teacher's, or a weighted average of teachers."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import nn

from danceflow.models.adapters.lora import add_student_adapter
from danceflow.models.teachers import Teachers

if TYPE_CHECKING:
    from danceflow.params.sections import DistillParams


def start_backbone(teachers: Teachers, shares: Mapping[str, float]) -> nn.Module:
    """Return a new float32 backbone with the student's initial weights, in main memory.

    Args:
        teachers: the loaded teachers.
        shares: of each teacher in the start, as ``capability.asked`` says.

    Raises:
        WeightsError: a teacher is not loaded, or the shares sum to 0.
    """
    backbone = teachers.family.new_backbone(seed=0)
    backbone.load_state_dict(teachers.merged(shares))
    return backbone


def float_base(teachers: Teachers, shares: Mapping[str, float]) -> nn.Module:
    """Return what the student's adapter is exported for: its base in float32, in main memory.

    It is read anew, for the base that a student was trained on may have fewer bits.

    Args:
        teachers: the loaded teachers.
        shares: of each teacher in the start.
    """
    if teachers.shared is not None and teachers.shares_base(shares):
        return teachers.read_base()
    return start_backbone(teachers, shares)


def start_student(
    config: "DistillParams",
    teachers: Teachers,
    seed: int,
    shares: Mapping[str, float],
    spread: Callable[[nn.Module], object] = bool,
) -> tuple[nn.Module, list[nn.Parameter]]:
    """Return the student's backbone and its trainable parameters.

    A student that is an adapter, of teachers that share a base, is one more adapter on that base;
    another one is on a frozen copy of its start.

    Args:
        config: says what is trained.
        teachers: the loaded teachers.
        seed: decides the factors that start at random.
        shares: of each teacher in the start, as ``capability.asked`` says.
        spread: may share a network whose weights are all trained out among processes, while it is
            in main memory.

    Raises:
        WeightsError: a teacher is not loaded, or the shares sum to 0.
    """
    if config.student == "full":
        start = start_backbone(teachers, shares).requires_grad_(True)
        spread(start)
        backbone = teachers.memory.compiled(start.to(teachers.memory.device))
        return backbone, list(backbone.parameters())
    rank = config.lora_rank
    if teachers.shared is not None and teachers.shares_base(shares):
        pairs = teachers.merged_adapters(shares, rank)
        backbone = teachers.shared
    else:
        start = start_backbone(teachers, shares)
        backbone, pairs = teachers.memory.base_of(teachers.family, start), {}
    trained = add_student_adapter(teachers.family, backbone, rank, float(rank), seed, pairs)
    return backbone, trained
