"""What a sweep file holds: many runs of the pipeline that differ in named ways, times seeds.

    name: queries                       # part of every experiment's name
    recipe: null                        # a complete params file in place of params.yaml
    set: {distill.num_updates: 120}     # for every cell
    variants:                           # named sets of overrides
      low: {distill.query: low}
      merge: {distill.method: merge, seeds: [0]}
    axes:                               # every combination of these, times the variants
      distill.num_steps: [4, 8]         # a parameter and its values,
      alpha:                            # or a word and its named sets of overrides
        "1": {capabilities.t2i.guidance: 1.0}
        "2": {capabilities.t2i.guidance: 2.0}
    seeds: [0, 1, 2]                    # of the training (distill.seed)
    targets: [evaluate]                 # stages to bring up to date; null: all
    parallel: 2                         # cells at once

A seed changes the student's training and nothing else: data, caches, teachers and the prompts and
noise of the evaluation are the same in all cells, so that variants can be compared row by row.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from danceflow.errors import ConfigError
from danceflow.params.read import parse_section
from danceflow.params.sections import Section
from danceflow.params.values import Count, PositiveCount
from danceflow.params.yaml12 import read_yaml

SEED = "distill.seed"
SEEDS = "seeds"
DEFAULT_VARIANT = "default"

Overrides = Mapping[str, Any]
Axis = Sequence[Any] | Mapping[str, Overrides]


def _axis(axis: object) -> object:
    words = isinstance(axis, dict) and all(isinstance(part, dict) for part in axis.values())
    if (isinstance(axis, list) or words) and axis:
        return axis
    raise ValueError(
        f"should be a list of values, or words that each hold overrides, found {json.dumps(axis)}"
    )


class SweepParams(Section):
    """A sweep file; the module's description shows one."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    recipe: str | None = None
    set: Mapping[str, Any] = {}
    variants: Mapping[str, Mapping[str, Any]] = {}
    axes: Mapping[str, Annotated[Any, AfterValidator(_axis)]] = {}
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    parallel: PositiveCount = 1


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        variant: what it is called in tables.
        seed: of its training.
        overrides: new values by dotted name, the seed among them.
    """

    variant: str
    seed: int
    overrides: Overrides

    @property
    def slug(self) -> str:
        """Variant and seed, as part of an experiment's name."""
        return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', self.variant).strip('-.')}-s{self.seed}"


def read_sweep(path: Path) -> SweepParams:
    """Return what a sweep file holds.

    Raises:
        ConfigError: The file is missing or no YAML, or something in it is wrong; the message names
            every problem.
    """
    data = read_yaml(path)
    return parse_section(data, SweepParams, str(path))


def cells_of(sweep: SweepParams, source: str) -> tuple[Cell, ...]:
    """Return the cells of a sweep, variant by variant.

    Args:
        sweep: What the file holds.
        source: Name of the file, for messages.

    Raises:
        ConfigError: Seeds are no numbers, two parts of a cell set the same parameter, or two cells
            have the same name.
    """
    variants = sweep.variants or {DEFAULT_VARIANT: {}}
    axes = [list(_points(name, axis, sweep)) for name, axis in sweep.axes.items()]
    cells = []
    for name, values in variants.items():
        seeds = _seeds(name, values, sweep, source)
        for point in itertools.product(*axes):
            parts = [{k: v for k, v in values.items() if k != SEEDS}, *(part for _, part in point)]
            labels = [name] if sweep.variants or not point else []
            variant = ", ".join([*labels, *(label for label, _ in point)])
            overrides = _joined(f"{source}: {variant}", [sweep.set, *parts])
            cells += [Cell(variant, seed, {**overrides, SEED: seed}) for seed in seeds]
    twice = [slug for slug, count in Counter(cell.slug for cell in cells).items() if count > 1]
    if twice:
        raise ConfigError(f"{source}: two cells are called {twice[0]!r}")
    return tuple(cells)


def _points(name: str, axis: Axis, sweep: SweepParams) -> Iterator[tuple[str, Overrides]]:
    """Yield the label and the overrides of every value of an axis."""
    if isinstance(axis, Mapping):
        for label, overrides in axis.items():
            yield f"{name}={label}", overrides
        return
    last = name.rpartition(".")[2]
    is_unique = sum(other.rpartition(".")[2] == last for other in sweep.axes) == 1
    for value in axis:
        text = "null" if value is None else str(value)
        yield f"{last if is_unique else name}={text}", {name: value}


def _seeds(name: str, values: Overrides, sweep: SweepParams, source: str) -> Sequence[int]:
    seeds = values.get(SEEDS, sweep.seeds)
    numbers = isinstance(seeds, list | tuple) and all(type(seed) is int for seed in seeds)
    if not numbers or not seeds or min(seeds) < 0:
        raise ConfigError(f"{source}: variants.{name}.seeds: should be a list of numbers from 0")
    return list(seeds)


def _joined(place: str, parts: Sequence[Overrides]) -> dict[str, Any]:
    """Return all overrides of a cell; a later part may change what holds for every cell."""
    common, *own = parts
    names = Counter(name for part in own for name in part)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"{place}: {twice[0]} is set twice")
    joined = {**common}
    for part in own:
        joined |= part
    if SEED in joined:
        raise ConfigError(f"{place}: {SEED} is what `seeds` sets")
    return joined
