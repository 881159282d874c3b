"""Tiles are cut where they were put; damaged ones are told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danceflow.errors import DataError
from danceflow.report.page.tiles import read_tiles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "t2i"
    place.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "tiles.png")
    rows = [
        {
            "kind": kind,
            "uid": kind,
            "category": "colors",
            "prompt": f"prompt {kind}",
            "scores": scores,
        }
        for kind, scores in (("standard", {"student": 1.0, "start": 0.0}), ("lost", {"start": 1.0}))
    ]
    columns = ["target", "student", "start"]
    (place / "tiles.json").write_text(json.dumps({"size": 8, "columns": columns, "rows": rows}))
    return place


def test_tiles_are_the_pictures_that_were_put_there(folder: Path) -> None:
    sheet = np.asarray(Image.open(folder / "tiles.png"))
    first, second = read_tiles(folder)
    assert list(first.pictures) == ["target", "student", "start"]
    assert list(second.pictures) == ["target", "start"]  # the student was not asked
    assert (np.asarray(first.pictures["student"]) == sheet[:8, 8:16]).all()
    assert (np.asarray(second.pictures["start"]) == sheet[8:, 16:]).all()
    assert (first.kind, first.prompt) == ("standard", "prompt standard")


def test_an_edit_tells_what_was_left_alone(folder: Path) -> None:
    sheet = Image.new("RGB", (32, 8), "navy")
    sheet.paste("red", (16, 0, 20, 8))  # half of the student's
    sheet.save(folder / "tiles.png")
    index = json.loads((folder / "tiles.json").read_text())
    index["rows"] = index["rows"][:1]
    index["columns"] = ["source", "target", "student", "start"]
    (folder / "tiles.json").write_text(json.dumps(index))
    (row,) = read_tiles(folder)
    assert row.kept == {"target": 1.0, "student": 0.5, "start": 1.0}
    drawn = np.asarray(row.pictures["difference"]).astype(int)
    assert (np.ptp(drawn[:, 4:], axis=2) == 0).all()  # kept: grey
    assert (drawn[:, :4, 0] > drawn[:, :4, 2] + 100).all()  # changed: red


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        lambda folder: (folder / "tiles.png").unlink(),
        lambda folder: truncate(folder / "tiles.json"),
        lambda folder: truncate(folder / "tiles.png"),
        lambda folder: Image.new("RGB", (8, 8)).save(folder / "tiles.png"),
        lambda folder: (folder / "tiles.json").write_text("{}"),
    ],
)
def test_damaged_pictures_are_told(folder: Path, damage) -> None:
    damage(folder)
    with pytest.raises(DataError, match="t2i: the pictures of this evaluation.*evaluate@t2i"):
        read_tiles(folder)
