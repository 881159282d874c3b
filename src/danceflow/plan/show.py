"""A plan as text for the terminal, and the tables of all published models for docs/scale.md."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from danceflow.method import METHODS
from danceflow.models.family import layout_of
from danceflow.plan.architecture import published, published_architecture
from danceflow.plan.cost import Plan, plan_training, resized
from danceflow.plan.devices import DEFAULT_GPU, Device, device_of
from danceflow.plan.memory import Item
from danceflow.plan.training import Skill, Workload

_SIZES = (512, 1024)
_PLACES = {"device": "where networks compute", "main": "main memory", "disk": "on disk"}
REFERENCE_ROWS = 10_000
REFERENCE = Workload(
    method=METHODS["danceopd"],
    skills=(
        Skill("t2i", 1 / 3, 0, "base", 2, REFERENCE_ROWS),
        Skill("local_edit", 1 / 3, 1, "local", 1, REFERENCE_ROWS),
        Skill("global_edit", 1 / 3, 1, "global", 1, REFERENCE_ROWS),
    ),
    adapters={"local": 128, "global": 128},
    base="base",
    teachers=("base", "local", "global"),
    start=("local",),
    num_steps=16,
    num_updates=2000,
    budget=None,
    batch_size=4,
    together=False,
    rank=128,
    optimizer="adamw",
    recomputed=True,
    dtype="bfloat16",
    bits="float",
    offload="none",
    size=(1024, 1024),
    cache_samples=256,
    cache_steps=16,
    cache_batch=4,
    cache_dtype="bfloat16",
)
"""The training of the table: DanceOPD as published (rank 128, 16 steps, 4 samples per update)."""


def as_text(plan: Plan) -> str:
    """Return a plan as readable lines."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    training, network, device = plan.training, plan.network, plan.device
    height, width = training.size
    yield f"{plan.architecture.name} ({plan.architecture.family}), {height} x {width} pixels"
    yield f"  sizes from: {plan.architecture.origin}"
    if not plan.architecture.is_verified:
        yield "  some of these sizes are assumptions: src/danceflow/plan/models.json names them"
    yield ""
    yield "Parameters"
    yield from _table(
        [
            ("transformer", _count(network.parameters)),
            *((part, _count(count)) for part, count in plan.architecture.frozen.items()),
            (_student(plan), _count(plan.trained)),
        ]
    )
    yield ""
    each = ", of each process" if training.num_processes > 1 else ""
    yield f"Memory{each} and disk in GB (10^9 bytes); ~ is an estimate"
    yield from _parts("distill", plan.memory)
    if plan.moments:
        yield "  distill, main memory beside that, for a moment"
        yield from _rows(plan.moments)
    yield from _parts("cache", plan.cache)
    yield from _parts("evaluate", plan.evaluate)
    yield f"  main memory at most: {_gigabytes(plan.peak('main'))}"
    yield from _fits(plan)
    yield ""
    yield f"Field evaluations ({training.method.name})"
    rows: list[tuple[str, ...]] = [("part", "per update", "training")]
    for part, count in plan.per_update.items():
        if count:
            rows.append((part, f"{count:.1f}", f"{plan.total[part]:,.0f}"))
    rows.append(("all", f"{sum(plan.per_update.values()):.1f}", f"{sum(plan.total.values()):,.0f}"))
    yield from _table(rows)
    budget = "" if training.budget is None else f", at most {training.budget:,} evaluations"
    yield f"  {plan.num_updates:,} updates of {training.batch_size} samples{budget}"
    yield from _substeps(training)
    yield ""
    yield "Operations of one state in TFLOP"
    rows = [("capability", "tokens", "forward", "forward and backward")]
    for skill in training.skills:
        rows.append(
            (
                skill.name,
                str(plan.tokens[skill.name].of("all")),
                f"{plan.forward_flops[skill.name] / 1e12:.3g}",
                f"{plan.training_flops[skill.name] / 1e12:.3g}",
            )
        )
    yield from _table(rows)
    if not plan.architecture.is_padded:
        yield f"  assumed: {plan.architecture.prompt_tokens} tokens per prompt"
    yield ""
    yield f"Time on {device.label}: {_hours(plan.hours)} for the updates"
    yield (
        f"  {sum(plan.update_seconds.values()):.3g} s per update{_calls(plan)}; teacher samples of "
        f"the caches: {_hours(plan.cache_hours)}"
    )
    if (count := training.num_processes) > 1:
        yield (
            f"  on {count} devices; {1000 * plan.exchange_seconds:.3g} ms of an update to sum "
            "gradients, at assumed speeds (docs/scale-out.md)"
        )
    yield f"  {_speed(device)}"


def _calls(plan: Plan) -> str:
    return f", {plan.call_seconds:.3g} s of it to start kernels" if plan.call_seconds else ""


def _substeps(training: Workload) -> Iterator[str]:
    named = [f"{s.name} {s.substeps}" for s in training.skills if s.substeps > 1]
    if named:
        since = f" after {training.substeps_from:.0%} of the training"
        yield (
            f"  substeps of a teacher within a step: {', '.join(named)}"
            f"{since if training.substeps_from else ''}; per update is a mean"
        )


def _parts(stage: str, items: Sequence[Item]) -> Iterator[str]:
    for place, name in _PLACES.items():
        there = [item for item in items if item.place == place]
        if there:
            total = sum(item.num_bytes for item in there)
            yield f"  {stage}, {name}: {_gigabytes(total)}"
            yield from _rows(there)


