"""The student starts as a teacher or as the weighted mean of all."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import PROMPTS, shake
from tiny_project import small_params, write_teachers

from danceflow.capability import asked
from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models.adapters import add_student_adapter, save_adapter
from danceflow.models.family import open_family
from danceflow.models.memory import Memory
from danceflow.models.package import FROZEN_FOLDER, Teachers, write_manifest
from danceflow.paths import Paths
from danceflow.train.start import start_backbone, start_student

CAPABILITIES = ("t2i", "local_edit")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    params, paths = small_params(CAPABILITIES), Paths(tmp_path_factory.mktemp("start"))
    paths.reports.mkdir()
    write_teachers(params, paths)
    return Teachers(paths.teachers, "sd3", list(params.teachers), "cpu")


def weights(teachers: Teachers, **changes) -> dict[str, torch.Tensor]:
    changes = {"init": "merge", **changes}
    params = small_params(CAPABILITIES, **{f"distill__{k}": v for k, v in changes.items()})
    return start_backbone(teachers, asked(params).start).state_dict()


def mean(teachers: Teachers, shares: dict[str, float]) -> dict[str, torch.Tensor]:
    states = {name: teachers.backbones[name].state_dict() for name in shares}
    names = next(iter(states.values()))
    return {k: sum(share * states[n][k] for n, share in shares.items()) for k in names}


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-6)


def test_a_teacher_gives_its_weights(teachers: Teachers) -> None:
    for name, backbone in teachers.backbones.items():
        assert_same(weights(teachers, init=name), backbone.state_dict())


def test_a_merge_is_the_mean_of_all(teachers: Teachers) -> None:
    assert_same(weights(teachers), mean(teachers, {"base": 0.5, "local": 0.5}))


def test_weights_of_a_merge_are_shares(teachers: Teachers) -> None:
    found = weights(teachers, merge_weights={"base": 3.0, "local": 1.0})
    assert_same(found, mean(teachers, {"base": 0.75, "local": 0.25}))
    alone = weights(teachers, merge_weights={"local": 2.0})
    assert_same(alone, teachers.backbones["local"].state_dict())


def test_a_method_may_fix_the_start(teachers: Teachers) -> None:
    found = weights(teachers, method="merge", init="local")
    assert_same(found, mean(teachers, {"base": 0.5, "local": 0.5}))


def test_the_student_is_a_network_of_its_own(teachers: Teachers) -> None:
    student = start_backbone(teachers, {"base": 1.0})
    before = {k: v.clone() for k, v in teachers.backbones["base"].state_dict().items()}
    with torch.no_grad():
        for param in student.parameters():
            param += 1
    assert_same(teachers.backbones["base"].state_dict(), before)
    assert all(param.requires_grad for param in student.parameters())


def test_a_start_is_made_in_main_memory(teachers: Teachers) -> None:
    """A whole student alone is then moved; networks on ``meta`` take no memory and no values."""
    elsewhere = copy.copy(teachers)
    elsewhere.memory = Memory("meta")
    params = small_params(CAPABILITIES, distill__init="merge")
    shares = asked(params).start
    found = start_backbone(elsewhere, shares)
    assert {value.device.type for value in found.state_dict().values()} == {"cpu"}
    student, trained = start_student(params.distill, elsewhere, 0, shares)
    assert {value.device.type for value in student.state_dict().values()} == {"meta"}
    assert {param.device.type for param in trained} == {"meta"}


def test_a_teacher_that_is_not_there_is_told(teachers: Teachers) -> None:
    with pytest.raises(WeightsError, match="globe"):
        start_backbone(teachers, {"globe": 1.0})
    with pytest.raises(WeightsError, match="do not fit"):
        start_backbone(teachers, {"base": 0.0})


@pytest.fixture
def shared(tmp_path: Path) -> Teachers:
    """A base, and a teacher that is an adapter on it."""
    params, paths = small_params(CAPABILITIES), Paths(tmp_path)
    paths.reports.mkdir()
    write_teachers(params, paths)
    family = open_family("sd3", paths.teachers / FROZEN_FOLDER)
    network = family.load_backbone(paths.teacher("base"))
    shake(add_student_adapter(family, network, rank=2, alpha=4, seed=0))
    shutil.rmtree(paths.teacher("local"))
    save_adapter(network, paths.teacher("local"))
    names = list(params.teachers)
    write_manifest(paths.teachers, {"family": "sd3", "teachers": names, "base": "base"})
    return Teachers(paths.teachers, "sd3", names, "cpu")


def started(teachers: Teachers, **changes):
    changes = {"student": "lora", "lora_rank": 4, **changes}
    params = small_params(CAPABILITIES, **{f"distill__{k}": v for k, v in changes.items()})
    backbone, trained = start_student(params.distill, teachers, 0, asked(params).start)
    trainable = {id(p) for p in backbone.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in trained}
    return backbone


@pytest.mark.parametrize("init", ["base", "local", "merge"])
def test_a_lora_student_is_one_more_adapter_on_the_teachers_base(shared, init: str) -> None:
    family = shared.family
    inputs = normal(family.latent_shape, [1]), torch.tensor([0.7]), family.condition(PROMPTS[:1])
    expected = family.new_backbone(0)
    shares = {"base": 1.0, "local": 1.0} if init == "merge" else {init: 1.0}
    expected.load_state_dict(shared.merged(shares))
    student = started(shared, init=init)
    assert student is shared.shared
    with torch.no_grad():
        found, right = family.field(student)(*inputs), family.field(expected.eval())(*inputs)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_other_students_are_networks_of_their_own(shared, teachers) -> None:
    assert started(shared, student="full", init="base") is not shared.shared
    alone = started(teachers, init="base")
    assert all(alone is not network for network in teachers.backbones.values())
