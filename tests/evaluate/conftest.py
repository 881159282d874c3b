"""A tiny project with three capabilities, evaluated and reported once for all tests."""

import pytest
from tiny_models import awake
from tiny_project import small_data, write_project
from training_record import CAPABILITIES, write_metrics

from danceflow.data import prepare
from danceflow.data.buckets import read_bucket
from danceflow.evaluate import evaluate, report
from danceflow.evaluate.evaluator import Task, build_task
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.package import FROZEN_FOLDER, save_package
from danceflow.paths import Paths
from danceflow.schema import Params

Project = tuple[Params, Paths]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Data, random teachers and a random student, not evaluated yet."""
    root = tmp_path_factory.mktemp("evaluate") / "project"
    params, paths = write_project(root, small_data(CAPABILITIES)), Paths(root)
    prepare.run(params, paths)
    family = open_family(params.family.name, paths.teachers / FROZEN_FOLDER)
    paths.student.mkdir(parents=True)
    meta = {"image_sizes": [[32, 32]], "num_steps": 2, "num_updates": 60}
    meta["field_evaluations"] = {"rollout": 400, "training": 180}
    save_package(paths.student, family, awake(family, 9), meta)
    write_metrics(paths.distill_metrics)
    return params, paths


@pytest.fixture(scope="session")
def reported(prepared: Project) -> Project:
    """The same, evaluated and reported."""
    params, paths = prepared
    for capability in CAPABILITIES:
        evaluate.run(params, paths, capability)
    report.run(params, paths)
    return prepared


@pytest.fixture(scope="session")
def family(prepared: Project) -> ModelFamily:
    params, paths = prepared
    return open_family(params.family.name, paths.teachers / FROZEN_FOLDER)


@pytest.fixture(scope="session")
def tasks(prepared: Project, family: ModelFamily) -> dict[str, Task]:
    """Two rows of every category and one of every variant, by capability."""
    _, paths = prepared
    counts = {"standard": 2, "reworded": 1, "held_out_pair": 1}
    return {
        name: build_task(name, read_bucket(paths.bucket(name), "test"), family, counts)
        for name in CAPABILITIES
    }
