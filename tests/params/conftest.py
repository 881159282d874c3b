from typing import Any

import pytest
from repository import ROOT

from danceflow.params.yaml12 import read_yaml


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """What the repository's params file holds."""
    return read_yaml(ROOT / "params.yaml")
