"""What a distillation and its evaluation hold, part by part: in memory, and caches on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from danceflow.models.family import layout_of
from danceflow.models.layout import Tokens
from danceflow.models.memory import DTYPES
from danceflow.plan.architecture import Architecture
from danceflow.plan.network import Network
from danceflow.plan.spread import is_sharded
from danceflow.plan.training import Skill, Workload, rows_together

FLOAT = 4
"""Bytes of a float32: adapters, whole students, gradients, averages, encoders."""
BYTES = {name: dtype.itemsize for name, dtype in DTYPES.items()}
_CODEC = "vae"
_NAMED = 4  # adapters by name; more are counted
Place = Literal["device", "main", "disk"]


@dataclass(frozen=True)
class Item:
    """One part of what is held.

    Attributes:
        name: in words.
        num_bytes: how much it is.
        place: ``device``, where networks compute, ``main`` memory or ``disk``.
        is_estimate: whether it follows a fitted or an assumed number, and is not a count.
    """

    name: str
    num_bytes: float
    place: Place = "device"
    is_estimate: bool = False


_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight: four bits, a byte for the scale of 64, and a float32 for 256 of these."""


def base_bytes(network: Network, dtype: str, bits: str) -> float:
    """Return the bytes of a frozen network of ``dtype`` whose blocks are held as ``bits`` says."""
    elements, half = network.parameters + network.buffers, BYTES[dtype]
    if bits == "float":
        return elements * half
    weights, rows = network.block_weights
    held = weights * _NF4 if bits == "nf4" else weights + rows * FLOAT
    return (elements - weights) * half + held


def shares_base(training: Workload) -> bool:
    """Return whether the student's adapter stands on the network that the teachers share."""
    shared = _on_base(training)
    loaded = shared & set(training.teachers)
    return training.rank is not None and bool(loaded) and set(training.start) <= shared


def memory_items(training: Workload, architecture: Architecture, network: Network) -> list[Item]:
    """Return what stage ``distill`` holds while it trains; see also :func:`moment_items`.

    Args:
        training: what is trained.
        architecture: the networks.
        network: the transformer's sizes.
    """
    half = BYTES[training.dtype]
    elements = network.parameters + network.buffers
    whole = elements * half
    base = base_bytes(network, training.dtype, training.bits)
    items = _shared(training, network, base)
    items += _waiting(training, network, _whole_teachers(training, whole))
    student = FLOAT if training.rank is None else half
    sharded = is_sharded(training, network.parameters)
    part, where = (training.num_processes, ", a shard") if sharded else (1, "")
    if training.rank is None:
        trained, matrices = network.parameters, network.matrix_parameters
        items.append(Item(f"student{where}", elements * FLOAT / part))
        if sharded:
            block = max(network.blocks.values()) * FLOAT
            items.append(Item("two blocks of the student, together", 2 * block))
    else:
        trained = network.adapter_parameters(training.rank)
        matrices = network.adapter_matrices(training.rank)
        if not shares_base(training):
            items.append(Item("frozen copy of the student's start", base))
        items.append(Item("student's adapter", trained * FLOAT))
    if training.method.objective.needs_ema:
        copied = base + trained * FLOAT if training.rank is not None else elements * FLOAT
        items.append(Item(f"network of the averaged student{where}", copied / part))
    if training.method.trains:
        states = 2 * trained if training.optimizer == "adamw" else 2 * trained - matrices
        items += [
            Item(f"gradients{where}", trained * FLOAT / part),
            Item(f"states of {training.optimizer}{where}", states * FLOAT / part),
            Item(f"average of the student (EMA){where}", trained * FLOAT / part),
            _activations(training, architecture, network, student),
        ]
    if training.num_processes > 1 and training.method.trains and not sharded:
        items.append(Item("gradients in one piece, for the all-reduce", trained * FLOAT))
    items += _codec(architecture)
    items.append(Item("condition caches", _caches(training, architecture), "disk", True))
    return items


def moment_items(training: Workload, network: Network) -> list[Item]:
    """Return what stage ``distill`` holds beside that before and after its updates, one by one."""
    elements = network.parameters + network.buffers
    items = []
    if not shares_base(training):
        made = elements * FLOAT * (1 + _averages(training))
        items.append(Item("to make the student's start", made, "main"))
    if training.rank is None or not shares_base(training):
        items.append(Item("to write the student", elements * BYTES["float16"], "main"))
    return items


def cache_items(training: Workload, architecture: Architecture, network: Network) -> list[Item]:
    """Return what stage ``cache`` holds at most: the dearest teacher beside the encoders."""
    whole = (network.parameters + network.buffers) * BYTES[training.dtype]
    base = base_bytes(network, training.dtype, training.bits)
    held: dict[str, list[Item]] = {}
    for skill in training.skills:
        rank = training.adapters.get(skill.teacher)
        shared = skill.teacher in _on_base(training)
        held[skill.teacher] = [Item(f"teacher {skill.teacher!r}", base if shared else whole)]
        if rank is not None:
            size = network.adapter_parameters(rank) * FLOAT
            held[skill.teacher].append(Item("its adapter", size))
    dearest = max(held.values(), key=lambda items: sum(item.num_bytes for item in items))
    items = [*dearest, *_encoders(training, architecture), *_codec(architecture)]
    return items + _reading(training, architecture)


def _encoders(training: Workload, architecture: Architecture) -> list[Item]:
    """Return what reads prompts and pictures, which is given back once all are read."""
    half = BYTES[training.dtype]
    return [
        Item(part, count * half)
        for part, count in architecture.frozen.items()
        if not part.startswith(_CODEC)
    ]


