"""Params files are strict and complete, and what they hold stays as it is."""

import copy
from typing import Any

import pytest
from params_files import changed, refusal
from pydantic import ValidationError

from danceflow.params.read import parse_params


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("distill.method=danceop", "distill.method: unknown method 'danceop': did you mean 'danc"),
        ("distill.query=lo", "distill.query: unknown query 'lo': did you mean 'low'?"),
        ("distill.objective=msq", "distill.objective: unknown objective 'msq': did you mean 'mse'"),
        ("family.name=sd4", "family.name: unknown family 'sd4': did you mean 'sd3'?"),
        ("data.world=scens", "data.world: unknown world 'scens': did you mean 'scenes'?"),
        ("teachers.local.adapter_rank=0", "teachers.local.adapter_rank: should be greater"),
        ("distill.coupling=antithetik", "distill.coupling: unknown coupling 'antithetik': did you"),
        ("distill.warm_start=-1", "distill.warm_start: should be greater than or equal to 0"),
        ("distill.updates_per_rollout=0", "distill.updates_per_rollout: should be greater"),
        ("distill.loss_normalisation=1.0", "distill.loss_normalisation: should be less than 1"),
        ("distill.num_queries=0", "distill.num_queries: should be a number from 1, 'all' or null"),
        ("distill.num_queries=true", "distill.num_queries: should be a number from 1"),
        ("distill.student=adapter", "distill.student: unknown value 'adapter'"),
        ("run.seed=1.5", "run.seed: should be a valid integer, found 1.5"),
        ("run.seed='1'", 'run.seed: should be a valid integer, found "1"'),
        ("run.seed=-1", "run.seed: should be greater than or equal to 0, found -1"),
        ("run.device=gpu", "run.device: should match pattern"),
        ("run.dtype=float", "run.dtype: unknown value 'float': did you mean 'float32'?"),
        ("distill.learning_rate=.inf", 'distill.learning_rate: should be a valid number, found ".'),
        ("distill.ema_decay=1.0", "distill.ema_decay: should be less than 1, found 1.0"),
        ("evaluate.seeds=[]", "evaluate.seeds: should have at least 1 item"),
        ("capabilities={}", "capabilities: needs at least one entry"),
        ("run=[1]", "run: should be a mapping, found a list"),
        ("run=null", "run: should be a mapping, found nothing"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(
    data: dict[str, Any], assignment: str, message: str
) -> None:
    text = refusal(changed(data, assignment))
    assert text.startswith("params.yaml: ")
    assert message in text


def test_a_name_that_would_be_a_bad_path_is_refused(data: dict[str, Any]) -> None:
    other = copy.deepcopy(data)
    other["capabilities"]["../x"] = other["capabilities"]["t2i"]
    assert "capabilities.../x: should match pattern" in refusal(other)


def test_parameters_cannot_be_changed_later(data: dict[str, Any]) -> None:
    params = parse_params(data, "params.yaml")
    with pytest.raises(ValidationError):
        params.run.seed = 1  # type: ignore[misc]


def test_select_gives_sections_and_values(data: dict[str, Any]) -> None:
    params = parse_params(data, "params.yaml")
    selected = params.select(("cache", "capabilities.t2i.teacher"))
    assert selected == {"cache": data["cache"], "capabilities.t2i.teacher": "base"}
    with pytest.raises(KeyError):
        params.select(("cache.no",))
