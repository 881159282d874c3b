"""Decisions from constructed rows: what is certain, what is not, and how much more would tell."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import evidence_of, rows_of, scored

from danceflow.params.sections import GateParams
from danceflow.report.evidence import Evidence, Scored
from danceflow.report.gate import MIN_PROMPTS, Check, Rival, Verdict, verdict, write_verdict

HALF = [0.0, 1.0]


def policy(floor: dict[str, float] | None = None, **min_retention: float) -> GateParams:
    return GateParams(
        confidence=0.95,
        min_score=floor or {},
        min_retention=min_retention,
        max_regression=0.05,
        auto_promote=False,
    )


T2I = policy(t2i=0.9)


def of(*capabilities: str, **changes) -> Evidence:
    return Evidence(capabilities={name: scored(1.0, **changes) for name in capabilities})


def of_rows(rows) -> Evidence:
    item = scored(1.0)
    return Evidence(capabilities={"t2i": item.model_copy(update={"rows": tuple(rows)})})


def coins(right: int, prompts: int, teacher: float = 1.0) -> Evidence:
    """As many prompts of one category, some of them right, where the teacher always is."""
    return of_rows(rows_of([1.0] * right + [0.0] * (prompts - right), teacher, categories=1))


def only(answer: Verdict) -> Check:
    (check,) = answer.checks
    return check


def test_equal_rows_leave_no_doubt() -> None:
    check = only(verdict(evidence_of(0.9, 0.9), None, T2I))
    assert (check.decision, check.low, check.value, check.high) == ("pass", 0.9, 0.9, 0.9)
    check = only(verdict(evidence_of(0.899, 0.899), None, T2I))
    assert check.decision == "fail"
    assert str(check) == (
        "t2i: keeps 89.9% (between 89.9% and 89.9%), needs 90.0% of the teacher's score"
    )


def test_bounds_are_those_of_the_binomial_distribution() -> None:
    """With k of n right the share's standard error is sqrt(p (1 - p) / (n - 1))."""
    right, prompts = 190, 200
    check = only(verdict(coins(right, prompts), None, T2I))
    share = right / prompts
    reach = 1.645 * math.sqrt(share * (1 - share) / (prompts - 1))
    assert check.value == share
    assert check.low == pytest.approx(share - reach, abs=0.005)
    assert check.high == pytest.approx(share + reach, abs=0.005)
    assert check.decision == "pass"


@pytest.mark.parametrize(
    ("right", "prompts", "decision"),
    [(98, 100, "pass"), (92, 100, "unknown"), (88, 100, "unknown"), (80, 100, "fail")],
)
def test_what_the_interval_does_not_tell_is_unknown(right, prompts, decision) -> None:
    answer = verdict(coins(right, prompts), None, T2I)
    assert only(answer).decision == answer.decision == decision
    assert answer.passed is (decision == "pass")


def test_unknown_says_how_many_prompts_would_tell() -> None:
    """(z(.95) + z(.8))^2 p (1 - p) / (p - limit)^2, as of a test with 80 % power."""
    check = only(verdict(coins(93, 100), None, T2I))
    wanted = (1.645 + 0.842) ** 2 * 0.93 * 0.07 / 0.03**2
    assert check.decision == "unknown"
    assert check.needed == pytest.approx(wanted, rel=0.1)
    assert f"not known with these 100 prompts; about {check.needed} would tell" in str(check)
    more = only(verdict(coins(round(0.93 * check.needed), check.needed), None, T2I))
    assert more.decision == "pass"


def test_at_the_limit_no_number_of_prompts_is_likely_to_tell() -> None:
    check = only(verdict(coins(90, 100), None, T2I))
    assert (check.decision, check.needed) == ("unknown", None)
    assert "more are not likely to tell, as it lies at the limit" in str(check)


@pytest.mark.parametrize("prompts", [1, MIN_PROMPTS - 1])
def test_a_few_equal_scores_prove_nothing(prompts) -> None:
    check = only(verdict(of_rows(rows_of([1.0] * prompts, categories=1)), None, T2I))
    assert check.decision == "unknown"
    assert f"as {prompts} prompts are too few to tell" in str(check)


def test_a_category_of_one_prompt_proves_nothing() -> None:
    rows = [*rows_of([1.0] * 40, categories=1), ("odd", "odd", 0, 1.0, 1.0)]
    assert only(verdict(of_rows(rows), None, T2I)).decision == "unknown"


