"""What Prefect's page offers of a flow's parameters, and what its server refuses."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from repository import ROOT

from danceflow.params.yaml12 import read_yaml
from flows.parameters import override_schema
from flows.pipeline import run_pipeline
from flows.sweep import run_sweep

FILES = ["params.yaml", *(str(p.relative_to(ROOT)) for p in (ROOT / "recipes").glob("**/*.yaml"))]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")


def properties(flow: Any) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = flow.parameters.model_dump()["properties"]
    return schema


def test_every_value_of_every_params_file_may_be_given() -> None:
    check = jsonschema.Draft202012Validator(override_schema())
    for file in FILES:
        values = {k: v for k, v in leaves(read_yaml(ROOT / file)) if not isinstance(v, Mapping)}
        assert len(values) > 50
        assert [error.message for error in check.iter_errors(values)] == [], file


@pytest.mark.parametrize(
    "value",
    [
        {"distill.num_stepz": 3},
        {"distill": {}},
        {"distill.num_updates": 0},
        {"distill.num_updates": "many"},
        {"distill.method": "dance"},
        {"capabilities.t2i.guidance": -1},
        {"capabilities.t2i.guidence": 1},
        {"gate.min_retention.t2i": "high"},
    ],
)
def test_a_name_or_value_that_cannot_be_right_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, properties(run_pipeline)["overrides"])


def test_the_form_says_what_each_parameter_is() -> None:
    for flow in (run_pipeline, run_sweep):
        for name, schema in properties(flow).items():
            assert schema["title"] == name
            assert schema["description"]
    shown = override_schema()["properties"]
    assert all(schema["title"] == name for name, schema in shown.items())
    assert "danceopd" in shown["distill.method"]["enum"]
    assert "number" in json.dumps(shown["distill.learning_rate"])


@pytest.mark.parametrize(
    ("flow", "name", "value"),
    [
        (run_pipeline, "max_parallel", 0),
        (run_pipeline, "stage_timeout_s", 0),
        (run_pipeline, "name", "two words"),
        (run_pipeline, "recipe", "recipes/smoke"),
        (run_sweep, "file", "sweeps/guidance.csv"),
        (run_sweep, "parallel", -1),
        (run_sweep, "cell_timeout_s", "long"),
    ],
)
def test_other_parameters_are_checked_too(flow: Any, name: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, properties(flow)[name])


def test_examples_are_files() -> None:
    for flow, name in ((run_pipeline, "recipe"), (run_sweep, "file")):
        text = json.dumps(properties(flow)[name])
        (example,) = json.loads(text[text.index("[", text.index("examples")) : text.index("]") + 1])
        assert Path(ROOT / example).is_file()
