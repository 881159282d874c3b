"""What is said of a parameter that an older file lacks is a line that makes the file whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from params_files import dump_yaml
from repository import ROOT

from danceflow.errors import ConfigError
from danceflow.params.defaults import DEFAULTS, defaults_of, line_to_add
from danceflow.params.read import load_params, parse_params
from danceflow.params.yaml12 import read_value, read_yaml


def test_the_committed_values_are_those_of_the_files() -> None:
    """``python -m danceflow.params.defaults`` writes them anew."""
    assert json.loads(DEFAULTS.read_text()) == defaults_of(ROOT)


def without_each(data: dict[str, Any], held: dict[str, Any] | None = None, prefix: str = "") -> Any:
    """Yield the file without each parameter and each section, and the name of what it lacks."""
    held = data if held is None else held
    for name, value in list(held.items()):
        place = f"{prefix}{name}"
        if prefix not in {"capabilities.", "teachers.", "data.buckets."}:
            del held[name]
            yield place, held
            held[name] = value
        if isinstance(value, dict):
            yield from without_each(data, value, f"{place}.")


def test_whatever_a_file_lacks_the_line_that_is_told_fills_in() -> None:
    data = read_yaml(ROOT / "params.yaml")
    count = 0
    for name, section in without_each(data):
        try:
            parse_params(data, "params.yaml")
        except ConfigError as error:
            told = str(error).splitlines()
        else:
            continue  # a name of the file's own, such as a word's weight
        problem = next(line for line in told if f"{name}: " in line)
        before = dict(section)
        section.update(read_value(problem.partition("add `")[2].rpartition("`")[0]))
        parse_params(data, "params.yaml")
        section.clear()
        section.update(before)
        count += 1
    assert count > 130


def test_an_old_file_is_told_which_line_to_add(tmp_path: Path) -> None:
    data = read_yaml(ROOT / "params.yaml")
    del data["run"]["base"]
    path = tmp_path / "params.yaml"
    path.write_text(dump_yaml(data))
    with pytest.raises(
        ConfigError, match=r"params\.yaml: run\.base: is missing: add `base: float`"
    ):
        load_params(path)


def test_what_has_no_default_is_explained() -> None:
    data = read_yaml(ROOT / "params.yaml")
    data["evaluate"]["judge"] = {"model": "m"}
    told = "evaluate.judge.url: is missing: `danceflow explain evaluate.judge.url` tells"
    with pytest.raises(ConfigError, match=told):
        parse_params(data, "params.yaml")
    assert line_to_add("another.file's") is None
