"""Evaluations go to disk and back; anything else there is told with its place."""

import json
from pathlib import Path

import pytest

from danceflow.errors import DataError
from danceflow.evaluate.records import (
    Answer,
    Evaluation,
    FieldResult,
    read_evaluation,
    write_evaluation,
)


def result(score: float = 0.5) -> FieldResult:
    rows = tuple(
        Answer(uid=f"row {i}", category="colors", variant="standard", seed=0, score=score)
        for i in range(2)
    )
    return FieldResult(
        score=score,
        categories={"colors": score},
        variants={"standard": score},
        metrics={"fid_conv64": 1.5},
        field_gap={},
        rows=rows,
    )


def evaluation(**changes) -> Evaluation:
    content = {
        "capability": "t2i",
        "scale": 1.0,
        "teacher": "teacher:base",
        "num_steps": 4,
        "extractor": "conv64",
        "seconds": 2.5,
        "fields": {"student": result(), "start": result(0.1), "teacher:base": result(1.0)},
    }
    return Evaluation(**{**content, **changes})


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "t2i.json"
    write_evaluation(path, evaluation())
    assert read_evaluation(path, "t2i") == evaluation()


def test_files_are_json_with_an_answer_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t2i.json"
    write_evaluation(path, evaluation())
    text = path.read_text()
    content = json.loads(text)
    assert content["fields"]["student"]["score"] == 0.5
    assert sum('"uid"' in line for line in text.splitlines()) == 6
    assert "sc" not in content["fields"]["student"]["rows"][0]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t2i\.json: cannot be read: No such file.*evaluate@t2i"):
        read_evaluation(tmp_path / "t2i.json", "t2i")


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t2i.json"
    write_evaluation(path, evaluation())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t2i\.json: the file: Invalid JSON.*evaluate@t2i"):
        read_evaluation(path, "t2i")


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t2i.json"
    write_evaluation(path, evaluation())
    content = json.loads(path.read_text())
    del content["fields"]["student"]["rows"][1]["score"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"fields\.student\.rows\.1\.score: Field required"):
        read_evaluation(path, "t2i")


def test_missing_fields_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t2i.json"
    write_evaluation(path, evaluation(fields={"student": result()}))
    with pytest.raises(DataError, match="no scores of start, teacher:base"):
        read_evaluation(path, "t2i")


def test_another_capabilitys_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "local_edit.json"
    write_evaluation(path, evaluation())
    with pytest.raises(DataError, match="is about 't2i', not 'local_edit'"):
        read_evaluation(path, "local_edit")


def test_numbers_must_be_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        evaluation(seconds=float("nan"))
