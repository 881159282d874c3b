"""A real tiny student evaluated again in a process of its own, and the command that does it."""

import pytest

from danceflow.errors import StageError
from danceflow.evaluate.records import STANDARD, read_evaluation
from danceflow.report.evidence import read_identity
from flows.rescore import CheckoutEvaluation


def test_a_checkout_scores_a_package_as_its_stage_did(reported) -> None:
    params, paths = reported
    here = CheckoutEvaluation(paths.root, params)
    assert here.identities()["global_edit"] == read_identity(paths, "global_edit")
    before = sorted(paths.root.rglob("*"))
    found = here.evaluate(paths.student, ["global_edit"])
    assert sorted(paths.root.rglob("*")) == before
    assert found.keys() == {"global_edit"}
    scored = found["global_edit"]
    assert scored.identity == read_identity(paths, "global_edit")
    stored = read_evaluation(paths.evaluation("global_edit"), "global_edit")
    assert (scored.teacher, scored.scale) == (stored.teacher, stored.scale)
    assert [row[:4] for row in scored.rows] == [
        (row.category, row.uid, row.seed, row.score)
        for row in stored.fields["student"].rows
        if row.variant == STANDARD
    ]


def test_why_it_cannot_be_evaluated_is_told(reported, tmp_path) -> None:
    params, paths = reported
    with pytest.raises(StageError, match="the evaluation failed: .*there is no student|manifest"):
        CheckoutEvaluation(paths.root, params).evaluate(tmp_path / "gone", ["t2i"])
