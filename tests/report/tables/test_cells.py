"""What a cell came to, in its file and as a run's tags."""

from pathlib import Path

import pytest
from sweep_cells import cell

from danceflow.errors import DataError
from danceflow.report.tables.cells import from_tags, read_cell, tags_of, write_cell


def test_a_record_comes_back_from_its_file_and_from_its_tags(tmp_path: Path) -> None:
    record = cell("a", 0, 1 / 3, 0.1).model_copy(update={"finished": 1764000000.123456})
    write_cell(tmp_path / "cell.json", record)
    assert read_cell((tmp_path / "cell.json").read_text(), "file") == record
    assert from_tags(tags_of(record), record.scores, "run") == record
    with pytest.raises(DataError, match="file: sweep: Field required"):
        read_cell("{}", "file")
    with pytest.raises(DataError, match=r"run x: sweep\.seed"):
        from_tags({**tags_of(record), "sweep.seed": "one"}, {}, "run x")
