from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danceflow.ops import timings


def test_every_stage_is_kept_with_its_last_time(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert timings.read(scratch) == {}
    timings.record(scratch, "prepare", 3.14159)
    timings.record(scratch, "evaluate@t2i", 20)
    timings.record(scratch, "prepare", 2)
    assert timings.read(scratch) == {"prepare": 2.0, "evaluate@t2i": 20.0}


def test_stages_that_end_together_are_all_kept(tmp_path: Path) -> None:
    names = [f"evaluate@{i}" for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: timings.record(tmp_path, name, 1.0), names))
    assert sorted(timings.read(tmp_path)) == sorted(names)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "b"}', '{"a": null}'])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "timings.json").write_text(text)
    assert timings.read(tmp_path) == {}
    timings.record(tmp_path, "prepare", 1.0)
    assert timings.read(tmp_path) == {"prepare": 1.0}
