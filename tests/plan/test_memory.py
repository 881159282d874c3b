"""What is held in memory, against the tensors that real trainings and caches hold."""

from dataclasses import replace

import pytest
import torch
from tiny_models import small_sd3
from tiny_project import cached_project, small_params

from danceflow.data.condition_cache import ConditionCache
from danceflow.models.package import Teachers
from danceflow.paths import Paths
from danceflow.plan.architecture import architecture_of, published_architecture
from danceflow.plan.cost import Plan, plan_recipe, plan_training
from danceflow.plan.devices import device_of
from danceflow.plan.memory import shares_base
from danceflow.plan.show import REFERENCE
from danceflow.train.optim import make_optimizer
from danceflow.train.start import start_student
from danceflow.train.state import Ema

CAPABILITIES = ("t2i", "local_edit")


def item(plan: Plan, start: str) -> float:
    [found] = [item.num_bytes for item in plan.memory if item.name.startswith(start)]
    return found


def num_bytes(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return cached_project(tmp_path_factory.mktemp("project"), CAPABILITIES)


@pytest.mark.parametrize("student", ["full", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_students_parts_are_those_of_a_real_one(
    project: Paths, student: str, optimizer: str
) -> None:
    changes = {"distill__student": student, "distill__optimizer": optimizer}
    params = small_params(CAPABILITIES, **changes)
    plan = plan_recipe(params)
    teachers = Teachers(project.teachers, "sd3", ["base", "local"], "cpu")
    backbone, trained = start_student(params.distill, teachers, seed=0)
    stepper = make_optimizer(optimizer, trained, 0.1, 0.0)
    for param in trained:
        param.grad = torch.zeros_like(param)
    stepper.step()
    states = [
        value
        for state in stepper.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    ]
    assert item(plan, "gradients") == num_bytes(p.grad for p in trained if p.grad is not None)
    assert item(plan, "states") == num_bytes(states)
    assert item(plan, "average") == num_bytes(Ema(backbone, 0.9).values.values())
    networks = [*teachers.backbones.values()]
    assert item(plan, "whole teachers") == num_bytes(
        tensor for network in networks for tensor in (*network.parameters(), *network.buffers())
    )
    held = num_bytes((*backbone.parameters(), *backbone.buffers()))
    if student == "full":
        assert item(plan, "student") == held
    else:
        assert item(plan, "frozen copy") + item(plan, "student's adapter") == held


def test_caches_are_as_large_as_the_real_ones(project: Paths) -> None:
    """Up to prompts that several rows share, which the plan counts once per row."""
    plan = plan_recipe(small_params(CAPABILITIES))
    held = 0
    for name in CAPABILITIES:
        found = ConditionCache(project.cache(name))
        rows = len(found)
        texts = num_bytes(t for t in found.texts.values()) * rows / found.index["num_prompts"]
        (group,) = found.groups
        latents = [group.target, group.teacher_samples]
        latents += [] if group.source is None else [group.source]
        held += texts + num_bytes(latents)
    assert item(plan, "condition caches") == pytest.approx(held)


def test_frozen_parts_of_the_recipes_own_family() -> None:
    params = small_params(CAPABILITIES)
    found = architecture_of(params)
    encoder = sum(
        p.numel() for _, e in small_sd3().prompts.clips for p in e.parameters()
    )  # the tests' own, smaller family: another number
    assert found.frozen["text_encoder"] > encoder
    assert not found.is_brought
    assert found.edits


def h100_plan(**changes) -> Plan:
    architecture = published_architecture("z-image-omni", edits=True)
    return plan_training(replace(REFERENCE, **changes), architecture, device_of("h100"))


def test_one_base_serves_adapters_and_student() -> None:
    plan = h100_plan()
    whole = 2 * plan.network.parameters
    assert shares_base(plan.training)
    assert item(plan, "shared base") == whole
    assert item(plan, "teachers' adapters") == 2 * item(plan, "student's adapter")
    assert not [i for i in plan.memory if i.name.startswith("frozen copy")]
    # Teachers and student as whole networks, as released code holds them: four in place of one.
    apart = h100_plan(adapters={}, base=None, rank=None)
    assert not shares_base(apart.training)
    assert item(apart, "whole teachers") == 3 * whole
    assert item(apart, "student") == 2 * whole  # float32


def test_offloaded_teachers_wait_in_main_memory() -> None:
    apart = {"adapters": {}, "base": "base", "start": ("base",)}
    here, waiting, blocks = (
        h100_plan(offload=offload, **apart) for offload in ("none", "teachers", "blocks")
    )
    whole = 2 * here.network.parameters
    assert here.held("device") - waiting.held("device") == whole
    assert waiting.held("main") - here.held("main") == 2 * whole
    assert blocks.held("device") < waiting.held("device")


def test_recomputing_trades_memory_for_operations() -> None:
    plan, kept = h100_plan(), h100_plan(recomputed=False)
    assert item(plan, "activations") < item(kept, "activations") / 5
    assert plan.update_seconds["training"] > kept.update_seconds["training"]
    assert plan.update_seconds["rollout"] == kept.update_seconds["rollout"]


def test_an_averaged_network_is_one_more() -> None:
    from danceflow.method import resolve_method

    more = h100_plan(method=resolve_method("danceopd", objective="dmd-ema"))
    assert item(more, "network of the averaged") == 2 * more.network.parameters + item(
        more, "student's adapter"
    )
