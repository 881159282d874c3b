"""Intervals: closed forms, pairing, strata, and what has no interval."""

import numpy as np
import pytest

from danceflow.report.bootstrap import PairedScores, difference, interval, pair, ratio


def paired(*columns, categories: int = 1) -> PairedScores:
    table = np.array(columns, dtype=float).T
    parts = np.array_split(table, categories)
    names = tuple("abc"[: len(columns)])
    return PairedScores(names, {f"category {i}": part for i, part in enumerate(parts)})


def test_categories_count_alike() -> None:
    scores = PairedScores("a", {"many": np.ones((90, 1)), "few": np.zeros((10, 1))})
    assert scores.overall().tolist() == [0.5]
    assert scores.num_prompts == 100
    assert np.allclose(scores.resampled(50, 0), 0.5)


def test_the_spread_is_that_of_a_mean() -> None:
    n, p = 400, 0.3
    values = [float(i < p * n) for i in range(n)]
    replicates = paired(values).resampled(4000, 0)[:, 0]
    assert replicates.mean() == pytest.approx(p, abs=0.002)
    assert replicates.std() == pytest.approx((p * (1 - p) / n) ** 0.5, rel=0.05)
    low, high = interval(paired(values, values), difference(paired(values, values), "a", "b"), 100)
    assert (low, high) == (0.0, 0.0)
    scores = paired(values)
    low, high = interval(scores, lambda overall: overall[..., 0], 4000)
    half = 1.96 * (p * (1 - p) / n) ** 0.5
    assert (low, high) == (pytest.approx(p - half, abs=0.006), pytest.approx(p + half, abs=0.006))


def test_strata_take_their_difference_out_of_the_spread() -> None:
    values = [0.0] * 50 + [1.0] * 50
    assert paired(values, categories=2).resampled(200, 0).std() == 0.0
    assert paired(values, categories=1).resampled(200, 0).std() > 0.04


def test_pairing_takes_the_prompts_difficulty_out_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(1, 10, 60)
    together = paired(0.9 * hard, hard)
    assert interval(together, ratio(together, "a", "b"), 500) == (
        pytest.approx(0.9),
        pytest.approx(0.9),
    )
    apart = paired(0.9 * rng.permutation(hard), hard)
    low, high = interval(apart, ratio(apart, "a", "b"), 500)
    assert low < 0.88
    assert high > 0.92


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        teacher = rng.random(120) < 0.8
        student = np.where(rng.random(120) < 0.75, teacher, rng.random(120) < 0.6)
        truth = (0.75 * 0.8 + 0.25 * 0.6) / 0.8
        scores = paired(student, teacher)
        low, high = interval(scores, ratio(scores, "a", "b"), 300)
        covered += low <= truth <= high
    assert covered >= 180


def test_a_ratio_to_nothing_has_no_interval() -> None:
    scores = paired([1.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    assert interval(scores, ratio(scores, "a", "b"), 200) is None
    assert interval(scores, difference(scores, "a", "b"), 200) is not None


def test_draws_are_a_function_of_the_seed() -> None:
    scores = paired([0.1, 0.5, 0.9, 0.2])
    assert np.array_equal(scores.resampled(20, 3), scores.resampled(20, 3))
    assert not np.array_equal(scores.resampled(20, 3), scores.resampled(20, 4))


def test_answers_to_one_prompt_are_one_unit() -> None:
    rows = [("c", "one", 0, 1.0), ("c", "one", 1, 0.0), ("c", "two", 0, 1.0), ("c", "two", 1, 1.0)]
    scores = pair({"a": rows, "b": rows[::-1]})
    assert scores.categories["c"].tolist() == [[0.5, 0.5], [1.0, 1.0]]
    assert scores.num_prompts == 2


@pytest.mark.parametrize(
    "other",
    [[("c", "one", 0, 1.0)], [("c", "one", 0, 1.0), ("c", "two", 1, 1.0)], []],
)
def test_fields_that_were_asked_other_things_are_not_compared(other) -> None:
    rows = [("c", "one", 0, 1.0), ("c", "two", 0, 1.0)]
    with pytest.raises(ValueError, match="not asked the same"):
        pair({"a": rows, "b": other})
    with pytest.raises(ValueError, match="not asked the same"):
        pair({"a": other, "b": rows})
