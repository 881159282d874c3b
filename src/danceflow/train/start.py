"""The student's initial weights: a teacher's, or the weighted average of all teachers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from danceflow.models.adapters import add_student_adapter
from danceflow.models.package import Teachers

if TYPE_CHECKING:
    from danceflow.schema import DistillParams, Params

MERGE = "merge"


def trained_teachers(params: "Params") -> list[str]:
    """Returns the teachers of the capabilities that are trained, each once."""
    trained = (config for config in params.capabilities.values() if config.weight > 0)
    return list(dict.fromkeys(config.teacher for config in trained))


def start_shares(
    config: "DistillParams",
    teachers: Teachers,
    init: str | None = None,
    averaged: Sequence[str] | None = None,
) -> dict[str, float]:
    """Returns the share that each teacher has in the student's start.

    Args:
        config: ``init`` is ``merge`` or the name of a teacher; ``merge_weights`` are the shares.
        teachers: the loaded teachers.
        init: replaces ``config.init`` when the method fixes it.
        averaged: the teachers that a merge without weights averages; ``None``: all loaded ones.
    """
    init = init or config.init
    if init != MERGE:
        return {init: 1.0}
    weights: Mapping[str, float] | None = config.merge_weights
    names = teachers.backbones if averaged is None else averaged
    return dict.fromkeys(names, 1.0) if weights is None else dict(weights)


def start_backbone(
    config: "DistillParams",
    teachers: Teachers,
    init: str | None = None,
    averaged: Sequence[str] | None = None,
) -> nn.Module:
    """Returns a new float32 backbone with the student's initial weights, in main memory.

    Args and what is raised are those of :func:`start_shares` and ``Teachers.merged``.
    """
    backbone = teachers.family.new_backbone(seed=0)
    backbone.load_state_dict(teachers.merged(start_shares(config, teachers, init, averaged)))
    return backbone


def start_student(
    config: "DistillParams",
    teachers: Teachers,
    seed: int,
    init: str | None = None,
    averaged: Sequence[str] | None = None,
) -> tuple[nn.Module, list[nn.Parameter]]:
    """Returns the student's backbone and its trainable parameters.

    A student that is an adapter, of teachers that share a base, is one more adapter on that base;
    another one is on a frozen copy of its start.

    Args:
        config: says what is trained and from where.
        teachers: the loaded teachers.
        seed: decides the factors that start at random.
        init: replaces ``config.init`` when the method fixes it.
        averaged: the teachers that a merge without weights averages; ``None``: all loaded ones.

    Raises:
        WeightsError: for an unknown teacher or unusable merge weights.
    """
    shares, rank = start_shares(config, teachers, init, averaged), config.lora_rank
    if config.student == "full":
        start = start_backbone(config, teachers, init, averaged).requires_grad_(True)
        backbone = teachers.memory.compiled(start.to(teachers.memory.device))
        return backbone, list(backbone.parameters())
    if teachers.shared is not None and teachers.shares_base(shares):
        pairs = teachers.merged_adapters(shares, rank)
        backbone = teachers.shared
    else:
        start = start_backbone(config, teachers, init, averaged)
        backbone, pairs = teachers.memory.place(start), {}
    trained = add_student_adapter(teachers.family, backbone, rank, float(rank), seed, pairs)
    return backbone, trained
