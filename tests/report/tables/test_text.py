"""What is read of a table: every capability, every number, what is certain in bold."""

import csv
import io

import pytest
from sweep_cells import CELLS, cell

from danceflow.report.tables.table import make_table
from danceflow.report.tables.text import csv_text, markdown


def test_cells_of_different_code_are_told() -> None:
    said = "The cells ran with 2 states of code and data; danceflow sweep"
    assert said not in markdown(make_table("s", CELLS))
    other = CELLS[0].model_copy(update={"code": "d"})
    assert said in markdown(make_table("s", [other, *CELLS[1:]]))


def test_the_text_shows_every_capability_category_and_wording() -> None:
    lines = markdown(make_table("s", CELLS), ["s-lost-s0"]).splitlines()
    assert "sorted by the mean over the trained capabilities" in lines[2]
    assert "Scored but not trained: t2i." in lines
    assert "Not finished: s-lost-s0." in lines
    assert "| variant | n | t2i (of 1) | edit (of 10) | updates | field evaluations |" in lines
    assert "| better | 3 | 0.200 ± 0.248 | 6.50 ± 1.24 | 9 | 1,234 |" in lines
    assert "| single | 1 | 0.500 | 1.00 | 9 | 1,234 |" in lines
    assert "| *own teachers* |  | 0.800 | 8.00 |  |  |" in lines
    assert "| *start* |  | differs | differs |  |  |" in lines
    for capability in ("t2i (of 1)", "edit (of 10)"):
        place = lines.index(f"## {capability}")
        heads = "| variant | n | overall | counting | *reworded* | gap closed, score |"
        assert lines[place + 2] == heads
    assert "| better | 3 | 6.50 ± 1.24 | 3.25 ± 0.62 | 1.62 ± 0.31 | 0.650 ± 0.124 |" in lines


def test_the_long_form_holds_every_number() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(make_table("s", CELLS)))))
    assert {row["field"] for row in rows} == {"student", "teacher", "start"}
    found = {
        (row["variant"], row["capability"], row["kind"], row["name"]): row
        for row in rows
        if row["field"] == "student"
    }
    assert len(found) == 3 * 2 * 4
    one = found["better", "edit", "overall", "overall"]
    assert (one["n"], one["mean"]) == ("3", "6.5")
    assert float(one["high"]) - 6.5 == pytest.approx(6.5 - float(one["low"]))
    assert found["single", "t2i", "variant", "reworded"]["low"] == ""


def test_differences_are_told_and_those_that_are_certain_are_bold() -> None:
    table = make_table("s", CELLS)
    lines = markdown(table, against="worse").splitlines()
    place = lines.index("## Difference to worse with the same seed")
    assert lines[place + 4] == "| variant | pairs | mean over trained | t2i | edit |"
    assert "| better | 2 | +32.5 ± 95.3 | -70.0 ± 127.1 | +32.5 ± 95.3 |" in lines
    sure = [cell(v, s, 0.5, e + s) for v, e in (("a", 1.0), ("b", 3.0)) for s in (0, 1)]
    sure.append(cell("b", 2, 0.5, 9.0))
    sure.append(cell("a", 2, 0.5, 6.9))
    lines = markdown(make_table("s", sure), against="a").splitlines()
    assert "| b | 3 | **+20.3 ± 1.4** | +0.0 ± 0.0 | **+20.3 ± 1.4** |" in lines
    rows = list(csv.DictReader(io.StringIO(csv_text(make_table("s", sure), "a"))))
    one = next(r for r in rows if r["field"] == "difference" and r["capability"] == "edit")
    assert (one["variant"], one["name"], one["n"]) == ("b", "to a", "3")
    assert float(one["mean"]) == pytest.approx(0.61 / 3, abs=1e-6)
