"""Which of two results of a cell counts."""

import time

from sweep_cells import cell

from flows.cells import ends_now, latest


def test_the_cell_that_was_run_last_counts_though_the_clock_was_set_back() -> None:
    ahead = cell("a", 0, 0.1, 0.1).model_copy(
        update={"cell": "s-old", "finished": time.time() + 3600}
    )
    again = ahead.model_copy(update={"cell": "s-new", "finished": ends_now([ahead])})
    assert latest({"s-new": again, "s-old": ahead}) == (again,)
    assert abs(ends_now([]) - time.time()) < 60
