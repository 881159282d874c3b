"""Retention by the number of steps, against figures worked out by hand."""

import pytest
from scored import evidence_of

from danceflow.evaluate.by_steps import BySteps, FieldBySteps
from danceflow.registry.card import steps_table
from danceflow.report.evidence import Evidence
from danceflow.report.steps import numbers_by_steps, retention_by_steps

ROWS = (("one", "a"), ("one", "b"), ("two", "c"))


def field(own: int, cost: int, **scores) -> FieldBySteps:
    found = {int(name.removeprefix("in_")): values for name, values in scores.items()}
    return FieldBySteps(own_steps=own, passes_per_step=cost, scores=found)


def by_steps(student: FieldBySteps, teacher: FieldBySteps) -> BySteps:
    return BySteps(capability="t2i", seed=0, rows=ROWS, student=student, teacher=teacher)


FOUND = by_steps(
    field(4, 1, in_8=(0.8, 0.4, 0.4), in_4=(0.6, 0.2, 0.4)),
    field(16, 2, in_16=(1.0, 1.0, 0.6), in_8=(0.5, 0.5, 0.3)),
)


def test_every_category_counts_alike_and_the_teacher_s_own_steps_are_the_measure() -> None:
    found = retention_by_steps(FOUND, 50)
    assert (found["student_steps"], found["teacher_steps"]) == (4, 16)
    assert found["num_samples"] == 3
    most, eight, four = found["rows"]
    assert most == {
        "steps": 16,
        "student": None,
        "teacher": {"score": 0.8, "share": 1.0, "passes": 32},
    }
    interval = eight["student"].pop("interval")
    assert eight["student"] == {"score": 0.5, "share": 0.625, "passes": 8}
    assert eight["teacher"] == {"score": 0.4, "share": 0.5, "passes": 16}
    assert interval[0] == pytest.approx(0.5)  # of category one the worst prompt alone
    assert interval[1] == pytest.approx(0.75)
    assert four["student"]["score"] == 0.4
    assert (four["student"]["passes"], four["teacher"]) == (4, None)


def test_a_teacher_that_scores_nothing_leaves_shares_open() -> None:
    nothing = (0.0, 0.0, 0.0)
    zero = by_steps(field(4, 1, in_4=nothing), field(4, 1, in_4=nothing))
    (row,) = retention_by_steps(zero, 20)["rows"]
    assert row["student"] == {"score": 0.0, "share": None, "passes": 4, "interval": None}


def test_numbers_have_names_that_say_the_steps() -> None:
    steps = {"t2i": retention_by_steps(FOUND, 20)}
    assert numbers_by_steps(steps) == {
        "t2i/teacher_score_in_16_steps": 0.8,
        "t2i/score_in_8_steps": 0.5,
        "t2i/retention_in_8_steps": 0.625,
        "t2i/teacher_score_in_8_steps": 0.4,
        "t2i/score_in_4_steps": 0.4,
        "t2i/retention_in_4_steps": 0.5,
    }
    alone = by_steps(field(4, 1, in_4=(1.0, 1.0, 1.0)), field(4, 1, in_4=(1.0, 1.0, 1.0)))
    assert numbers_by_steps({"t2i": retention_by_steps(alone, 20)}) == {}


def test_a_card_tells_what_is_kept_in_few_steps() -> None:
    evidence = Evidence(capabilities={}, steps={"t2i": retention_by_steps(FOUND, 20)})
    assert "| capability | 8 | 4 |\n|---|---|---|\n| t2i | 62% (0.5) | **50% (0.4)** |" in (
        steps_table(Evidence.read(evidence.as_text(), "test"))
    )
    assert steps_table(evidence_of(0.5)) == ""