def test_noise_seeds_of_a_prompt_are_no_further_prompts() -> None:
    rows = rows_of([1.0] * 19 + [0.0] * 2, categories=1)
    again = [(c, uid, seed, s, t) for c, uid, _, s, t in rows for seed in range(50)]
    once, often = (only(verdict(of_rows(found), None, T2I)) for found in (rows, again))
    assert (often.low, often.high, often.num_rows) == (once.low, once.high, 21)


def test_pairing_takes_out_what_student_and_teacher_share() -> None:
    """The student keeps 95 % of the teacher on every prompt, easy or hard."""
    hard = [0.1, 0.9] * 20
    rows = [("c", f"{n}", 0, 0.95 * score, score) for n, score in enumerate(hard)]
    assert only(verdict(of_rows(rows), None, T2I)).decision == "pass"
    other = [("c", f"{n}", 0, 0.95 * hard[n - 1], score) for n, score in enumerate(hard)]
    assert only(verdict(of_rows(other), None, T2I)).decision == "unknown"


def test_a_floor_is_a_score_whatever_the_teacher_does() -> None:
    answer = verdict(evidence_of(0.5), None, policy({"t2i": 0.6}, t2i=0.9))
    assert [(check.kind, check.decision) for check in answer.checks] == [
        ("floor", "fail"),
        ("retention", "pass"),
    ]
    assert answer.reasons == ("t2i: scores 0.5 (between 0.5 and 0.5), needs 0.6",)
    assert verdict(evidence_of(0.6), None, policy({"t2i": 0.6}, t2i=0.9)).passed


def test_a_capability_that_was_not_evaluated_is_not_known() -> None:
    answer = verdict(of("t2i"), None, policy({"local": 1.0}, t2i=0.9, local=0.9))
    assert answer.decision == "unknown"
    assert answer.reasons[0] == "local: was not evaluated, needs 1"


def test_a_capability_without_a_limit_must_keep_everything() -> None:
    assert verdict(evidence_of(1.0), None, policy()).passed
    assert verdict(evidence_of(0.99, 0.99), None, policy()).decision == "fail"


def test_nothing_to_check_does_not_pass() -> None:
    answer = verdict(Evidence(capabilities={}), None, policy())
    assert answer.decision == "unknown"
    assert answer.reasons == ("there is no capability to check",)


@pytest.mark.parametrize("teacher", [None, 0.0])
def test_without_a_teacher_s_score_nothing_can_be_kept(teacher) -> None:
    check = only(verdict(of_rows(rows_of(1.0, teacher)), None, T2I))
    assert (check.decision, check.value) == ("unknown", None)


@pytest.mark.parametrize(("score", "decision"), [(0.951, "pass"), (0.949, "fail")])
def test_a_loss_against_the_champion_is_limited(score, decision) -> None:
    rival = Rival("version 1", evidence_of(1.0))
    answer = verdict(evidence_of(score), rival, T2I)
    assert answer.checks[-1].kind == "regression"
    assert answer.decision == decision
    assert answer.against == "version 1"


def test_every_capability_of_the_champion_counts_and_none_may_disappear() -> None:
    rival = Rival("version 1", of("t2i", "world"))
    answer = verdict(of("t2i"), rival, T2I)
    assert answer.decision == "fail"
    assert answer.reasons == (
        (
            "world: was not evaluated, and the champion (version 1) can do it, needs 95.0% of the "
            "champion's score"
        ),
    )
    worse = Evidence(capabilities={"t2i": scored(1.0), "world": scored(0.9, 0.9)})
    assert [
        check.decision for check in verdict(worse, rival, policy(t2i=0.9, world=0.9)).checks
    ] == [*("pass", "pass", "pass", "fail")]


@pytest.mark.parametrize(
    "change", [{"num_steps": 1}, {"seeds": [1]}, {"rows": "f" * 16}, {"code": "c1"}, {"judge": {}}]
)
def test_what_was_evaluated_otherwise_is_never_compared(change) -> None:
    rival = Rival("version 1", of("t2i", **change), trouble="its package is gone")
    answer = verdict(of("t2i"), rival, T2I)
    assert answer.decision == "unknown"
    assert answer.reasons[0].startswith(
        f"t2i: the champion (version 1) was evaluated otherwise ({next(iter(change))}): its package"
    )


