"""What a distillation does per update: which fields are evaluated, and how often."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, comb, floor
from typing import TYPE_CHECKING

from danceflow.capability import asked
from danceflow.columns import SOURCE_COLUMNS
from danceflow.fields import guidance_cost, samples_together
from danceflow.method import Method, method_of
from danceflow.plan.depth import expected_depth
from danceflow.train.distill.budget import FORWARD_AND_BACKWARD, MAX_ROWS, PARTS
from danceflow.train.distill.router import GOLDEN_RATIO

if TYPE_CHECKING:
    from danceflow.models.layout import Tokens
    from danceflow.params.sections import Params

_ROUNDING = 1e-9
_NUM_BEGINNINGS = 1000


@dataclass(frozen=True)
class Skill:
    """A capability that is trained.

    Attributes:
        name: its own.
        share: of the training; all sum to 1.
        num_sources: pictures of an edit, at most; 0: text-to-image.
        teacher: its teacher's name.
        cost: evaluations of the teacher's network per state: 2 with guidance, else 1.
        num_rows: rows of its training split at most.
        substeps: of its teacher within a step of the rollout, once they are taken.
        noised: share of its samples that need no rollout.
    """

    name: str
    share: float
    num_sources: int
    teacher: str
    cost: int
    num_rows: int
    substeps: int = 1
    noised: float = 0.0


@dataclass(frozen=True)
class Workload:
    """What decides the cost of a distillation, beside its network.

    Attributes:
        method: which states, how many, which teachers.
        skills: the capabilities that are trained.
        adapters: rank of every teacher that is a LoRA adapter, by name.
        base: the teacher that adapters stand on, if there is one that is shared.
        teachers: names of the teachers that are loaded.
        start: the teachers that the student's start is made of.
        num_steps: of the student's rollout.
        num_updates: at most.
        budget: field evaluations that end the training earlier, if any.
        batch_size: samples per update.
        together: whether every update trains all capabilities, or one.
        evenly: whether that one is drawn evenly in turn.
        rank: of the student's adapter; ``None``: all its weights are trained.
        optimizer: ``adamw`` or ``muon``.
        recomputed: whether activations are computed again in the backward pass.
        dtype: of the frozen networks, and of prompt encoders.
        bits: how the network that adapters stand on is held in training (``run.base``).
        offload: what teachers with weights of their own do while they are not asked.
        size: height and width of the images in pixels.
        cache_samples: teacher samples per capability, in the cache.
        cache_steps: of those samples.
        cache_batch: samples that are made together.
        cache_dtype: of what is cached.
        num_processes: that compute together, each on a device of its own.
        substeps_from: share of the training after which teachers take their substeps.
    """

    method: Method
    skills: tuple[Skill, ...]
    adapters: Mapping[str, int]
    base: str | None
    teachers: tuple[str, ...]
    start: tuple[str, ...]
    num_steps: int
    num_updates: int
    budget: int | None
    batch_size: int
    together: bool
    rank: int | None
    optimizer: str
    recomputed: bool
    dtype: str
    bits: str
    offload: str
    size: tuple[int, int]
    cache_samples: int
    cache_steps: int
    cache_batch: int
    cache_dtype: str
    num_processes: int = 1
    substeps_from: float = 0.0
    evenly: bool = False


@dataclass(frozen=True)
class Evaluations:
    """Expected field evaluations of one capability's states per update, by part of the ledger.

    Where teachers take substeps in a part of the training, they are a mean over all its updates.

    Attributes:
        skill: the capability.
        states: states that are trained on.
        rollout: of the student, to get there.
        teachers: by teacher.
        training: of the student, forward and backward passes counted threefold.
        average: of the averaged student.
        passes: in how many batches the states are taken through a network.
        teacher_passes: in how many they are taken through each teacher's.
    """

    skill: Skill
    states: float
    rollout: float
    teachers: Mapping[str, float]
    training: float
    average: float
    passes: float
    teacher_passes: Mapping[str, float]

    @property
    def parts(self) -> dict[str, float]:
        """The evaluations by ``train.budget.PARTS``."""
        values = (self.rollout, sum(self.teachers.values()), self.training, self.average)
        return dict(zip(PARTS, values, strict=True))


def evaluations(training: Workload) -> list[Evaluations]:
    """Return what an update costs once as many rollouts are under way as the method mixes."""
    first, later = _evaluations(training, 0.0), _evaluations(training, 1.0)
    before, after = updates_by_part(training, _sum(first), _sum(later))
    return _evaluations(training, after / (before + after)) if before + after else first


def _sum(found: "list[Evaluations]") -> float:
    return sum(sum(each.parts.values()) for each in found)


def _evaluations(training: Workload, stepped: float) -> list[Evaluations]:
    """Return what an update costs if teachers take substeps in a share of the updates."""
    method = training.method
    if not method.trains:
        return []
    depth = expected_depth(method, training.num_steps)
    num_queries = method.queries_per_sample(training.num_steps)
    found, skills = [], {skill.name: skill for skill in training.skills}
    for skill in skills.values():
        # How often the capability is drawn, times the samples it then has.
        often = 1.0 if training.together else skill.share
        samples = rows(training, skill) * often
        whole = rows(training, skill)
        noised = floor(whole * skill.noised) / whole * samples if method.rolls_out else 0.0
        states = samples * num_queries * method.updates_per_rollout
        passes = batches(training, skill)
        asked: dict[str, float] = {}
        called: dict[str, float] = {}
        for other in method.asks(skill.name, skills):
            teacher = skills[other].teacher
            times = 1.0 + stepped * (skills[other].substeps - 1)
            asked[teacher] = asked.get(teacher, 0.0) + states * skills[other].cost * times
            # Guidance makes no further passes: it asks twice as many states at once.
            called[teacher] = called.get(teacher, 0.0) + passes * times
        found.append(
            Evaluations(
                skill=skill,
                states=states,
                rollout=(samples - noised) * depth,
                teachers=asked,
                training=states * FORWARD_AND_BACKWARD,
                average=states if method.objective.needs_ema else 0.0,
                passes=passes,
                teacher_passes=called,
            )
        )
    return found


def rollout_passes(training: Workload, tokens: Mapping[str, "Tokens"]) -> float:
    """Return how often a process calls the student in the rollouts of an update, expected.

    All samples of an update are rolled out together, and states of as many tokens are one batch.
    The deepest of a batch decides.

    Args:
        training: what is trained.
        tokens: of a state, by capability.
    """
    method, num_steps = training.method, training.num_steps
    counts: dict[Tokens | str, int] = {}
    often: dict[Tokens | str, float] = {}
    for skill in training.skills:
        key = tokens[skill.name] if training.together else skill.name
        whole = rows(training, skill)
        counts[key] = counts.get(key, 0) + whole - floor(whole * skill.noised)
        often[key] = 1.0 if training.together else skill.share
    return sum(
        often[key] * expected_depth(method, num_steps, -(-count // training.num_processes))
        for key, count in counts.items()
        if count
    )


def batches(training: Workload, skill: Skill) -> float:
    """Return in how many batches a process trains on a capability's states, expected per update.

    States of all rollouts that an update trains on are joined by capability. Processes take the
    samples in one piece each: where an update has all capabilities, not each of them has some of
    each. It is the mean over all processes.
    """
    whole, count = rows(training, skill), training.num_processes
    every = sum(rows(training, s) for s in training.skills) if training.together else whole
    holders = min(count, -(-whole * count // every))
    num_queries = training.method.queries_per_sample(training.num_steps)
    limit = samples_together(MAX_ROWS, num_queries)
    return sum(
        chance * ceil(ceil(rollouts * whole / holders) / limit) * holders / count
        for rollouts, chance in enumerate(_chances(training, skill))
    )


def _chances(training: Workload, skill: Skill) -> list[float]:
    """Return how likely 0, 1, ... R of the rollouts that an update trains on have a capability.

    Draws in turn (``train.distill.router``) are counted over where the turns may begin.
    """
    rounds, share = training.method.updates_per_rollout, skill.share
    if training.together:
        return [0.0] * rounds + [1.0]
    if not training.evenly:
        others = 1.0 - share
        return [comb(rounds, k) * share**k * others ** (rounds - k) for k in range(rounds + 1)]
    chances = [0.0] * (rounds + 1)
    for place in range(_NUM_BEGINNINGS):
        point = (place + 0.5) / _NUM_BEGINNINGS
        held = sum((point + later * GOLDEN_RATIO) % 1.0 < share for later in range(rounds))
        chances[held] += 1.0 / _NUM_BEGINNINGS
    return chances


def rows(training: Workload, skill: Skill) -> int:
    """Return how many samples of a capability one update rolls out."""
    share = skill.share if training.together else 1.0
    return training.method.num_samples(training.batch_size, share)


def rows_together(training: Workload, skill: Skill) -> int:
    """Return the most states of a capability that one backward pass of a process holds."""
    num_queries = training.method.queries_per_sample(training.num_steps)
    whole = rows(training, skill) * training.method.updates_per_rollout
    samples = -(-whole // training.num_processes)
    return min(samples, samples_together(MAX_ROWS, num_queries)) * num_queries


def num_updates(training: Workload, per_update: float) -> int:
    """Return how many updates are made; a budget may end the training earlier."""
    if not training.method.trains:
        return 0
    if training.budget is None or per_update == 0:
        return training.num_updates
    return min(training.num_updates, int(training.budget / per_update))


def updates_by_part(training: Workload, first: float, later: float) -> tuple[float, float]:
    """Return how many updates come before teachers take substeps, and how many from then on.

    A budget's share counts where it is larger than the share of updates made, as in the training.

    Args:
        training: what is trained.
        first: field evaluations of an update before.
        later: of an update from then on.
    """
    most, budget = float(training.num_updates), training.budget
    if not first:
        return 0.0, 0.0
    ends = most if budget is None else min(most, budget / first)
    before = min(ends, ceil(training.substeps_from * ends - _ROUNDING))
    if budget is None:
        return before, most - before
    return before, max(0.0, min(most - before, (budget - before * first) / later))


def warm_up(training: Workload, updates: int) -> float:
    """Return the share of states that are trained on, of updates that all had as many.

    With R updates per rollout the first R - 1 updates have fewer.
    """
    missing = training.method.updates_per_rollout - 1
    return 1.0 - missing / (2 * updates) if updates > missing else 1.0


def training_of(params: "Params", *, is_brought: bool) -> Workload:
    """Return what a params file asks for.

    Args:
        params: the parameters.
        is_brought: whether the teachers come from a stock pipeline, whose own network is then the
            teacher ``base`` that adapters share.

    Raises:
        ConfigError: the method's parts do not fit.
    """
    config, found = params.distill, asked(params)
    total = sum(capability.weight for capability in found.capabilities)
    ranks = {
        name: teacher.adapter_rank
        for name, teacher in params.teachers.items()
        if teacher.adapter_rank is not None
    }
    bases = [params.teachers[name].init for name in ranks]
    side = params.data.image_size
    num_sources = _num_sources(params)
    return Workload(
        method=method_of(config),
        skills=tuple(
            Skill(
                name=capability.name,
                share=capability.weight / total,
                num_sources=num_sources if capability.needs_source else 0,
                teacher=capability.teacher.name,
                cost=guidance_cost(capability.teacher.guidance_scale),
                num_rows=params.data.buckets[capability.bucket].num_train,
                substeps=config.substeps.get(capability.name, 1),
                noised=config.noised.get(capability.name, 0.0),
            )
            for capability in found.capabilities
        ),
        adapters={name: ranks[name] for name in found.teachers if name in ranks},
        base=bases[0] if bases else "base" if is_brought else None,
        teachers=found.teachers,
        start=tuple(found.start),
        num_steps=config.num_steps,
        num_updates=config.num_updates,
        budget=config.max_field_evaluations,
        batch_size=config.batch_size,
        together=config.capabilities_per_update == "all",
        evenly=config.capabilities_per_update == "balanced",
        rank=config.lora_rank if config.student == "lora" else None,
        optimizer=config.optimizer,
        recomputed=config.activation_checkpointing,
        dtype=params.run.dtype,
        bits=params.run.base,
        offload=params.run.offload,
        size=(side, side),
        cache_samples=params.cache.num_samples,
        cache_steps=params.cache.num_steps,
        cache_batch=params.cache.batch_size,
        cache_dtype=params.cache.dtype,
        num_processes=params.run.num_processes,
        substeps_from=config.substeps_from,
    )


def _num_sources(params: "Params") -> int:
    """Return the pictures of an edit as the columns name them; a list in one column counts once."""
    columns = {} if params.data.input is None else params.data.input.columns
    return max(1, sum(name in columns for name in SOURCE_COLUMNS))
