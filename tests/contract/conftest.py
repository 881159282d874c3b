from pathlib import Path

import pytest
from tiny_models import TINY_FAMILIES

from danceflow.models.family import ModelFamily

CASES = [(name, shape) for name, shapes in TINY_FAMILIES.items() for shape in shapes]


@pytest.fixture(scope="session", params=CASES, ids=lambda case: "-".join(case))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFamily:
    name, shape = request.param
    folder: Path = tmp_path_factory.mktemp(f"{name}-{shape}")
    return TINY_FAMILIES[name][shape](folder)
