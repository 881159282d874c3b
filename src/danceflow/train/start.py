"""The student's initial weights: a teacher's, or the weighted average of all teachers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from danceflow.models.adapters import add_student_adapter
from danceflow.models.package import Teachers

if TYPE_CHECKING:
    from danceflow.schema import DistillParams

MERGE = "merge"


def start_shares(
    config: "DistillParams", teachers: Teachers, init: str | None = None
) -> dict[str, float]:
    """Returns the share that each teacher has in the student's start.

    Args:
        config: ``init`` is ``merge`` or the name of a teacher; ``merge_weights`` are the shares.
        teachers: the loaded teachers.
        init: replaces ``config.init`` when the method fixes it.
    """
    init = init or config.init
    if init != MERGE:
        return {init: 1.0}
    weights: Mapping[str, float] | None = config.merge_weights
    return dict.fromkeys(teachers.backbones, 1.0) if weights is None else dict(weights)


def start_backbone(
    config: "DistillParams", teachers: Teachers, init: str | None = None
) -> nn.Module:
    """Returns a new float32 backbone with the student's initial weights.

    Args and what is raised are those of :func:`start_shares` and ``Teachers.merged``.
    """
    backbone = teachers.family.new_backbone(seed=0)
    backbone.load_state_dict(teachers.merged(start_shares(config, teachers, init)))
    return backbone.to(teachers.memory.device)


def start_student(
    config: "DistillParams", teachers: Teachers, seed: int, init: str | None = None
) -> tuple[nn.Module, list[nn.Parameter]]:
    """Returns the student's backbone and its trainable parameters.

    A student that is an adapter, of teachers that share a base, is one more adapter on that base;
    another one is on a frozen copy of its start.

    Args:
        config: says what is trained and from where.
        teachers: the loaded teachers.
        seed: decides the factors that start at random.
        init: replaces ``config.init`` when the method fixes it.

    Raises:
        WeightsError: for an unknown teacher or unusable merge weights.
    """
    shares, rank = start_shares(config, teachers, init), config.lora_rank
    if config.student == "full":
        backbone = start_backbone(config, teachers, init).requires_grad_(True)
        return backbone, list(backbone.parameters())
    if teachers.shared is not None and teachers.shares_base(shares):
        pairs = teachers.merged_adapters(shares, rank)
        backbone = teachers.shared
    else:
        backbone, pairs = teachers.memory.place(start_backbone(config, teachers, init)), {}
    trained = add_student_adapter(teachers.family, backbone, rank, float(rank), seed, pairs)
    return backbone, trained
