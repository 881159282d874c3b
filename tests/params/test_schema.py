"""The schemas that editors read: in step with the sections, and named by every file."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from repository import ROOT

from danceflow.params.read import override
from danceflow.params.schema import SCHEMAS, schema_text, write_schemas
from danceflow.params.yaml12 import read_yaml

FOLDER = ROOT / "docs" / "schema"
FILES = {
    "params.schema.json": [ROOT / "params.yaml", *sorted((ROOT / "recipes").rglob("*.yaml"))],
    "sweep.schema.json": sorted((ROOT / "sweeps").glob("*.yaml")),
}
CASES = [(name, path) for name, paths in FILES.items() for path in paths]


def validator(name: str) -> Any:
    schema = json.loads(schema_text(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_schema_is_that_of_the_sections(name: str, tmp_path: Path) -> None:
    """``danceflow schema`` writes them anew."""
    assert (FOLDER / name).read_text() == schema_text(name)
    assert [path.name for path in write_schemas(tmp_path)] == list(SCHEMAS)
    assert (tmp_path / name).read_text() == schema_text(name)


@pytest.mark.parametrize(
    ("name", "path"), CASES, ids=lambda item: str(item).removeprefix(f"{ROOT}/")
)
def test_a_file_names_its_schema_and_fits_it(name: str, path: Path) -> None:
    (found,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.M)
    assert (path.parent / found).resolve() == FOLDER / name
    validator(name).validate(read_yaml(path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run.device", "gpu"),
        ("distill.method", "dance"),
        ("distill.query", "lowest"),
        ("distill.num_queries", 0),
        ("distill.ema_decay", 1.0),
        ("evaluate.seeds", []),
        ("capabilities.t2i.weight", -1),
        ("gate.max_regression", "none"),
    ],
)
def test_a_wrong_value_does_not_fit(name: str, value: object) -> None:
    data = override(read_yaml(ROOT / "params.yaml"), {name: value})
    errors = list(validator("params.schema.json").iter_errors(data))
    assert [".".join(map(str, error.absolute_path)) for error in errors] == [name]


def test_an_unknown_key_does_not_fit() -> None:
    data = read_yaml(ROOT / "params.yaml")
    data["run"]["sede"] = 1
    data["capabilities"]["T2I"] = data["capabilities"]["t2i"]
    errors = list(validator("params.schema.json").iter_errors(data))
    assert sorted(next(iter(error.absolute_path)) for error in errors) == ["capabilities", "run"]
