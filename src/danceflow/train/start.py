"""The student's initial weights: a teacher's, or the weighted average of all teachers."""

from typing import TYPE_CHECKING

from torch import nn

from danceflow.models.package import Teachers

if TYPE_CHECKING:
    from danceflow.schema import DistillParams

MERGE = "merge"


def start_backbone(
    config: "DistillParams", teachers: Teachers, init: str | None = None
) -> nn.Module:
    """Returns a new backbone with the student's initial weights.

    Args:
        config: ``init`` is ``merge`` or the name of a teacher; ``merge_weights`` are the shares.
        teachers: the loaded teachers.
        init: replaces ``config.init`` when the method fixes it.

    Raises:
        WeightsError: for an unknown teacher or unusable merge weights.
    """
    init = init or config.init
    backbone = teachers.family.new_backbone(seed=0)
    shares = dict.fromkeys(teachers.backbones, 1.0) if init == MERGE else {init: 1.0}
    if init == MERGE and config.merge_weights is not None:
        shares = dict(config.merge_weights)
    backbone.load_state_dict(teachers.merged(shares))
    return backbone.to(next(iter(teachers.backbones.values())).device)  # type: ignore[arg-type]
