"""A project that only needs its training."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_project import as_a_stage_runs, cached_project

from danceflow.models.teachers import Teachers
from danceflow.paths import Paths

CAPABILITIES = ("t2i", "local_edit")


@pytest.fixture(scope="module")
def as_a_stage() -> Iterator[None]:
    """Torch as a stage sets it up."""
    with as_a_stage_runs():
        yield


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The project, which no test changes."""
    with as_a_stage_runs():
        return cached_project(tmp_path_factory.mktemp("made"), CAPABILITIES)


@pytest.fixture(scope="module")
def teachers(made: Paths) -> Teachers:
    return Teachers(made.teachers, "sd3", ["base", "local"], "cpu")


@pytest.fixture
def project(made: Paths, tmp_path: Path) -> Paths:
    """A copy of the project."""
    shutil.copytree(made.root, tmp_path / "project")
    return Paths(tmp_path / "project")
