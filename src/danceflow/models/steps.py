"""The solver steps and the sigma grid that a student is made for, as its manifest tells them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danceflow.models.family import ModelFamily
    from danceflow.params.sections import Params

GENERATE = "generate"
EDIT = "edit"


def recommended_steps(params: "Params") -> int | dict[str, int]:
    """Return what a student's manifest says of its steps: a number, or one for each kind of answer.

    An edit takes the most steps of the capabilities with a source, since a request does not say
    which of them it is; so does what is generated of the others. A kind that no capability is of
    takes the most of all.
    """
    steps = params.evaluate.num_steps
    if isinstance(steps, int):
        return steps
    kinds: dict[str, list[int]] = {GENERATE: [], EDIT: []}
    for name, config in params.capabilities.items():
        kinds[EDIT if config.needs_source else GENERATE].append(steps[name])
    return {kind: max(found or steps.values()) for kind, found in kinds.items()}


def steps_of(meta: Mapping[str, Any], *, is_edit: bool) -> int:
    """Return the steps that a student's manifest recommends for an answer."""
    steps = meta["num_steps"]
    return int(steps[EDIT if is_edit else GENERATE] if isinstance(steps, Mapping) else steps)


def on_grid(family: "ModelFamily", shift: float | None) -> "ModelFamily":
    """Return a family with the shift of a student's sigma grid; None: the family's own.

    Raises:
        WeightsError: a shift for a family whose scheduler shifts by the picture's size.
    """
    return family if shift is None else family.shifted(shift)
