"""Params files are read, and changed by assignments."""

import copy
from pathlib import Path
from typing import Any

import pytest
from params_files import changed, refusal
from repository import ROOT

from danceflow.errors import ConfigError
from danceflow.params.read import load_params, read_assignments


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda p: p.name
)
def test_every_params_file_of_the_repository_loads(path: Path) -> None:
    params = load_params(path)
    assert list(params.capabilities) == list(params.gate.min_retention)


@pytest.mark.parametrize("value", [None, 3, ["run"]])
def test_a_file_without_sections_is_refused(value: Any) -> None:
    assert "should hold sections" in refusal(value)


def test_assignments_are_typed() -> None:
    values = read_assignments(["a.b=1e-4", "c=null", "d=[1, x]", "e=a=b"])
    assert values == {"a.b": 1e-4, "c": None, "d": [1, "x"], "e": "a=b"}


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a=[1"], ["a=1", "a=2"]])
def test_unreadable_assignments_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError):
        read_assignments(texts)


def test_override_leaves_the_data_alone(data: dict[str, Any]) -> None:
    before = copy.deepcopy(data)
    other = changed(data, "distill.num_steps=8")
    assert other["distill"]["num_steps"] == 8
    assert data == before


@pytest.mark.parametrize(
    ("assignment", "place"),
    [
        ("distil.num_steps=1", "distil: unknown parameter 'distil': did you mean 'distill'"),
        ("distill.num_step=1", "distill.num_step: unknown parameter"),
        ("run.seed.low=1", "run.seed.low: unknown parameter 'low'"),
    ],
)
def test_override_of_an_unknown_name_is_refused(
    data: dict[str, Any], assignment: str, place: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(data, assignment)
    assert place in str(caught.value)
