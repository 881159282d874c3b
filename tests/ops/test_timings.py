import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danceflow.ops import timings
from danceflow.ops.timings import Cost, Meter

ONE, OTHER = Cost(3.1, 5.5, 2_000_000), Cost(20.0, 21.0, 3_000_000)


def test_every_stage_is_kept_with_its_last_cost(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    assert timings.read(scratch) == {}
    timings.record(scratch, "prepare", OTHER)
    timings.record(scratch, "evaluate@t2i", OTHER)
    timings.record(scratch, "prepare", ONE)
    assert timings.read(scratch) == {"prepare": ONE, "evaluate@t2i": OTHER}


def test_stages_that_end_together_are_all_kept(tmp_path: Path) -> None:
    names = [f"evaluate@{i}" for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: timings.record(tmp_path, name, ONE), names))
    assert sorted(timings.read(tmp_path)) == sorted(names)


def test_a_meter_counts_time_work_and_memory() -> None:
    meter = Meter()
    held = bytearray(50_000_000)
    held[::4096] = b"x" * len(held[::4096])
    start = time.process_time()
    while time.process_time() - start < 0.3:
        sum(range(1000))
    cost = meter.read()
    assert cost.seconds >= 0.3
    assert cost.processor_seconds >= 0.3
    assert cost.memory_bytes > len(held)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": "b"}', '{"a": null}', '{"a": 2.0}', '{"a": {"seconds": 1}}']
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "timings.json").write_text(text)
    assert timings.read(tmp_path) == {}
    timings.record(tmp_path, "prepare", ONE)
    assert timings.read(tmp_path) == {"prepare": ONE}
