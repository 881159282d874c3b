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


@pytest.fixture(scope="session")
def several_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of random weights that edits up to three pictures, 16 x 16 pixels."""
    from tiny_models import awake
    from tiny_stock import flux2_pipeline

    from danceflow.models.bring import bring_teachers
    from danceflow.models.family import open_family
    from danceflow.models.package import FROZEN_FOLDER, save_package

    place = tmp_path_factory.mktemp("several-student")
    flux2_pipeline().save_pretrained(place / "stock")
    bring_teachers("flux2", place / "stock", {}, place / "teachers", edits=True)
    family = open_family("flux2", place / "teachers" / FROZEN_FOLDER).sized(16, 16)
    folder = place / "student"
    folder.mkdir()
    meta = {"num_steps": 2, "image_sizes": [family.image_size]}
    save_package(folder, family, awake(family, 5), meta)
    return folder


@pytest.fixture(scope="module")
def studio(scenes_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_studio(tmp_path_factory.mktemp("tree"), scenes_student) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with opened() as found:
        yield found
