import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from danceflow.errors import DataError
from danceflow.registry.promotion import Standing
from danceflow.report.gate import Check, Verdict
from flows.dvc_stage import Outcome, StageResult
from flows.promote import read_summary
from flows.result import MAX_PICTURE_BYTES, picture, result_table, sample_sheets

SUMMARY = {
    "capabilities": {
        "t2i": {
            "student": 0.756,
            "teacher": 0.84,
            "start": 0.1,
            "retention": 0.9,
            "retention_interval": [0.88, 0.93],
            "num_samples": 240,
        },
        "local_edit": {"student": 6.5, "teacher": None, "retention": None},
    }
}
STAGES = (
    StageResult("distill", Outcome.RAN, 350.24),
    StageResult("teachers", Outcome.FROZEN, 0.0),
)
PASSED = Verdict((Check("t2i", "retention", "pass", 0.9, 0.95, 0.91, 0.98, 240),), 0.95)
FAILED = Verdict((Check("t2i", "retention", "fail", 0.9, 0.8, 0.75, 0.85, 240),), 0.95)
UNKNOWN = Verdict(
    (
        Check("t2i", "regression", "unknown", 0.95, 0.96, 0.93, 0.99, 240, 700),
        Check("local_edit", "regression", "unknown", 0.95, note="the champion was evaluated so|so"),
    ),
    0.95,
    "version 2",
)


def test_the_table_shows_scores_and_stages():
    table = result_table(SUMMARY, STAGES, None)
    assert "| t2i | 0.756 | 0.84 | 0.1 | 90% (88% to 93%) | 240 |" in table
    assert "| local_edit | 6.5 | - | - | - |  |" in table
    assert "| distill | ran | 350.2 |" in table
    assert "| teachers | frozen | 0.0 |" in table
    assert "Not registered." in table


@pytest.mark.parametrize(
    ("standing", "text"),
    [
        (Standing(3, PASSED, True, False), "Version 3 passes the gate and is the champion."),
        (Standing(3, PASSED, False, False), "Version 3 passes the gate and is the challenger."),
        (Standing(3, PASSED, False, True), "challenger (it was rolled back once"),
        (Standing(3, FAILED, False, False), "does not pass the gate:\n\n- t2i: keeps 80.0%"),
        (
            Standing(3, PASSED, True, False),
            "| t2i | retention | 95.0% (between 91.0% and 98.0%) | 9",
        ),
        (Standing(3, PASSED, True, False), "one-sided; there was no champion."),
        (Standing(3, UNKNOWN, False, False), "not known with these 240 prompts; about 700 would"),
        (Standing(3, UNKNOWN, False, False), "one-sided; compared with version 2."),
        (Standing(3, UNKNOWN, False, False), "the champion was evaluated so\\|so"),
    ],
)
def test_the_table_says_how_the_student_stands(standing, text):
    assert text in result_table(SUMMARY, STAGES, standing)


def decode(uri: str) -> Image.Image:
    head, _, payload = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(payload)))


def test_sheets_are_stacked_into_one_picture(tmp_path):
    for name, colour in [("a", "red"), ("b", "blue")]:
        Image.new("RGB", (40, 10), colour).save(tmp_path / f"{name}.png")
    stacked = decode(picture([tmp_path / "a.png", tmp_path / "b.png"]))
    assert stacked.size == (40, 20)
    assert stacked.getpixel((5, 5)) == (255, 0, 0)
    assert stacked.getpixel((5, 15)) == (0, 0, 255)


def test_a_large_picture_is_made_to_fit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    uri = picture([tmp_path / "noise.png"])
    assert MAX_PICTURE_BYTES / 2 < len(uri) <= MAX_PICTURE_BYTES


def test_without_sheets_there_is_no_picture(tmp_path):
    assert picture([]) is None
    assert sample_sheets(tmp_path / "gone") == []


def test_one_sheet_per_capability(tmp_path):
    for name in ("t2i/b.png", "t2i/a.png", "edit/c.png", "edit/words.txt", "t2i.json"):
        path: Path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert sample_sheets(tmp_path) == [tmp_path / "edit" / "c.png", tmp_path / "t2i" / "a.png"]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"capabilities": []}'])
def test_an_unusable_summary_is_named(tmp_path, content):
    path = tmp_path / "summary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"summary\.json"):
        read_summary(path)
