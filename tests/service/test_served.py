"""Samples of what was asked: opt-in, bounded, whole lines, for their owner alone."""

import logging
import stat
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from little_room import little_room

from danceflow.errors import DataError, UsageError
from danceflow.service import served
from danceflow.service.served import ServedLog, ServedRow, read_served, served_files


def row(number: int, prompt: str = "a red circle") -> ServedRow:
    time = f"2026-01-01T00:00:{number:02d}.000000+00:00"
    return ServedRow(time, 3, "d" * 64, prompt, False, 8, 1.0, 0.5)


def test_nothing_is_kept_unless_asked_for(tmp_path) -> None:
    log = ServedLog(tmp_path / "served", 0.0)
    assert not any(log.wants() for _ in range(1000))
    assert not (tmp_path / "served").exists()
    assert list(read_served(tmp_path / "served")) == []


def test_the_rate_is_the_share_that_is_kept(tmp_path) -> None:
    log = ServedLog(tmp_path, 0.25)
    assert 350 < sum(log.wants() for _ in range(2000)) < 650
    assert all(ServedLog(tmp_path, 1.0).wants() for _ in range(100))


def test_what_is_written_is_read_again(tmp_path) -> None:
    rows = [row(1), row(2, 'ünïcode\n"quoted" \u2028 <script>'), row(3)]
    rows[2] = replace(rows[2], is_edit=True, source="cG5n", further=("cG5n", "Z2lm"))
    log = ServedLog(tmp_path, 1.0)
    log.write(rows[:2])
    log.write(rows[2:])
    assert list(read_served(tmp_path)) == rows
    assert list(read_served(tmp_path, since=rows[0].time)) == rows[1:]
    (file,) = served_files(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_files_are_rotated_and_the_oldest_removed(tmp_path) -> None:
    log = ServedLog(tmp_path, 1.0, max_file=1000, max_bytes=3000)
    for number in range(60):
        log.write([row(number)])
    files = served_files(tmp_path)
    assert 2 <= len(files) <= 4
    assert sum(file.stat().st_size for file in files) <= 3000 + 400
    kept = [item.time for item in read_served(tmp_path)]
    assert kept == [row(number).time for number in range(60 - len(kept), 60)]


def test_a_clock_that_is_set_back_loses_no_new_sample(tmp_path, monkeypatch) -> None:
    class Yesterday(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) - timedelta(days=1)

    log = ServedLog(tmp_path, 1.0, max_file=1000, max_bytes=3000)
    for number in range(30):
        log.write([row(number)])
    monkeypatch.setattr(served, "datetime", Yesterday)
    for one in (log, ServedLog(tmp_path, 1.0, max_file=1000, max_bytes=3000)):
        for number in range(30, 60):
            one.write([row(number)])
        kept = [item.time for item in read_served(tmp_path)]
        assert kept == [row(number).time for number in range(60 - len(kept), 60)]


def test_two_services_may_write_to_one_folder(tmp_path) -> None:
    one, two = ServedLog(tmp_path, 1.0), ServedLog(tmp_path, 1.0)
    for number in range(10):
        (one if number % 2 else two).write([row(number)])
    assert len(served_files(tmp_path)) == 2
    assert {item.time for item in read_served(tmp_path)} == {row(n).time for n in range(10)}


def test_a_full_disk_leaves_whole_lines_and_samples_come_back_with_the_room(
    tmp_path, caplog
) -> None:
    log = ServedLog(tmp_path, 1.0)
    log.write([row(1)])
    (file,) = served_files(tmp_path)
    with little_room(file.stat().st_size + 20):
        log.write([row(2)])
        log.write([row(3)])
    assert caplog.text.count("samples are not kept: No space left on device") == 1
    log.write([row(4)])
    assert list(read_served(tmp_path)) == [row(1), row(4)]


def test_a_cut_line_is_passed_over_and_a_damaged_one_told(tmp_path, caplog) -> None:
    ServedLog(tmp_path, 1.0).write([row(1), row(2)])
    (file,) = served_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert list(read_served(tmp_path)) == [row(1)]
    assert "line 2 is cut" in caplog.text
    for damaged in (b"{}\n", b"[1]\n", b"\xff\n", b"[" * 5000 + b"\n"):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"\.jsonl, line 1: is no sample of a served request"):
            list(read_served(tmp_path))


def test_a_folder_that_cannot_be_is_told_before_anything_is_served(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        ServedLog(tmp_path / "file" / "served", 1.0)


def test_a_folder_that_goes_away_costs_the_sample_alone(tmp_path, caplog) -> None:
    log = ServedLog(tmp_path / "served", 1.0)
    (tmp_path / "served").rmdir()
    log.write([row(1)])
    log.write([row(2)])
    assert caplog.text.count("samples are not kept") == 1
    (tmp_path / "served").mkdir()
    log.write([row(3)])
    assert list(read_served(tmp_path / "served")) == [row(3)]
