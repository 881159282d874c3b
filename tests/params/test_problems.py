"""Every problem is told once, all at once, in plain words."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from params_files import changed, refusal


def _rename(section: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place = data
        for part in filter(None, section.split(".")):
            place = place[part]
        place[new] = place.pop(old)

    return change


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("", "gate", "gat"),
        ("distill", "num_steps", "num_step"),
        ("family.transformer", "num_layers", "num_layer"),
        ("teachers.base", "init", "initt"),
        ("data.buckets.t2i", "num_train", "num_trains"),
    ],
)
def test_a_mistyped_key_is_one_problem_that_names_the_nearest(
    data: dict[str, Any], section: str, old: str, new: str
) -> None:
    other = copy.deepcopy(data)
    _rename(section, old, new)(other)
    text = refusal(other)
    dotted = ".".join(filter(None, [section, new]))
    assert text.startswith(
        f"params.yaml: {dotted}: unknown parameter {new!r}: did you mean {old!r}"
    )
    assert "\n" not in text


def test_a_missing_key_and_a_missing_section_are_told(data: dict[str, Any]) -> None:
    other = copy.deepcopy(data)
    del other["run"]
    del other["cache"]["num_steps"]
    text = refusal(other)
    assert "run: this section is missing: add `run: {seed: 0, device: cpu, " in text
    assert "cache.num_steps: is missing: add `num_steps: 16`" in text


def test_all_problems_are_told_together(data: dict[str, Any]) -> None:
    text = refusal(
        changed(data, "run.seed=x", "distill.num_queries=99", "capabilities.t2i.teacher=no")
    )
    assert text.startswith("params.yaml: 3 problems\n")
    assert all(place in text for place in ("run.seed", "distill.num_queries", "t2i.teacher"))