def test_a_champion_of_whom_nothing_is_known_is_not_passed_over() -> None:
    rival = Rival("version 1", Evidence(capabilities={}), trouble="its run is gone")
    answer = verdict(of("t2i"), rival, T2I)
    assert answer.decision == "unknown"
    assert "nothing is known of the champion (version 1): its run is gone" in answer.reasons[0]


def test_a_student_evaluated_again_is_compared_by_that() -> None:
    rival = Rival("version 1", of("t2i", num_steps=8), candidate=of("t2i", num_steps=8))
    assert verdict(of("t2i"), rival, T2I).passed


def test_only_rows_in_common_are_compared() -> None:
    """The champion lacks two rows that the student got right and has one that it lacks."""
    ours = of_rows(rows_of([1.0] * 40))
    theirs = of_rows([*rows_of([1.0] * 38), ("c0", "new", 0, 1.0, 1.0)])
    check = verdict(ours, Rival("version 1", theirs), T2I).checks[-1]
    assert (check.decision, check.num_rows) == ("pass", 38)
    theirs = of_rows([*rows_of([1.0] * 38), ("extra", "new", 0, 1.0, 1.0)])
    check = verdict(ours, Rival("version 1", theirs), T2I).checks[-1]
    assert check.decision == "unknown"
    assert "has no row of extra in common" in str(check)


def test_a_champion_that_scores_nothing_has_nothing_to_lose() -> None:
    rival = Rival("version 1", of_rows(rows_of(0.0)))
    assert verdict(of("t2i"), rival, T2I).passed


def test_the_verdict_is_written_as_plain_json(tmp_path) -> None:
    answer = verdict(evidence_of(0.5, 0.5), Rival("version 7", of("t2i")), T2I)
    write_verdict(tmp_path / "reports" / "gate.json", answer)
    data = json.loads((tmp_path / "reports" / "gate.json").read_text())
    assert (data["passed"], data["decision"], data["against"]) == (False, "fail", "version 7")
    assert data["confidence"] == 0.95
    assert data["reasons"] == list(answer.reasons)
    assert data["checks"][0] == {
        "capability": "t2i",
        "kind": "retention",
        "decision": "fail",
        "passed": False,
        "value": 0.5,
        "low": 0.5,
        "high": 0.5,
        "limit": 0.9,
        "num_rows": 30,
        "needed": None,
        "sentence": str(answer.checks[0]),
    }


SCORES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])),
    min_size=2,
    max_size=60,
)


def random_scored(pairs: list[tuple[float, float]], shift: float = 0.0) -> Scored:
    rows = tuple(
        (f"c{place % 2}", f"{place}", 0, max(0.0, student - shift), teacher)
        for place, (student, teacher) in enumerate(pairs)
    )
    return scored(1.0).model_copy(update={"rows": rows})


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs=SCORES, limit=st.floats(0.1, 1.0))
def test_a_decision_is_what_its_bounds_say(pairs, limit) -> None:
    evidence = Evidence(capabilities={"t2i": random_scored(pairs)})
    check = only(verdict(evidence, None, policy(t2i=limit)))
    assert check == only(verdict(evidence, None, policy(t2i=limit)))
    if check.value is None:
        return
    if check.low is not None and check.high is not None and len(pairs) >= MIN_PROMPTS:
        assert check.low <= check.high
        if check.decision == "pass":
            assert check.low >= limit - 1e-6
        if check.decision == "fail":
            assert check.high < limit + 1e-6
        if check.decision == "unknown":
            assert check.low < limit <= check.high + 1e-6
    assert check.needed is None or check.needed > check.num_rows


@settings(max_examples=40, deadline=None, derandomize=True)
@given(pairs=SCORES, shift=st.floats(0.01, 0.5))
def test_a_worse_student_never_stands_better(pairs, shift) -> None:
    order = {"fail": 0, "unknown": 1, "pass": 2}
    found = [
        only(verdict(Evidence(capabilities={"t2i": random_scored(pairs, by)}), None, T2I))
        for by in (0.0, shift)
    ]
    assert order[found[1].decision] <= order[found[0].decision]


def test_more_confidence_never_decides_more() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        evidence = of_rows(rows_of([float(x) for x in generator.random(60) < 0.93], categories=1))
        decided = [
            only(verdict(evidence, None, T2I.model_copy(update={"confidence": level}))).decision
            for level in (0.6, 0.9, 0.99)
        ]
        known = [decision != "unknown" for decision in decided]
        assert known == sorted(known, reverse=True)
