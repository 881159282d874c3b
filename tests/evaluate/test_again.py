"""A package evaluated again gets the scores that its own evaluation gave."""

import pytest
from training_record import CAPABILITIES

from danceflow.errors import WeightsError
from danceflow.evaluate.again import open_again, score_again
from danceflow.evaluate.records import STANDARD, read_evaluation


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_same_package_gets_the_same_scores(reported, capability: str) -> None:
    params, paths = reported
    before = sorted(paths.root.rglob("*"))
    student = open_again(params, paths.student)
    found = score_again(params, paths, capability, paths.student, student)
    stored = read_evaluation(paths.evaluation(capability), capability)
    assert found.scale == stored.scale
    rows = [row for row in stored.fields["student"].rows if row.variant == STANDARD]
    assert [row.model_dump() for row in found.rows] == [row.model_dump() for row in rows]
    assert sorted(paths.root.rglob("*")) == before


def test_what_is_no_student_is_told(reported, tmp_path) -> None:
    params, _ = reported
    with pytest.raises(WeightsError, match="manifest"):
        open_again(params, tmp_path)
