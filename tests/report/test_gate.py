import json

import pytest

from danceflow.params.sections import GateParams
from danceflow.report.gate import verdict, write_verdict


def policy(**min_retention: float) -> GateParams:
    return GateParams(min_retention=min_retention, max_regression=0.05, auto_promote=False)


BOTH = policy(t2i=0.9, local=0.9)


def summary(**retentions: float | None) -> dict:
    return {
        "capabilities": {
            name: {"student": None if value is None else 8 * value, "retention": value}
            for name, value in retentions.items()
        }
    }


def test_passes_when_every_capability_keeps_its_share():
    answer = verdict(summary(t2i=0.9, local=1.2), None, BOTH)
    assert answer.passed
    assert answer.reasons == ()
    assert len(answer.checks) == 2


def test_one_weak_capability_fails_and_is_named():
    answer = verdict(summary(t2i=0.95, local=0.899), None, BOTH)
    assert not answer.passed
    assert answer.reasons == ("local: keeps 89.9%, needs 90.0% of the teacher's score",)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, "0.99"])
def test_a_retention_that_is_no_number_fails(value):
    answer = verdict({"capabilities": {"t2i": {"retention": value}}}, None, policy(t2i=0.9))
    assert answer.reasons == ("t2i: has no retention, needs 90.0% of the teacher's score",)


def test_a_capability_that_was_not_measured_fails():
    assert verdict(summary(t2i=1.0), None, BOTH).reasons[0].startswith("local: has no retention")


def test_a_capability_without_a_limit_must_keep_everything():
    assert not verdict(summary(t2i=0.99), None, policy()).passed
    assert verdict(summary(t2i=1.0), None, policy()).passed


@pytest.mark.parametrize("empty", [{}, {"capabilities": {}}])
def test_nothing_to_check_does_not_pass(empty):
    answer = verdict(empty, None, policy())
    assert not answer.passed
    assert answer.reasons == ("there is no capability to check",)


@pytest.mark.parametrize(("score", "passed"), [(0.951, True), (0.949, False)])
def test_a_loss_against_the_champion_is_limited(score, passed):
    champion = summary(t2i=1.0, local=1.0)
    answer = verdict(summary(t2i=score, local=1.0), champion, BOTH)
    assert answer.passed is passed
    if not passed:
        assert answer.reasons == (
            "t2i: scores 7.592, needs 7.6, the champion's score less what may be lost",
        )


def test_the_champion_is_compared_by_score_not_by_retention():
    candidate = {"capabilities": {"t2i": {"student": 4.0, "retention": 1.0}}}
    champion = {"capabilities": {"t2i": {"student": 8.0, "retention": 0.9}}}
    assert not verdict(candidate, champion, policy(t2i=0.9)).passed


def test_a_capability_of_the_champion_may_not_disappear():
    answer = verdict(summary(t2i=1.0), summary(t2i=1.0, world=1.0), policy(t2i=0.9))
    assert answer.reasons[0].startswith("world: has no score")


def test_a_champion_without_a_score_binds_nothing():
    champion = {"capabilities": {"t2i": {"student": None}}}
    assert verdict(summary(t2i=1.0), champion, policy(t2i=0.9)).passed


def test_the_verdict_is_written_as_plain_json(tmp_path):
    answer = verdict(summary(t2i=0.5, local=1.0), summary(t2i=1.0), BOTH)
    write_verdict(tmp_path / "reports" / "gate.json", answer)
    data = json.loads((tmp_path / "reports" / "gate.json").read_text())
    assert data["passed"] is False
    assert data["reasons"] == list(answer.reasons)
    assert data["checks"][0] == {
        "capability": "t2i",
        "kind": "retention",
        "value": 0.5,
        "limit": 0.9,
        "passed": False,
    }
