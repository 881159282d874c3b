"""A whole plan: sizes, memory, evaluations, operations and hours of one training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import UsageError
from danceflow.models.family import layout_of
from danceflow.plan.architecture import Architecture, architecture_of
from danceflow.plan.devices import CPU, DEFAULT_GPU, Device, device_of
from danceflow.plan.measure import network_of
from danceflow.plan.memory import (
    BYTES,
    FLOAT,
    Item,
    cache_items,
    evaluate_items,
    memory_items,
    moment_items,
    skill_tokens,
    stands_on_base,
)
from danceflow.plan.network import Network
from danceflow.plan.spread import busiest_share, exchange_seconds
from danceflow.plan.training import (
    Evaluations,
    Skill,
    Workload,
    evaluations,
    num_updates,
    rollout_passes,
    training_of,
    warm_up,
)
from danceflow.train.distill.budget import PARTS

if TYPE_CHECKING:
    from danceflow.models.layout import Tokens
    from danceflow.params.sections import Params

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Plan:
    """What a training costs.

    Attributes:
        architecture: which networks.
        network: the transformer's sizes.
        training: what is trained, and how.
        device: where.
        memory: what the updates hold, part by part, and read from the disk.
        moments: main memory that is held beside it for a moment, one after the other.
        cache: what the stage cache holds, part by part.
        evaluate: what the evaluation holds, part by part.
        evaluations: expected field evaluations per update, by capability.
        num_updates: how many there are.
        tokens: of one state, by capability.
        forward_flops: operations of one of the student's evaluations, by capability.
        training_flops: operations of its forward and backward pass, by capability.
        update_seconds: of an update, by part of the ledger; of the process with most samples.
        call_seconds: those of them that calls of modules take beside their arithmetic.
        exchange_seconds: of an update, to sum gradients over all processes.
        cache_seconds: of the teacher samples in the caches.
    """

    architecture: Architecture
    network: Network
    training: Workload
    device: Device
    memory: tuple[Item, ...]
    moments: tuple[Item, ...]
    cache: tuple[Item, ...]
    evaluate: tuple[Item, ...]
    evaluations: tuple[Evaluations, ...]
    num_updates: int
    tokens: Mapping[str, "Tokens"]
    forward_flops: Mapping[str, float]
    training_flops: Mapping[str, float]
    update_seconds: Mapping[str, float]
    call_seconds: float
    exchange_seconds: float
    cache_seconds: float

    @property
    def per_update(self) -> dict[str, float]:
        """Expected field evaluations of an update, by part of the ledger."""
        return {part: sum(e.parts[part] for e in self.evaluations) for part in PARTS}

    @property
    def total(self) -> dict[str, float]:
        """Expected field evaluations of the whole training, by part of the ledger."""
        share = warm_up(self.training, self.num_updates)
        return {
            part: count * self.num_updates * (1.0 if part == "rollout" else share)
            for part, count in self.per_update.items()
        }

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        rank = self.training.rank
        return self.network.parameters if rank is None else self.network.adapter_parameters(rank)

    @property
    def hours(self) -> float:
        """Estimated hours of the updates."""
        share = warm_up(self.training, self.num_updates)
        each = sum(
            seconds * (1.0 if part == "rollout" else share)
            for part, seconds in self.update_seconds.items()
        )
        return self.num_updates * (each + self.exchange_seconds) / SECONDS_PER_HOUR

    @property
    def cache_hours(self) -> float:
        """Estimated hours of the teacher samples in the caches."""
        return self.cache_seconds / SECONDS_PER_HOUR

    def held(self, place: str) -> float:
        """Return the bytes that the updates hold: ``device``, ``main`` memory or ``disk``."""
        return _sum_of(self.memory, place)

    def evaluate_held(self, place: str) -> float:
        """Return the bytes that the evaluation holds in ``device`` or ``main`` memory."""
        return _sum_of(self.evaluate, place)

    def cache_held(self, place: str) -> float:
        """Return the bytes that the stage cache holds in ``device`` or ``main`` memory."""
        return _sum_of(self.cache, place)

    def peak(self, place: str) -> float:
        """Return the most bytes of ``device`` or ``main`` memory that are held at any time."""
        moment = max((item.num_bytes for item in self.moments if item.place == place), default=0)
        stages = (self.held(place) + moment, self.cache_held(place), self.evaluate_held(place))
        return max(stages)


def _sum_of(items: Sequence[Item], place: str) -> float:
    return sum(item.num_bytes for item in items if item.place == place)


def plan_recipe(
    params: "Params",
    *,
    model: str | None = None,
    gpu: str | None = None,
    utilisation: float | None = None,
    teachers: Path | None = None,
) -> Plan:
    """Return what a recipe's distillation costs.

    Args:
        params: the recipe.
        model: a published model or a pipeline's folder; see ``architecture_of``.
        gpu: where it runs; by default the usual GPU, or the processor if ``run.device`` is that.
        utilisation: share of the GPU's peak, in place of the estimated one.
        teachers: the checkout's folder of teachers, if there is one.

    Raises:
        UsageError: unknown model or GPU, or images that the network cannot make.
        ConfigError: the method's parts do not fit.
        WeightsError: a folder cannot be read.
    """
    usual = CPU if params.run.device == "cpu" and model is None else DEFAULT_GPU
    device = device_of(gpu or usual, utilisation)
    architecture = architecture_of(params, model, teachers)
    training = training_of(params, is_brought=architecture.is_brought)
    return plan_training(training, architecture, device)


def plan_training(training: Workload, architecture: Architecture, device: Device) -> Plan:
    """Return what a training of these networks costs on a machine.

    Raises:
        UsageError: images that the network cannot make.
        WeightsError: sizes that its class does not take.
    """
    _check_size(training, architecture)
    network = network_of(
        architecture.family,
        architecture.transformer,
        architecture.factor,
        edits=architecture.edits,
    )
    costs = evaluations(training)
    tokens = {s.name: skill_tokens(training, architecture, s) for s in training.skills}
    half, rank = BYTES[training.dtype], training.rank
    student = FLOAT if rank is None else half
    seconds, calls = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    # A backward pass starts its kernels without Python: it counts as another forward pass.
    trained_passes = 3 if training.recomputed else 2
    own = _call_seconds(training, network, device, rank, on_base=rank is not None)
    calls["rollout"] = rollout_passes(training, tokens) * own
    forward, backward = {}, {}
    for skill in training.skills:
        at = tokens[skill.name]
        forward[skill.name] = network.forward_flops(at, rank)
        backward[skill.name] = network.training_flops(at, rank, recomputed=training.recomputed)
    for cost in costs:
        name = cost.skill.name
        adapter = network.adapter_flops(tokens[name], rank)
        ahead = device.seconds(forward[name], adapter, student)
        back = device.seconds(backward[name], (1 + trained_passes) * adapter, student)
        seconds["rollout"] += cost.rollout * ahead
        seconds["average"] += cost.average * ahead
        seconds["training"] += cost.states * back
        calls["average"] += cost.passes * own if cost.average else 0.0
        calls["training"] += cost.passes * trained_passes * own
        for teacher, count in cost.teachers.items():
            its, on_base = training.adapters.get(teacher), stands_on_base(training, teacher)
            each = _teacher_seconds(network, device, tokens[name], its, half)
            seconds["teachers"] += count * each
            each = _call_seconds(training, network, device, its, on_base=on_base)
            calls["teachers"] += cost.teacher_passes[teacher] * each
    per_update = sum(sum(cost.parts.values()) for cost in costs)
    share = busiest_share(training)
    trained = network.parameters if rank is None else network.adapter_parameters(rank)
    return Plan(
        architecture=architecture,
        network=network,
        training=training,
        device=device,
        memory=tuple(memory_items(training, architecture, network)),
        moments=tuple(moment_items(training, network)),
        cache=tuple(cache_items(training, architecture, network)),
        evaluate=tuple(evaluate_items(training, architecture, network)),
        evaluations=tuple(costs),
        num_updates=num_updates(training, per_update),
        tokens=tokens,
        forward_flops=forward,
        training_flops=backward,
        update_seconds={part: share * seconds[part] + calls[part] for part in PARTS},
        call_seconds=sum(calls.values()),
        exchange_seconds=exchange_seconds(training, FLOAT * trained),
        cache_seconds=sum(
            _cache_seconds(training, network, device, skill, tokens[skill.name])
            for skill in training.skills
        )
        / training.num_processes,
    )


def _call_seconds(
    training: Workload, network: Network, device: Device, rank: int | None, *, on_base: bool
) -> float:
    """Return what a pass takes beside its arithmetic.

    Args:
        training: says how the base is held.
        network: whose modules are called.
        device: where.
        rank: of the adapter that is active, if any.
        on_base: whether the network is the shared base.
    """
    seconds = device.call_seconds * network.calls(rank)
    if on_base and training.bits != "float":
        seconds += device.quantised_call_seconds * network.block_modules
    return seconds


def _teacher_seconds(
    network: Network, device: Device, tokens: "Tokens", rank: int | None, num_bytes: int
) -> float:
    """Return how long the arithmetic of a teacher at one state takes."""
    flops = network.forward_flops(tokens, rank)
    return device.seconds(flops, network.adapter_flops(tokens, rank), num_bytes)


def _cache_seconds(
    training: Workload, network: Network, device: Device, skill: Skill, tokens: "Tokens"
) -> float:
    """Return how long a capability's teacher samples take; guidance makes no further passes."""
    samples = min(training.cache_samples, skill.num_rows)
    rank, on_base = training.adapters.get(skill.teacher), stands_on_base(training, skill.teacher)
    each = _teacher_seconds(network, device, tokens, rank, BYTES[training.dtype])
    calls = _call_seconds(training, network, device, rank, on_base=on_base)
    passes = -(-samples // training.cache_batch)
    return training.cache_steps * (samples * skill.cost * each + passes * calls)


def _check_size(training: Workload, architecture: Architecture) -> None:
    layout = layout_of(architecture.family)
    unit = architecture.factor * layout.side(architecture.transformer)
    if any(length % unit for length in training.size):
        height, width = training.size
        raise UsageError(
            f"data.image_size: {architecture.name} makes images whose sides are multiples of "
            f"{unit} pixels, not {height} x {width}"
        )


def resized(training: Workload, side: int) -> Workload:
    """Return the same training on square images of another side in pixels."""
    return replace(training, size=(side, side))


def _items(items: Sequence[Item]) -> list[dict[str, Any]]:
    return [
        {
            "part": item.name,
            "bytes": round(item.num_bytes),
            "place": item.place,
            "estimate": item.is_estimate,
        }
        for item in items
    ]


def as_data(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data, for JSON."""
    training, network, device = plan.training, plan.network, plan.device
    return {
        "model": {
            "name": plan.architecture.name,
            "family": plan.architecture.family,
            "origin": plan.architecture.origin,
            "verified": plan.architecture.is_verified,
            "parameters": network.parameters,
            "buffers": network.buffers,
            "frozen_parts": dict(plan.architecture.frozen),
        },
        "image_size": list(training.size),
        "student": {
            "trained_parameters": plan.trained,
            "adapter_rank": training.rank,
            "adapter_bytes": None if training.rank is None else 4 * plan.trained,
        },
        "memory_bytes": _items(plan.memory),
        "device_bytes": round(plan.held("device")),
        "main_bytes": round(plan.held("main")),
        "disk_bytes": round(plan.held("disk")),
        "moment_bytes": _items(plan.moments),
        "cache_bytes": _items(plan.cache),
        "evaluate_bytes": _items(plan.evaluate),
        "peak_device_bytes": round(plan.peak("device")),
        "peak_main_bytes": round(plan.peak("main")),
        "field_evaluations": {
            "per_update": plan.per_update,
            "per_update_total": sum(plan.per_update.values()),
            "num_updates": plan.num_updates,
            "training": plan.total,
            "training_total": sum(plan.total.values()),
        },
        "capabilities": {
            skill.name: {
                "tokens": plan.tokens[skill.name].of("all"),
                "substeps": skill.substeps,
                "forward_tflops": plan.forward_flops[skill.name] / 1e12,
                "training_tflops": plan.training_flops[skill.name] / 1e12,
            }
            for skill in training.skills
        },
        "time": {
            "gpu": device.name,
            "utilisation": device.utilisation,
            "measured": device.is_measured,
            "seconds_per_update": dict(plan.update_seconds),
            "call_seconds_per_update": plan.call_seconds,
            "exchange_seconds_per_update": plan.exchange_seconds,
            "num_processes": training.num_processes,
            "hours": plan.hours,
            "cache_hours": plan.cache_hours,
        },
    }
