"""A mean and its t interval."""

import statistics

import pytest

from danceflow.report.tables.statistics import Estimate, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.70620), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)],
)
def test_quantiles_of_student(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=1e-5)


def test_an_estimate_is_a_mean_and_its_t_interval() -> None:
    found = Estimate.of([6.0, 6.5, 7.0])
    assert found.mean == 6.5
    assert found.half == pytest.approx(4.30265 * statistics.stdev([6.0, 6.5, 7.0]) / 3**0.5, 1e-4)
    assert Estimate.of([2.0]) == Estimate(2.0, None, 1)
    assert Estimate.of([1.0, 1.0]).half == 0.0