def _rows(items: Sequence[Item]) -> Iterator[str]:
    yield from _table([(f"  {item.name}", _held(item)) for item in items])


def _student(plan: Plan) -> str:
    rank = plan.training.rank
    if rank is None:
        return "trained: all weights"
    return f"trained: adapter of rank {rank}, {_megabytes(4 * plan.trained)} file"


def _fits(plan: Plan) -> Iterator[str]:
    memory = plan.device.memory_gb
    if memory is None:
        return
    held = plan.peak("device") / 1e9
    if held > memory:
        yield f"  does not fit: {held:.1f} GB of the {memory:g} GB of {plan.device.label}"
    else:
        yield f"  leaves {memory - held:.1f} of {memory:g} GB for workspace and fragmentation"


def _speed(device: Device) -> str:
    if device.is_measured:
        return f"measured speed, scaled by operations: {device.source}"
    share = f"estimated: {device.utilisation:.0%} of the vendor's peaks"
    if not device.call_seconds:
        return share
    return f"{share} and {1e3 * device.call_seconds:.2g} ms per call of a module (docs/scale.md)"


def as_table(gpu: str | None = None, utilisation: float | None = None) -> str:
    """Return what the reference training costs with every published model, as Markdown.

    There are three tables: of the networks, of one state, and of the training.

    Args:
        gpu: where; by default the usual GPU.
        utilisation: share of its peak, in place of the estimated one.

    Raises:
        UsageError: unknown GPU.
    """
    device = device_of(gpu or DEFAULT_GPU, utilisation)
    plans = [
        plan_reference(name, gpu, utilisation, side)
        for name in published()["models"]
        for side in _SIZES
    ]
    tables = (
        [_network_row(plan) for plan in plans[:: len(_SIZES)]],
        [_state_row(plan) for plan in plans],
        [_training_row(plan) for plan in plans],
    )
    heads = (
        ("model", "parameters", "adapter's parameters", "adapter's file"),
        (
            "a state of",
            "pixels",
            "tokens",
            "tokens, edit",
            "TFLOP",
            "TFLOP, edit",
            "activations, GB",
            "recomputed, GB",
        ),
        (
            "a training of",
            "pixels",
            "`distill`, GB",
            "`evaluate`, GB",
            "caches, GB",
            "evaluations per update",
            f"hours on {device.name}",
        ),
    )
    return "\n\n".join(map(_markdown, heads, tables))


def reference(*, edits: bool) -> Workload:
    """Return the reference training; for a model that cannot edit, its text-to-image alone."""
    if edits:
        return REFERENCE
    only = replace(REFERENCE.skills[0], share=1.0)
    return replace(REFERENCE, skills=(only,), adapters={}, teachers=("base",), start=("base",))


def plan_reference(
    model: str, gpu: str | None = None, utilisation: float | None = None, side: int = _SIZES[-1]
) -> Plan:
    """Return what the reference training costs with a published model.

    Args:
        model: its name.
        gpu: where; by default the usual GPU.
        utilisation: share of its peak, in place of the estimated one.
        side: of the images, in pixels.

    Raises:
        UsageError: unknown model or GPU.
    """
    entry = published()["models"].get(model)
    edits = entry is not None and (entry["edits"] or layout_of(entry["family"]).is_widened)
    architecture = published_architecture(model, edits=edits)
    training = resized(reference(edits=edits), side)
    return plan_training(training, architecture, device_of(gpu or DEFAULT_GPU, utilisation))


def _network_row(plan: Plan) -> tuple[str, ...]:
    return (
        plan.architecture.name,
        _count(plan.network.parameters),
        _count(plan.trained),
        _megabytes(4 * plan.trained),
    )


def _state_row(plan: Plan) -> tuple[str, ...]:
    training = plan.training
    first, last = training.skills[0].name, training.skills[-1].name
    has_edits = first != last
    kept = [
        plan.network.activation_bytes(plan.tokens[last], 2, training.rank, recomputed=recomputed)
        for recomputed in (False, True)
    ]
    return (
        plan.architecture.name,
        str(training.size[0]),
        str(plan.tokens[first].of("all")),
        str(plan.tokens[last].of("all")) if has_edits else "",
        f"{plan.forward_flops[first] / 1e12:.1f}",
        f"{plan.forward_flops[last] / 1e12:.1f}" if has_edits else "",
        *(f"{value / 1e9:.2f}" for value in kept),
    )


def _training_row(plan: Plan) -> tuple[str, ...]:
    held = plan.held("device"), plan.evaluate_held("device"), plan.held("disk")
    return (
        plan.architecture.name,
        str(plan.training.size[0]),
        *(f"{value / 1e9:.1f}" for value in held),
        f"{sum(plan.per_update.values()):.1f}",
        f"{plan.hours:.1f}",
    )


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, *rows]
    shown = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([shown[0], "|" + "---|" * len(head), *shown[1:]])


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield rows with aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [text.rjust(size) for text, size in zip(others, widths[1:], strict=True)]
        yield "  " + "  ".join(cells)


def _held(item: Item) -> str:
    return ("~" if item.is_estimate else "") + _gigabytes(item.num_bytes)


def _count(number: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2g}" if number < 1e9 else f"{number / 1e9:.1f}"


def _megabytes(number: float) -> str:
    return f"{number / 1e6:,.1f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
