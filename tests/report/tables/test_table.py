"""Tables: order, pairs of seeds, what must never be missing."""

import statistics

import pytest
from sweep_cells import CELLS, cell

from danceflow.errors import DataError
from danceflow.report.tables.table import differences, make_table


def test_variants_stand_in_the_order_of_what_was_trained() -> None:
    table = make_table("s", CELLS)
    assert [row.variant for row in table.rows] == ["better", "worse", "single"]
    assert table.rows[0].seeds == (0, 1, 2)
    assert table.capabilities == ("t2i", "edit")
    assert table.trained == {"edit"}


def test_runs_that_cannot_be_compared_are_told() -> None:
    with pytest.raises(DataError, match="sweep 's': no cell of it is finished"):
        make_table("s", [])
    other = cell("other", 0, 0.1, 0.1)
    scores = {k: v for k, v in other.scores.items() if "t2i" not in k}
    with pytest.raises(DataError, match="is about edit, others of the sweep about t2i, edit"):
        make_table("s", [*CELLS, other.model_copy(update={"scores": scores})])


def test_differences_are_taken_seed_by_seed() -> None:
    table = make_table("s", CELLS)
    found = differences(table, "worse")
    assert list(found) == ["better", "single"]
    edit, t2i = found["better"]["edit"], found["better"]["t2i"]
    assert (edit.num, edit.mean) == (2, pytest.approx((0.4 + 0.25) / 2))
    assert edit.half == pytest.approx(12.7062 * statistics.stdev([0.4, 0.25]) / 2**0.5, 1e-4)
    assert t2i.mean == pytest.approx(-0.7)
    assert found["better"]["trained"] == edit
    assert found["single"]["edit"].half is None
    with pytest.raises(DataError, match="has no variant 'c'; known: better, worse, single"):
        differences(table, "c")
