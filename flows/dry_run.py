"""Which stages a run would execute, and why: asked without running any."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from danceflow.errors import brief
from danceflow.params.read import override
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.stages import STAGES
from flows import dvc_graph


class Fate(StrEnum):
    """What becomes of a stage."""

    RUNS = "runs"
    MAY_RUN = "may run"
    UP_TO_DATE = "up to date"
    FROZEN = "frozen"


_VALUE_LENGTH = 60
_UNCERTAIN = (Fate.RUNS, Fate.MAY_RUN)


@dataclass(frozen=True)
class Forecast:
    """What a run would do with a stage.

    Attributes:
        stage: its name.
        fate: what becomes of it; it may run where a stage before it runs, whose result may be the
            same again.
        reasons: why, a sentence each.
    """

    stage: str
    fate: Fate
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """Return a line, and one more for each reason."""
        return "\n  ".join([f"{self.stage}: {self.fate}", *self.reasons])


def forecast(
    root: Path, recipe: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[Forecast, ...]:
    """Return what a run would do, stage by stage.

    A stage that runs may take its result from the run-cache, where it ran with the same inputs
    before; DVC looks only when it comes to it.

    Args:
        root: the checkout.
        recipe: a complete params file in place of ``params.yaml``.
        overrides: new parameter values by dotted name.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    params = override(read_yaml(recipe or Paths(root).params), overrides or {})
    nodes = dvc_graph.stage_graph(root)
    reasons = dvc_graph.reasons(root)
    locked = dvc_graph.locked_parameters(root)
    needs = {_base(node.name): {_base(need) for need in node.needs} for node in nodes}
    frozen = {node.name for node in nodes if node.frozen}
    found: dict[str, Forecast] = {}
    for base, needed in needs.items():
        for name in _names(base, params):
            earlier = [
                stage
                for stage, item in found.items()
                if item.fate in _UNCERTAIN and _base(stage) in needed and _meet(stage, name)
            ]
            why = ["it never ran with such capabilities"]
            if name in locked:
                why = [*reasons.get(name, ()), *_changes(locked[name], params)]
            if name in frozen:
                found[name] = Forecast(name, Fate.FROZEN, ())
            elif why:
                found[name] = Forecast(name, Fate.RUNS, tuple(why))
            elif earlier:
                line = f"if {' or '.join(earlier)} makes something else"
                found[name] = Forecast(name, Fate.MAY_RUN, (line,))
            else:
                found[name] = Forecast(name, Fate.UP_TO_DATE, ())
    return tuple(found.values())


def _meet(one: str, other: str) -> bool:
    """Return whether two stages are of one item, or one of them is of all items."""
    items = {name.partition("@")[2] for name in (one, other)} - {""}
    return len(items) < 2


def _base(name: str) -> str:
    return name.partition("@")[0]


def _names(base: str, params: Mapping[str, Any]) -> list[str]:
    """Return the names that DVC gives a stage of ``dvc.yaml``: one for each item of its matrix."""
    stage = STAGES.get(base)
    if stage is None or stage.matrix is None:
        return [base]
    return [f"{base}@{item}" for item in params[stage.matrix]]


def _changes(locked: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    """Give a sentence for each parameter that differs from what the stage ran with."""
    for name, value in locked.items():
        yield from _differences(name, value, _at(params, name))


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(f"{name}.{key}", old.get(key), new.get(key))
    elif old != new:
        was, now = (brief(json.dumps(value), _VALUE_LENGTH) for value in (old, new))
        yield f"{name} was {was}, is {now}"


def _at(params: Mapping[str, Any], name: str) -> Any:
    value: Any = params
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
