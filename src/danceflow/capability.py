"""Who is asked: the capabilities, their teachers, and those that the student starts from.

The rules of a params file, the training, the evaluation and the plan all ask here, so that a file
that was accepted can be trained, and what is planned is what is loaded. It imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from danceflow.schema import DistillParams, Params

MERGE = "merge"
"""The start that is a weighted average of teachers, beside every teacher's own name."""
FIXED_STARTS: Mapping[str, str] = {"merge": MERGE}
"""The student's start by method, where the method decides it and not ``distill.init``."""


@dataclass(frozen=True)
class TeacherSpec:
    """How a capability's frozen teacher is asked.

    Attributes:
        name: of the teacher.
        guidance_scale: classifier-free guidance baked into its field; 1 is none.
    """

    name: str
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class Capability:
    """One thing the student must learn to do.

    Attributes:
        name: its name everywhere: reports, metrics, folders.
        bucket: the data set bucket its samples come from.
        teacher: its frozen teacher.
        weight: its share of the training steps, relative to the others', above 0.
        needs_source: whether its condition holds a source image (an edit).
    """

    name: str
    bucket: str
    teacher: TeacherSpec
    weight: float = 1.0
    needs_source: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a weight that is not positive."""
        if not self.weight > 0:
            raise ValueError(f"capability {self.name!r}: weight {self.weight} is not above 0")


@dataclass(frozen=True)
class Asked:
    """Who takes part in a distillation.

    Attributes:
        capabilities: those that are trained, in their order.
        teachers: names of all that are loaded, each once: those of every capability, also of one
            that is only scored, and those that the student starts from.
        start: the share of each teacher in the student's start, relative to the others' and above
            0; empty where the merge weights leave none.
    """

    capabilities: tuple[Capability, ...]
    teachers: tuple[str, ...]
    start: Mapping[str, float]

    @property
    def differing(self) -> frozenset[str]:
        """Names of the trained capabilities whose teacher is not the student's start itself."""
        starts = [TeacherSpec(name) for name in self.start]
        return frozenset(c.name for c in self.capabilities if starts != [c.teacher])


def asked(params: "Params") -> Asked:
    """Return who takes part in the distillation that the parameters describe."""
    capabilities = tuple(
        Capability(
            name,
            config.bucket,
            TeacherSpec(config.teacher, config.guidance),
            config.weight,
            config.needs_source,
        )
        for name, config in params.capabilities.items()
        if config.weight > 0
    )
    start = _start(params.distill, capabilities)
    named = (config.teacher for config in params.capabilities.values())
    return Asked(capabilities, tuple(dict.fromkeys([*named, *start])), start)


def _start(config: "DistillParams", capabilities: tuple[Capability, ...]) -> dict[str, float]:
    """Return the shares of the student's start: one teacher, given weights, or all that train."""
    name = FIXED_STARTS.get(config.method, config.init)
    if name != MERGE:
        return {name: 1.0}
    if config.merge_weights is None:
        return dict.fromkeys((c.teacher.name for c in capabilities), 1.0)
    return {name: weight for name, weight in config.merge_weights.items() if weight > 0}
