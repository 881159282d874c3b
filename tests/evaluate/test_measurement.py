"""Measurements: a value per row, and categories that count alike."""

import pytest

from danceflow.evaluate.measurement import by_rows, category_means, mean_of_categories


def test_categories_count_alike() -> None:
    rows = [("a", 1.0), ("a", 0.0), ("a", 0.5), ("b", 0.9)]
    assert category_means(rows) == {"a": 0.5, "b": 0.9}
    assert mean_of_categories(rows) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="nothing to take the mean of"):
        mean_of_categories([])


def test_a_measurement_has_a_value_per_row(tasks) -> None:
    task = tasks["global_edit"]
    with pytest.raises(ValueError, match="shorter"):
        by_rows(task, "score", [1.0])
