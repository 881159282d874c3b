"""Expected field evaluations against the ledger of real trainings."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_project import Blind, as_a_stage_runs, cached_project, small_params

from danceflow.data.cached_rows import ConditionCache
from danceflow.method import method_of
from danceflow.models.teachers import Teachers
from danceflow.ops.tracking.tracker import NoTracker
from danceflow.paths import Paths
from danceflow.plan.cost import Plan, plan_recipe
from danceflow.plan.training import (
    batches,
    evaluations,
    rollout_passes,
    rows_together,
    training_of,
    warm_up,
)
from danceflow.train.distill import trainer as distill
from danceflow.train.distill.budget import PARTS

CAPABILITIES = ("t2i", "local_edit")


@pytest.fixture(scope="module", autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    with as_a_stage_runs():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return cached_project(tmp_path_factory.mktemp("made"), CAPABILITIES)


@pytest.fixture(scope="module")
def teachers(made: Paths) -> Teachers:
    return Teachers(made.teachers, "sd3", ["base", "local"], "cpu")


def both(
    made: Paths, teachers: Teachers, work: Path, **changes
) -> tuple[dict[str, int], Counter[str], Plan]:
    """What a real training has spent, how often it called networks, and what was planned for it."""
    params = small_params(CAPABILITIES, **{f"distill__{k}": v for k, v in changes.items()})
    caches = {name: ConditionCache(made.cache(name)) for name in params.capabilities}
    work.mkdir(parents=True)
    trainer = distill.Trainer(
        params,
        method_of(params.distill),
        teachers,
        caches,
        work,
        NoTracker(),
        Blind(),  # type: ignore[arg-type]
    )
    calls: Counter[str] = Counter()

    def noted(is_student: bool) -> Any:
        def note(*_: object) -> None:
            trained = "training" if torch.is_grad_enabled() else "rollout"
            calls[trained if is_student else "teachers"] += 1

        return note

    hooks = [trainer.backbone.register_forward_pre_hook(noted(True))]
    hooks += [
        network.register_forward_pre_hook(noted(False)) for network in teachers.backbones.values()
    ]
    trainer.train()
    for hook in hooks:
        hook.remove()
    plan = plan_recipe(params)
    assert plan.num_updates == trainer.step
    return trainer.ledger.spent, calls, plan


def planned_calls(plan: Plan) -> dict[str, float]:
    """How often a training is planned to call networks."""
    each = {
        "rollout": rollout_passes(plan.training, plan.tokens),
        "training": sum(cost.passes for cost in plan.evaluations),
        "teachers": sum(sum(cost.teacher_passes.values()) for cost in plan.evaluations),
    }
    told = {part: plan.num_updates * count for part, count in each.items() if count}
    begun = warm_up(plan.training, plan.num_updates)  # the first updates have fewer states
    return {part: n if part == "rollout" else begun * n for part, n in told.items()}


EXACT = [
    {"method": "diffusionopd", "capabilities_per_update": "all"},
    {"method": "joint", "capabilities_per_update": "all"},
    {"method": "flowopd", "group_size": 2, "capabilities_per_update": "all"},
    {"method": "diffusionopd", "routing": "soft"},
    {"method": "merge"},
    {
        "method": "diffusionopd",
        "capabilities_per_update": "all",
        "num_updates": 50,
        "max_field_evaluations": 700,
    },
    {
        "method": "diffusionopd",
        "capabilities_per_update": "all",
        "num_updates": 5,
        "substeps": {"t2i": 3, "local_edit": 2},
        "substeps_from": 0.5,  # the last two of five
    },
    {
        "method": "diffusionopd",
        "capabilities_per_update": "all",
        "noised": {"t2i": 1.0, "local_edit": 0.4},
    },
]


@pytest.mark.parametrize("changes", EXACT, ids=str)
def test_what_is_not_drawn_is_planned_exactly(made, teachers, tmp_path, changes) -> None:
    spent, calls, plan = both(made, teachers, tmp_path / "work", **changes)
    assert plan.total == pytest.approx(spent)
    assert planned_calls(plan) == pytest.approx(calls)
    if changes["method"] != "merge":
        assert sum(spent.values()) > 0


DRAWN = [
    {},
    {"capabilities_per_update": "all", "num_queries": 2},
    {"updates_per_rollout": 2, "capabilities_per_update": "balanced"},
    {"objective": "dmd-ema", "query": "curriculum", "warm_start": 1},
    {"capabilities_per_update": "all", "noised": {"t2i": 0.5}},
]


@pytest.mark.parametrize("changes", DRAWN, ids=str)
def test_what_is_drawn_is_planned_up_to_chance(made, teachers, tmp_path, changes) -> None:
    """40 updates of 8 samples: depth and route are drawn, the trained states are not."""
    spent, calls, plan = both(
        made, teachers, tmp_path / "work", batch_size=8, num_updates=40, log_every=40, **changes
    )
    total = plan.total
    assert total["training"] == pytest.approx(spent["training"])
    assert total["average"] == pytest.approx(spent["average"])
    # The depth of 320 samples, of standard deviation 1 at most; the route of 40 updates.
    assert total["rollout"] == pytest.approx(spent["rollout"], abs=4 * 320**0.5)
    assert total["teachers"] == pytest.approx(spent["teachers"], abs=4 * 8 * 40**0.5 / 2)
    planned = planned_calls(plan)
    assert planned["rollout"] == pytest.approx(calls["rollout"], abs=4 * 40**0.5)
    assert planned["training"] == pytest.approx(calls["training"], abs=1)
    assert planned["teachers"] == pytest.approx(calls["teachers"], abs=1)
    assert sum(plan.per_update.values()) * 40 == pytest.approx(sum(spent.values()), rel=0.1)


def test_the_ledgers_parts_are_the_plans() -> None:
    training = training_of(small_params(CAPABILITIES), is_brought=False)
    assert all(tuple(cost.parts) == PARTS for cost in evaluations(training))


def test_the_largest_backward_pass_has_whole_samples() -> None:
    data = {"distill__batch_size": 600, "distill__num_queries": 3}
    training = training_of(small_params(CAPABILITIES, **data), is_brought=False)
    assert {rows_together(training, skill) for skill in training.skills} == {255}


def test_processes_share_out_batches_and_large_ones_are_split() -> None:
    data = {"distill__batch_size": 600, "distill__capabilities_per_update": "all"}
    training = training_of(small_params(CAPABILITIES, **data), is_brought=False)
    skill = training.skills[0]
    assert (batches(training, skill), rows_together(training, skill)) == (2, 256)
    assert batches(replace(training, num_processes=2), skill) == 2 / 2  # one of two has all of it
    assert batches(replace(training, num_processes=8), skill) == 4 / 8
    apart = replace(training, together=False, num_processes=8)
    assert batches(apart, skill) == skill.share


def test_rollouts_of_one_capability_are_joined_in_an_update() -> None:
    training = training_of(small_params(CAPABILITIES, distill__batch_size=512), is_brought=False)
    skill = replace(training.skills[0], share=0.5)
    method = replace(training.method, updates_per_rollout=2)
    apart = replace(training, together=False, method=method)
    # Both rollouts have it, one has, none has: two batches, one, none; drawn at random.
    assert batches(apart, skill) == pytest.approx(2 * 1 / 4 + 1 * 2 / 4)
    small = replace(apart, batch_size=64)
    assert batches(small, skill) == pytest.approx(1 - 1 / 4)
    # In turn by the golden ratio the next one is the same with a chance of 2 * .618 - 1.
    assert batches(replace(small, evenly=True), skill) == pytest.approx(1 - 0.236 / 2, abs=2e-3)
    assert batches(replace(small, together=True), skill) == 1


def test_a_starts_and_bases_names_are_those_of_the_recipe() -> None:
    data = {"distill__init": "local", "distill__student": "lora"}
    training = training_of(small_params(CAPABILITIES, **data), is_brought=True)
    assert (training.base, training.start) == ("base", ("local",))
    assert training.teachers == ("base", "local")
    assert [(s.name, s.cost, s.num_sources) for s in training.skills] == [
        ("t2i", 2, 0),
        ("local_edit", 1, 1),
    ]
