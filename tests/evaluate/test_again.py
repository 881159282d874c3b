"""A package evaluated again gets the scores that its own evaluation gave."""

import pytest
from tiny_project import small_data
from training_record import CAPABILITIES

from danceflow.errors import WeightsError
from danceflow.evaluate.again import score_again
from danceflow.evaluate.records import STANDARD, read_evaluation
from danceflow.params.read import parse_params


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_same_package_gets_the_same_scores(reported, capability: str) -> None:
    params, paths = reported
    before = sorted(paths.root.rglob("*"))
    found = score_again(params, paths, capability, paths.student)
    stored = read_evaluation(paths.evaluation(capability), capability)
    assert found.scale == stored.scale
    rows = [row for row in stored.fields["student"].rows if row.variant == STANDARD]
    assert [row.model_dump() for row in found.rows] == [row.model_dump() for row in rows]
    assert sorted(paths.root.rglob("*")) == before


def test_other_steps_are_another_score(reported) -> None:
    params, paths = reported
    other = parse_params(small_data(CAPABILITIES, evaluate__num_steps=1), "test")
    one, two = (score_again(p, paths, "local_edit", paths.student) for p in (params, other))
    assert [row.uid for row in one.rows] == [row.uid for row in two.rows]
    assert [row.score for row in one.rows] != [row.score for row in two.rows]


def test_what_is_no_student_is_told(reported, tmp_path) -> None:
    params, paths = reported
    with pytest.raises(WeightsError, match="manifest"):
        score_again(params, paths, "t2i", tmp_path)
