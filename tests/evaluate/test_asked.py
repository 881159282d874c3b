"""Who is asked: the start as the training began with it, teachers with the guidance they have."""

import shutil
from pathlib import Path

import torch
from tiny_models import shake
from tiny_project import small_data
from training_record import CAPABILITIES

from danceflow.capability import asked
from danceflow.data.buckets import read_bucket
from danceflow.evaluate.asked import (
    fields_of,
    finite_images,
    start_field,
    survey_of,
    task_of,
    teacher_fields,
)
from danceflow.evaluate.result import once
from danceflow.fields import CountingField
from danceflow.models.adapters.lora import add_student_adapter, save_adapter
from danceflow.models.family import open_family
from danceflow.models.package import FROZEN_FOLDER, load_package, write_manifest
from danceflow.models.start import start_backbone
from danceflow.models.teachers import Teachers
from danceflow.params.read import parse_params


def test_the_start_is_what_the_training_began_with(reported) -> None:
    teachers = Teachers(reported[1].teachers, "sd3", ["base", "local", "global"], "cpu")
    z, sigma = torch.ones(1, 3, 32, 32), torch.ones(1)
    condition = teachers.family.condition(["a red circle"])

    def start(**changes) -> torch.Tensor:
        params = parse_params(small_data(CAPABILITIES, **changes), "test")
        return start_field(params, teachers)(z, sigma, condition)

    base = teachers.field("base", 1.0)(z, sigma, condition)
    merged = start(distill__init="merge")
    assert torch.equal(start(distill__init="base"), base)
    assert not torch.equal(merged, base)
    # A method that is nothing but its start has the same one whatever else is configured.
    assert torch.equal(start(distill__init="base", distill__method="merge"), merged)


def test_a_start_of_adapters_is_on_the_teachers_base(prepared, tmp_path: Path) -> None:
    _, paths = prepared
    place, names = tmp_path / "teachers", ["base", "local", "global"]
    family = open_family("sd3", paths.teachers / FROZEN_FOLDER)
    for name in (FROZEN_FOLDER, "base"):
        shutil.copytree(paths.teachers / name, place / name)
    for seed, name in enumerate(names[1:]):
        network = family.load_backbone(place / "base")
        shake(add_student_adapter(family, network, rank=2, alpha=4, seed=seed), seed)
        save_adapter(network, place / name)
    write_manifest(place, {"family": "sd3", "teachers": names, "base": "base"})
    z, sigma = torch.ones(1, 3, 32, 32), torch.ones(1)
    condition = family.condition(["a red circle"])
    for init in (*names, "merge"):
        teachers = Teachers(place, "sd3", names, "cpu")
        params = parse_params(small_data(CAPABILITIES, distill__init=init), "test")
        whole = family.field(start_backbone(teachers, asked(params).start).eval())
        field = start_field(params, teachers)
        assert field.field.backbone is teachers.shared
        with torch.no_grad():
            expected = whole(z, sigma, condition)
        found = field(z, sigma, condition)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if init != "merge":
            assert torch.equal(found, teachers.field(init, 1.0)(z, sigma, condition))


def test_a_teacher_keeps_the_guidance_of_its_capability(reported) -> None:
    params, paths = reported
    teachers = Teachers(paths.teachers, "sd3", ["base", "local", "global"], "cpu")
    for capability in CAPABILITIES:
        fields = teacher_fields(params, capability, teachers)
        assert list(fields) == ["teacher:base", "teacher:local", "teacher:global"]
        assert fields["teacher:base"].scale == params.capabilities["t2i"].guidance
        assert fields["teacher:local"].scale == params.capabilities["local_edit"].guidance


def test_only_who_the_gate_compares_is_asked_with_every_noise_seed(reported) -> None:
    paths = reported[1]
    seeded = parse_params(small_data(CAPABILITIES, evaluate__seeds=[3, 5]), "test")
    student = load_package(paths.student)
    teachers = Teachers(paths.teachers, "sd3", ["base", "local", "global"], "cpu")
    dataset = read_bucket(paths.bucket("local_edit"), "test")
    task = task_of(seeded, "local_edit", dataset, student.family)
    fields = fields_of(seeded, "local_edit", student, teachers)
    survey = survey_of(seeded, task, fields, ())
    asked_of = {
        name: {(task.rows[place].variant, task.rows[place].seed) for place in places}
        for name, places in survey.places.items()
    }
    every = {("standard", 3), ("standard", 5), ("reworded", 3), ("held_out_pair", 3)}
    assert asked_of["student"] == asked_of["teacher:local"] == every
    for name in ("start", "teacher:base", "teacher:global"):
        assert asked_of[name] == {("standard", 3)}
    assert once(task, "standard") == survey.places["start"]


def test_a_student_of_few_steps_is_held_against_teachers_in_their_own(reported) -> None:
    _, paths = reported
    steps = {name: 1 + place for place, name in enumerate(CAPABILITIES)}
    changes = {"evaluate__num_steps": steps, "evaluate__num_teacher_steps": 5}
    params = parse_params(small_data(CAPABILITIES, **changes), "test")
    teachers = Teachers(paths.teachers, "sd3", ["base", "local", "global"], "cpu")
    name = CAPABILITIES[1]
    dataset = read_bucket(paths.bucket(params.capabilities[name].bucket), "test")
    task = task_of(params, name, dataset, teachers.family).select([0])
    field = teachers.field("local", 1.0)
    for who, expected in (("student", 2), ("start", 2), ("teacher:local", 5)):
        counting = CountingField(field)
        finite_images(task, counting, params.evaluate, who)
        assert counting.num_evaluations == expected
    assert params.evaluate.model_copy(update={"num_teacher_steps": None}).teacher_steps(name) == 2