def _reading(training: Workload, architecture: Architecture) -> list[Item]:
    """Return the main memory in which the largest encoder is read."""
    largest = max((item.num_bytes for item in _encoders(training, architecture)), default=0.0)
    return [Item("to read encoders", largest, "main")] if largest else []


def _codec(architecture: Architecture) -> list[Item]:
    """Return the codec, float32; of distill's, the half that decodes alone is there."""
    return [
        Item(f"{part}, at most", count * FLOAT, is_estimate=True)
        for part, count in architecture.frozen.items()
        if part.startswith(_CODEC)
    ]


def evaluate_items(training: Workload, architecture: Architecture, network: Network) -> list[Item]:
    """Return what stage ``evaluate`` holds.

    A student that is an adapter stands on the base of its package in ``run.dtype``, which is the
    teachers' where they share one; another one is a float32 network beside the teachers. A start
    that is a teacher takes nothing, and an average of adapters one more adapter.
    """
    elements = network.parameters + network.buffers
    whole = elements * BYTES[training.dtype]
    apart = _whole_teachers(training, whole)
    # Networks of the dtype are read weight by weight, float32 ones whole.
    is_read_whole = training.rank is None or training.dtype == "float32"
    items, made = _shared(training, network, whole), 0
    if is_read_whole and training.offload == "none":
        made = 1
    if training.rank is None:
        apart.append(Apart("student as packaged", 1, elements * FLOAT))
    else:
        adapter = network.adapter_parameters(training.rank) * FLOAT
        items.append(Item("student's adapter", adapter))
        if not shares_base(training):
            items.append(Item("base of the student", whole))
    if len(training.start) > 1:
        if set(training.start) <= _on_base(training):
            ranks = [training.adapters.get(name, 0) for name in training.start]
            count = sum(network.adapter_parameters(rank) for rank in ranks)
            items.append(Item("start, one more adapter", count * FLOAT))
        else:
            apart.append(Apart("start", 1, elements * FLOAT))
            made += _averages(training)
    items += _waiting(training, network, apart)
    items += [*_encoders(training, architecture), *_codec(architecture)]
    items += _reading(training, architecture)
    if made:
        items.append(Item("to read and make networks", made * elements * FLOAT, "main"))
    return items


def _on_base(training: Workload) -> set[str | None]:
    """Return the teachers that are the shared base or adapters on it."""
    return {*training.adapters, training.base}


def stands_on_base(training: Workload, teacher: str) -> bool:
    """Return whether a teacher is the network that adapters share, or an adapter on it."""
    return teacher in _on_base(training)


def _averages(training: Workload) -> int:
    """Return the float32 networks that are made for an average of teachers, beside the result."""
    copied = _on_base(training) if training.adapters else set()
    return 1 + sum(name in copied for name in training.start)


def _shared(training: Workload, network: Network, whole: float) -> list[Item]:
    """Return the network that adapters share, and the adapters."""
    adapters, items = training.adapters, []
    if adapters or training.base in training.teachers:
        items.append(Item(f"shared base {training.base!r}", whole))
    if adapters:
        count = sum(network.adapter_parameters(rank) for rank in adapters.values())
        told = ", ".join(adapters) if len(adapters) <= _NAMED else len(adapters)
        items.append(Item(f"teachers' adapters ({told})", count * FLOAT))
    return items


@dataclass(frozen=True)
class Apart:
    """Networks of their own, which may wait in main memory: their name, number and bytes each."""

    name: str
    count: int
    num_bytes: float


def _whole_teachers(training: Workload, whole: float) -> list[Apart]:
    """Return the teachers with weights of their own."""
    own = [name for name in training.teachers if name not in _on_base(training)]
    return [Apart(f"whole teachers ({', '.join(own)})", len(own), whole)] if own else []


def _waiting(training: Workload, network: Network, apart: Sequence[Apart]) -> list[Item]:
    """Return networks of their own where they are, and what of them is on the device at once."""
    if training.offload == "none":
        return [Item(part.name, part.count * part.num_bytes) for part in apart]
    items = [Item(part.name, part.count * part.num_bytes, "main") for part in apart]
    if apart:
        block = max(network.blocks.values()) / (network.parameters + network.buffers)
        share = 1.0 if training.offload == "teachers" else block
        largest = max(part.num_bytes for part in apart)
        items.append(Item("of those that wait, while one is asked", largest * share))
    return items


def _activations(
    training: Workload, architecture: Architecture, network: Network, num_bytes: int
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


def skill_tokens(training: Workload, architecture: Architecture, skill: Skill) -> Tokens:
    """Return the tokens of one of a capability's states."""
    return layout_of(architecture.family).tokens_of(
        architecture.transformer,
        architecture.factor,
        training.size,
        architecture.prompt_tokens,
        edits=architecture.edits,
        num_sources=skill.num_sources,
    )


def _caches(training: Workload, architecture: Architecture) -> float:
    """Return the bytes of all caches in ``cache.dtype``, every row with a prompt of its own."""
    transformer, layout = architecture.transformer, layout_of(architecture.family)
    height, width = (side // architecture.factor for side in training.size)
    latent = layout.channels(transformer) * height * width
    total = 0.0
    for skill in training.skills:
        seen = [training.size] * (skill.num_sources if architecture.edits else 0)
        prompt = layout.prompt_values(transformer, architecture.prompt_tokens, seen)
        rows = skill.num_rows * (prompt + latent * (1 + skill.num_sources))
        samples = min(training.cache_samples, skill.num_rows) * latent
        total += BYTES[training.cache_dtype] * (rows + samples)
    return total
