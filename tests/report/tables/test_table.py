"""Tables: means, intervals, order, what must never be missing."""

import csv
import io
import statistics
from pathlib import Path

import pytest
from PIL import Image

from danceflow.errors import DataError
from danceflow.report.tables.cells import CellRecord, from_tags, read_cell, tags_of, write_cell
from danceflow.report.tables.table import (
    Estimate,
    csv_text,
    differences,
    make_table,
    markdown,
    t_quantile,
    write_table,
)


def cell(variant: str, seed: int, t2i: float, edit: float, **changes) -> CellRecord:
    scores = {"training/num_updates": 9.0, "training/field_evaluations": 1234.0}
    for name, scale, trained, score in (("t2i", 1.0, 0.0, t2i), ("edit", 10.0, 1.0, edit)):
        scores |= {
            f"scale/{name}": scale,
            f"trained/{name}": trained,
            f"student/{name}/overall/overall": score,
            f"student/{name}/category/counting": score / 2,
            f"student/{name}/variant/reworded": score / 4,
            f"student/{name}/gap_closed/score": score / scale,
            f"teacher/{name}/overall/overall": 0.8 * scale,
            f"start/{name}/overall/overall": seed / 10,
        }
    values = {"targets": "evaluate", "code": "c", "finished": 1.5, "scores": scores}
    name = f"s-{variant}-s{seed}"
    return CellRecord(sweep="s", cell=name, variant=variant, seed=seed, **values, **changes)


CELLS = [
    cell("worse", 0, 0.9, 2.0),
    cell("worse", 1, 0.9, 4.0),
    cell("better", 1, 0.1, 6.5),
    cell("better", 0, 0.3, 6.0),
    cell("better", 2, 0.2, 7.0),
    cell("single", 0, 0.5, 1.0),
]


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


def test_cells_of_different_code_are_told() -> None:
    said = "The cells ran with 2 states of code and data; danceflow sweep"
    assert said not in markdown(make_table("s", CELLS))
    other = CELLS[0].model_copy(update={"code": "d"})
    assert said in markdown(make_table("s", [other, *CELLS[1:]]))


def test_variants_stand_in_the_order_of_what_was_trained() -> None:
    table = make_table("s", CELLS)
    assert [row.variant for row in table.rows] == ["better", "worse", "single"]
    assert table.rows[0].seeds == (0, 1, 2)
    assert table.capabilities == ("t2i", "edit")
    assert table.trained == {"edit"}


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
    with pytest.raises(DataError, match="has no variant 'c'; known: b, a"):
        differences(make_table("s", sure), "c")


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write_table(tmp_path / "new", make_table("s", CELLS))
    assert [path.name for path in paths] == ["s.md", "s.csv", "s.png"]
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
        assert (0x1F, 0x5F, 0xA8) in colours


def test_runs_that_cannot_be_compared_are_told() -> None:
    with pytest.raises(DataError, match="sweep 's': no cell of it is finished"):
        make_table("s", [])
    other = cell("other", 0, 0.1, 0.1)
    scores = {k: v for k, v in other.scores.items() if "t2i" not in k}
    with pytest.raises(DataError, match="is about edit, others of the sweep about t2i, edit"):
        make_table("s", [*CELLS, other.model_copy(update={"scores": scores})])


def test_a_record_comes_back_from_its_file_and_from_its_tags(tmp_path: Path) -> None:
    record = cell("a", 0, 1 / 3, 0.1).model_copy(update={"finished": 1764000000.123456})
    write_cell(tmp_path / "cell.json", record)
    assert read_cell((tmp_path / "cell.json").read_text(), "file") == record
    assert from_tags(tags_of(record), record.scores, "run") == record
    with pytest.raises(DataError, match="file: sweep: Field required"):
        read_cell("{}", "file")
    with pytest.raises(DataError, match=r"run x: sweep\.seed"):
        from_tags({**tags_of(record), "sweep.seed": "one"}, {}, "run x")
