"""The student's initial weights: a teacher's, or the weighted average of all teachers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from danceflow.models.package import Teachers

if TYPE_CHECKING:
    from danceflow.schema import DistillParams, Params

MERGE = "merge"


def trained_teachers(params: "Params") -> list[str]:
    """Returns the teachers of the capabilities that are trained, each once."""
    trained = (config for config in params.capabilities.values() if config.weight > 0)
    return list(dict.fromkeys(config.teacher for config in trained))


def start_backbone(
    config: "DistillParams",
    teachers: Teachers,
    init: str | None = None,
    averaged: Sequence[str] | None = None,
) -> nn.Module:
    """Returns a new backbone with the student's initial weights.

    Args:
        config: ``init`` is ``merge`` or the name of a teacher; ``merge_weights`` are the shares.
        teachers: the loaded teachers.
        init: replaces ``config.init`` when the method fixes it.
        averaged: the teachers that a merge without weights averages; ``None``: all loaded ones.

    Raises:
        WeightsError: for an unknown teacher or unusable merge weights.
    """
    init = init or config.init
    backbone = teachers.family.new_backbone(seed=0)
    names = teachers.backbones if averaged is None else averaged
    shares = dict.fromkeys(names, 1.0) if init == MERGE else {init: 1.0}
    if init == MERGE and config.merge_weights is not None:
        shares = dict(config.merge_weights)
    backbone.load_state_dict(teachers.merged(shares))
    return backbone.to(next(iter(teachers.backbones.values())).device)  # type: ignore[arg-type]
