"""What is held in memory, against the tensors that real trainings and caches hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import awake, small_sd3
from tiny_project import cached_project, small_params

from danceflow.capability import asked
from danceflow.data.cached_rows import ConditionCache
from danceflow.evaluate.asked import start_field
from danceflow.models.adapters.lora import merge_adapter
from danceflow.models.memory import Memory
from danceflow.models.package import load_package, save_package
from danceflow.models.quantised import Base
from danceflow.models.start import start_student
from danceflow.models.teachers import Teachers
from danceflow.paths import Paths
from danceflow.plan.architecture import architecture_of, published_architecture
from danceflow.plan.cost import Plan, plan_recipe, plan_training
from danceflow.plan.devices import device_of
from danceflow.plan.measure import measured
from danceflow.plan.memory import base_bytes, shares_base
from danceflow.plan.show import REFERENCE
from danceflow.train.optim import make_optimizer
from danceflow.train.state import Ema

CAPABILITIES = ("t2i", "local_edit")


def item(plan: Plan, start: str, part: str = "memory") -> float:
    [found] = [item.num_bytes for item in getattr(plan, part) if item.name.startswith(start)]
    return found


def names(plan: Plan, place: str) -> list[str]:
    return [item.name for item in plan.evaluate if item.place == place]


def held_by(network: torch.nn.Module) -> int:
    return num_bytes((*network.parameters(), *network.buffers()))


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
    backbone, trained = start_student(params.distill, teachers, 0, asked(params).start)
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
        prompts = [table[torch.arange(len(table))] for table in found.texts.values()]
        (group,) = found.groups
        tables = [group.target, group.teacher_samples, *([group.source] if group.source else [])]
        latents = [table[torch.arange(len(table))] for table in tables]
        held += num_bytes(prompts) * rows / found.index["num_prompts"] + num_bytes(latents)
    assert item(plan, "condition caches") == plan.held("disk") == pytest.approx(held)
    half = plan_recipe(small_params(CAPABILITIES, cache__dtype="bfloat16"))
    assert half.held("disk") == plan.held("disk") / 2
    assert half.held("main") == plan.held("main")


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


@pytest.mark.parametrize("init", ["base", "merge"])
def test_the_evaluations_parts_are_those_of_a_real_one(
    project: Paths, tmp_path: Path, init: str
) -> None:
    params = small_params(CAPABILITIES, distill__init=init)
    plan = plan_recipe(params)
    teachers = Teachers(project.teachers, "sd3", ["base", "local"], "cpu")
    save_package(tmp_path, teachers.family, awake(teachers.family), {})
    student = load_package(tmp_path).field.backbone
    own = [network for network in teachers.backbones.values() if network is not teachers.shared]
    assert item(plan, "whole teachers", "evaluate") == sum(map(held_by, own))
    assert item(plan, "student", "evaluate") == held_by(student)
    start = start_field(params, teachers).field.backbone
    if init == "merge":
        assert item(plan, "start", "evaluate") == held_by(start)
    else:
        assert start is teachers.backbones["base"]
        assert not [part for part in names(plan, "device") if part.startswith("start")]


def test_an_evaluated_average_of_adapters_is_one_more_adapter() -> None:
    one, several = h100_plan(), h100_plan(start=("base", "local", "global"))
    more = several.evaluate_held("device") - one.evaluate_held("device")
    assert more == item(several, "start", "evaluate") == item(one, "teachers' adapters")
    assert several.evaluate_held("main") == one.evaluate_held("main")
    apart = h100_plan(adapters={}, base=None, start=("base", "local"))
    assert item(apart, "start", "evaluate") == 4 * apart.network.parameters


def test_the_student_waits_while_teachers_are_evaluated() -> None:
    here, waiting, blocks = (
        h100_plan(offload=offload, rank=None) for offload in ("none", "teachers", "blocks")
    )
    whole, encoders = 4 * here.network.parameters, item(here, "to read encoders", "evaluate")
    assert waiting.evaluate_held("device") == here.evaluate_held("device")
    assert item(blocks, "of those that wait", "evaluate") < whole / 10
    assert {plan.evaluate_held("main") for plan in (here, waiting, blocks)} == {whole + encoders}
    assert here.peak("device") == max(here.held("device"), here.evaluate_held("device"))


def test_a_student_is_written_from_float16_in_main_memory(project: Paths) -> None:
    params = small_params(CAPABILITIES, distill__student="lora")
    plan = plan_recipe(params)
    teachers = Teachers(project.teachers, "sd3", ["base", "local"], "cpu")
    backbone, _ = start_student(params.distill, teachers, 0, asked(params).start)
    merged = merge_adapter(backbone, dtype=torch.float16)
    assert item(plan, "to write the student", "moments") == held_by(merged)
    # A LoRA student of teachers apart starts on a network of its own; on their base it needs none.
    assert item(plan, "to make the student's start", "moments") == 4 * held_by(merged)
    assert not h100_plan().moments


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_base_of_fewer_bits_is_as_large_as_a_real_one(tmp_path: Path, base: Base) -> None:
    family = small_sd3()
    family.save_backbone(awake(family), tmp_path)
    network = Memory(dtype="bfloat16", base=base).load(family, tmp_path, shared=True)
    held = 0
    for param in (*network.parameters(), *network.buffers()):
        state = getattr(param, "quant_state", None)
        if base == "int8" and hasattr(param, "qdata"):
            held += param.qdata.nbytes + param.scale.nbytes
        else:
            held += param.nbytes
        if state is not None:
            held += state.absmax.nbytes + state.state2.absmax.nbytes
    sizes = measured("sd3", awake(family), family.adapter_targets, edits=True)
    assert base_bytes(sizes, "bfloat16", base) == pytest.approx(held, rel=0.02)
    assert base_bytes(sizes, "bfloat16", "float") > held


def test_no_encoder_is_held_while_the_student_is_trained() -> None:
    plan = h100_plan()
    encoders = {part for part in plan.architecture.frozen if not part.startswith("vae")}
    assert encoders
    assert not encoders & {part.name for part in plan.memory}
    for stage in (plan.cache, plan.evaluate):
        assert encoders <= {part.name for part in stage}
