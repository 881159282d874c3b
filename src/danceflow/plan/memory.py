"""What a distillation holds in memory, part by part, as the code holds it."""

from dataclasses import dataclass
from typing import Literal

from danceflow.plan.architecture import Architecture
from danceflow.plan.layouts import LAYOUTS, tokens_of
from danceflow.plan.network import Network, Tokens
from danceflow.plan.training import Skill, Training, rows_together

FLOAT = 4
"""Bytes of a float32: adapters, whole students, gradients, averages, encoders, caches."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
Place = Literal["device", "main"]


@dataclass(frozen=True)
class Item:
    """One part of what is held.

    Attributes:
        name: in words.
        num_bytes: how much it is.
        place: ``device``, where networks compute, or ``main`` memory.
        is_estimate: whether it follows a fitted or an assumed number, and is not a count.
    """

    name: str
    num_bytes: float
    place: Place = "device"
    is_estimate: bool = False


def shares_base(training: Training) -> bool:
    """Return whether the student's adapter stands on the network that the teachers share."""
    shared = {*training.adapters, training.base}
    loaded = shared & set(training.teachers)
    return training.rank is not None and bool(loaded) and set(training.start) <= shared


def memory_items(training: Training, architecture: Architecture, network: Network) -> list[Item]:
    """Return what stage ``distill`` holds; what lives for a moment is left out.

    Args:
        training: what is trained.
        architecture: the networks.
        network: the transformer's sizes.
    """
    half = BYTES[training.dtype]
    elements = network.parameters + network.buffers
    whole = elements * half
    items = [*_teachers(training, network, whole)]
    student = FLOAT if training.rank is None else half
    if training.rank is None:
        trained, matrices = network.parameters, network.matrix_parameters
        items.append(Item("student", elements * FLOAT))
    else:
        trained = network.adapter_parameters(training.rank)
        matrices = network.adapter_matrices(training.rank)
        if not shares_base(training):
            items.append(Item("frozen copy of the student's start", whole))
        items.append(Item("student's adapter", trained * FLOAT))
    if training.method.objective.needs_ema:
        copied = elements * student + (0 if training.rank is None else trained * FLOAT)
        items.append(Item("network of the averaged student", copied))
    if training.method.trains:
        states = 2 * trained if training.optimizer == "adamw" else 2 * trained - matrices
        items += [
            Item("gradients", trained * FLOAT),
            Item(f"states of {training.optimizer}", states * FLOAT),
            Item("average of the student (EMA)", trained * FLOAT),
            _activations(training, architecture, network, student),
        ]
    items += [Item(part, count * FLOAT) for part, count in architecture.frozen.items()]
    items.append(Item("condition caches", _caches(training, architecture), "main", True))
    return items


def _teachers(training: Training, network: Network, whole: float) -> list[Item]:
    """Return the networks of the teachers, and their adapters."""
    adapters = training.adapters
    own = [n for n in training.teachers if n not in adapters and n != training.base]
    items = []
    if adapters or training.base in training.teachers:
        items.append(Item(f"shared base {training.base!r}", whole))
    if adapters:
        count = sum(network.adapter_parameters(rank) for rank in adapters.values())
        items.append(Item(f"teachers' adapters ({', '.join(adapters)})", count * FLOAT))
    if own:
        name = f"whole teachers ({', '.join(own)})"
        total = len(own) * whole
        if training.offload == "none":
            items.append(Item(name, total))
        else:
            items.append(Item(name, total, "main"))
            block = max(network.blocks.values()) / (network.parameters + network.buffers)
            at_once = whole if training.offload == "teachers" else block * whole
            items.append(Item("of whole teachers, while one is asked", at_once))
    return items


def _activations(
    training: Training, architecture: Architecture, network: Network, num_bytes: int
) -> Item:
    """Return the activations of the largest backward pass."""
    most = 0.0
    for skill in training.skills:
        one = network.activation_bytes(
            skill_tokens(training, architecture, skill),
            num_bytes,
            training.rank,
            recomputed=training.recomputed,
        )
        most = max(most, one * rows_together(training, skill))
    how = "recomputed by block" if training.recomputed else "all kept"
    return Item(f"activations, {how}", most, is_estimate=True)


def skill_tokens(training: Training, architecture: Architecture, skill: Skill) -> Tokens:
    """Return the tokens of one of a capability's states."""
    return tokens_of(
        architecture.family,
        architecture.transformer,
        architecture.factor,
        training.size,
        architecture.prompt_tokens,
        edits=architecture.edits,
        has_source=skill.has_source,
    )


def _caches(training: Training, architecture: Architecture) -> float:
    """Return the bytes of all capabilities' caches, every row with a prompt of its own."""
    transformer, layout = architecture.transformer, LAYOUTS[architecture.family]
    height, width = (side // architecture.factor for side in training.size)
    latent = layout.channels(transformer) * height * width
    total = 0.0
    for skill in training.skills:
        seen = training.size if skill.has_source and architecture.edits else None
        prompt = layout.prompt_values(transformer, architecture.prompt_tokens, seen)
        rows = skill.num_rows * (prompt + latent * (2 if skill.has_source else 1))
        samples = min(training.cache_samples, skill.num_rows) * latent
        total += FLOAT * (rows + samples)
    return total
