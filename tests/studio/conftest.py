"""One student and one browser for the tests of the studio."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import browser as opened
from studio_server import Running, running_studio, write_scenes_student

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def scenes_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes_student(tmp_path_factory.mktemp("studio-student") / "student")


@pytest.fixture(scope="module")
def studio(scenes_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_studio(tmp_path_factory.mktemp("tree"), scenes_student) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with opened() as found:
        yield found
