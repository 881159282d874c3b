"""What ``danceflow explain`` prints."""

import pytest
from repository import ROOT

from danceflow.explain import explanation
from danceflow.params.yaml12 import read_yaml


def test_a_parameter_is_told_with_its_value_here_and_the_stages_that_depend_on_it() -> None:
    lines = explanation("distill.query", read_yaml(ROOT / "params.yaml")).splitlines()
    assert lines[0] == "distill.query"
    assert [line.split("  ")[1] for line in lines[1:]] == ["meaning", "values", "here", "used in"]
    assert lines[3].endswith(" null")
    assert "the key of distill:" in lines[4]


def test_a_parameter_in_no_key_is_said_to_be_in_none() -> None:
    assert "no stage's key" in explanation("tracking.uri", None)


def test_outside_of_a_checkout_there_is_no_value_to_tell() -> None:
    assert "  here" not in explanation("distill.query", None)


@pytest.mark.parametrize("name", [None, "gate", "capabilities", "evaluate.judge.url"])
def test_it_fits_a_terminal(name: str | None) -> None:
    assert max(map(len, explanation(name, None).splitlines())) <= 100
