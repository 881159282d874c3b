"""Digits: facts that name no digit are a bad row of a digit to make, and of nothing else."""

from pathlib import Path

import pytest
from user_rows import picture, row_data

from danceflow.data.intake.reader import BadRow, CheckedRow, RowReader
from danceflow.data.intake.sources import RawRecord
from danceflow.params.read import parse_params
from danceflow.pictures import png_bytes
from danceflow.worlds.world import open_world


def read(world: str, folder: Path, facts: str, *, edit: bool = False) -> object:
    columns = {"prompt": "text", "target": "after", "task": "kind", "spec": "facts"}
    columns |= {"source": "before"}
    data = row_data(columns=columns)
    data["data"]["world"] = world
    section = parse_params(data, "test").data
    cells = {"text": "a three", "kind": "object_swap" if edit else "make", "facts": facts}
    cells |= {"after": png_bytes(picture(1))}
    cells |= {"before": png_bytes(picture(2))} if edit else {}
    reader = RowReader(section, folder, open_world(world).trouble)
    return reader.read(RawRecord("t: row 1", 0, cells))


@pytest.mark.parametrize("facts", ["", "{}", '{"digit": 10}', '{"digit": "3"}', '{"digit": [1]}'])
def test_a_digit_to_make_must_be_told(tmp_path: Path, facts: str) -> None:
    found = read("digits", tmp_path, facts)
    assert isinstance(found, BadRow)
    assert (found.field, found.reason) == ("facts", "has no digit from 0 to 9")
    assert isinstance(read("digits", tmp_path, facts, edit=True), CheckedRow)
    assert isinstance(read("rows", tmp_path, facts), CheckedRow)


def test_a_digit_that_is_told_is_a_row(tmp_path: Path) -> None:
    assert isinstance(read("digits", tmp_path, '{"digit": 3}'), CheckedRow)
