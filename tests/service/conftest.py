"""One service for the tests of a file; its student is tiny, its server is real."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_service import Running, running, write_student

from danceflow.registry.open import open_folder
from danceflow.registry.student import Student
from danceflow.service.app import Service
from danceflow.service.limits import Limits
from danceflow.service.live import FolderSource
from danceflow.service.served import ServedLog

LIMITS = Limits(rows=6, steps=20, body=200_000, pixels=10_000, prompt=200, queue=24, body_s=5.0)


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("served") / "student")


@pytest.fixture(scope="session")
def student(student_folder: Path) -> Student:
    """The same student as the service's, asked without it."""
    return open_folder(student_folder, None, "cpu")


@pytest.fixture(scope="module")
def served(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = ServedLog(tmp_path_factory.mktemp("log"), 0.0)
    service = Service(FolderSource(student_folder, "cpu"), LIMITS, log)
    service.live.look()
    with running(service) as found:
        yield found
