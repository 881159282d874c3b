"""Golden loss traces: the first updates of every method, objective and variant, number by number.

A change that should not change the mathematics must reproduce them. One that does is recorded anew,
with its reason in the commit: ``python -m pytest tests/golden --record-golden``.

The tolerance leaves room for processors that add numbers in another order, and for nothing else.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_project import Blind, as_a_stage_runs, cached_project, small_params

from danceflow.data.cached_rows import ConditionCache
from danceflow.fields import OBJECTIVES
from danceflow.method import METHODS, method_of
from danceflow.models.teachers import Teachers
from danceflow.ops.tracking.tracker import NoTracker
from danceflow.paths import Paths
from danceflow.train.distill.trainer import Trainer

FILE = Path(__file__).with_name("loss_traces.json")
COMMAND = "python -m pytest tests/golden --record-golden"
RELATIVE = 1e-4
CAPABILITIES = ("t2i", "local_edit")

# Everything that a trace depends on and that params.yaml may change.
COMMON = {
    "num_updates": 4,
    "batch_size": 8,
    "num_steps": 4,
    "init": "merge",
    "capabilities_per_update": "all",
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "warmup": 2,
    "weight_decay": 0.0,
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "student": "full",
    "log_every": 1,
    "noised": {},
}
GROUPED = {"group_size": 2}
METHOD_CASES = {
    f"method {name}": {"method": name, **(GROUPED if method.group_size > 1 else {})}
    for name, method in METHODS.items()
    if method.trains
}
OBJECTIVE_CASES = {
    f"objective {name}": (
        {"objective": name, "num_queries": 2}
        | ({"dynamics": "sde"} if objective.needs_successors else {})
    )
    for name, objective in OBJECTIVES.items()
}
VARIANT_CASES: dict[str, dict[str, Any]] = {
    "several queries, weighted": {"num_queries": 4, "query": "uniform", "reduction": "weighted"},
    "stratified queries, summed": {"num_queries": 2, "query": "stratified", "reduction": "sum"},
    "curriculum": {"query": "curriculum"},
    "sde states": {"dynamics": "sde", "eta": 0.5},
    "one capability": {"capabilities_per_update": "one"},
    "balanced capabilities": {"capabilities_per_update": "balanced"},
    "adapter": {"student": "lora", "lora_rank": 2},
    "two draws per prompt": GROUPED,
    "antithetic": {"coupling": "antithetic"},
    "stratified batch": {"coupling": "stratified"},
    "warm start": {"warm_start": 2},
    "replay": {"updates_per_rollout": 2},
    "normalised": {"loss_normalisation": 0.5},
    "substeps": {"substeps": {"t2i": 3}, "substeps_from": 0.5},
    "noised": {"noised": {"t2i": 0.5, "local_edit": 0.25}},
}
CASES = METHOD_CASES | OBJECTIVE_CASES | VARIANT_CASES


@pytest.fixture(scope="module", autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    with as_a_stage_runs():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, Teachers]:
    paths = cached_project(tmp_path_factory.mktemp("golden"), CAPABILITIES)
    return paths, Teachers(paths.teachers, "sd3", ["base", "local"], "cpu")


def trace(made: tuple[Paths, Teachers], work: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The losses of every capability and the gradient norms, update by update."""
    paths, teachers = made
    changes = {f"distill__{name}": value for name, value in (COMMON | options).items()}
    params = small_params(CAPABILITIES, **changes)
    caches = {name: ConditionCache(paths.cache(name)) for name in CAPABILITIES}
    work.mkdir()
    method = method_of(params.distill)
    Trainer(params, method, teachers, caches, work, NoTracker(), Blind()).train()
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    norms = {row["step"]: row["grad_norm"] for row in rows}
    found: dict[str, Any] = {"gradient_norm": [float(f"{norms[s]:.7g}") for s in sorted(norms)]}
    for row in rows:
        found.setdefault(row["capability"], {})[str(row["step"])] = float(f"{row['loss']:.7g}")
    return found


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The recorded traces; with --record-golden those of this run, written at the end."""
    if not request.config.getoption("--record-golden"):
        yield json.loads(FILE.read_text())["traces"]
        return
    traces: dict[str, Any] = {}
    yield traces
    content = {"command": COMMAND, "common": COMMON, "traces": traces}
    FILE.write_text(json.dumps(content, indent=1) + "\n")


@pytest.mark.parametrize("name", CASES)
def test_a_trace_is_the_recorded_one(
    made: tuple[Paths, Teachers],
    recorded: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    name: str,
) -> None:
    found = trace(made, tmp_path / "work", CASES[name])
    if request.config.getoption("--record-golden"):
        recorded[name] = found
    expected = recorded[name]
    assert found.keys() == expected.keys()
    for part, values in expected.items():
        assert found[part] == pytest.approx(values, rel=RELATIVE), part


def test_every_row_and_objective_has_its_trace_and_no_two_are_alike(
    recorded: dict[str, Any],
) -> None:
    assert set(recorded) == set(CASES)
    assert len(METHOD_CASES) == len(METHODS) - 1, "merge has no training to trace"
    assert len(OBJECTIVE_CASES) == len(OBJECTIVES)
    plain = recorded["method danceopd"]
    same = [name for name, found in recorded.items() if found == plain]
    assert same == ["method danceopd"]
