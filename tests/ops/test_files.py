"""Atomic writes: all or nothing, and no leftovers."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from danceflow.errors import DanceflowError, DataError, DiskSpaceError
from danceflow.ops import files
from danceflow.ops.processes import process_mark


class NativeError(Exception):
    """What a library that is not written in Python may raise."""


def _fill_directory(path: Path) -> None:
    with files.atomic_directory(path) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "file").write_text("new")


def _fill_file(path: Path) -> None:
    with files.atomic_file(path) as partial:
        partial.write_text("new")


def test_the_written_content_is_there(tmp_path: Path) -> None:
    files.write_bytes(tmp_path / "a" / "bytes", b"\x00\x01")
    files.write_text(tmp_path / "text", "grün\n")
    files.write_json(tmp_path / "json", {"b": 1, "a": [0.5, None]})
    assert (tmp_path / "a" / "bytes").read_bytes() == b"\x00\x01"
    assert (tmp_path / "text").read_text(encoding="utf-8") == "grün\n"
    text = (tmp_path / "json").read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["b", "a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "json", "text"]


def test_a_written_file_has_the_rights_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    files.write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("text", [None, "", "[1]", '"a"', '{"a": 1', "\xff", "[" * 100_000])
def test_what_holds_no_object_is_told_with_what_to_do(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"json: cannot be read \(.+\); make it anew"):
        files.read_object(path, "make it anew")
    files.write_json(path, {"b": 1, "a": [None]})
    assert files.read_object(path, "") == {"b": 1, "a": [None]}


def test_json_takes_finite_numbers_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_the_former_one_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").write_text("old")
    _fill_directory(target)
    assert [str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()] == [
        "deep/file"
    ]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_file_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("old")
    _fill_directory(tmp_path / "name")
    assert (tmp_path / "name" / "deep" / "file").read_text() == "new"


@pytest.mark.parametrize("manager", [files.atomic_file, files.atomic_directory])
def test_after_an_error_everything_is_as_before(
    tmp_path: Path, manager: Callable[[Path], "files.contextlib.AbstractContextManager[Path]"]
) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="boom"), manager(target) as partial:
        (partial / "x" if partial.is_dir() else partial).write_text("half")
        raise RuntimeError("boom")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        NativeError("I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("fill", [_fill_file, _fill_directory])
def test_a_full_disk_is_one_error_that_names_the_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    fill: Callable[[Path], None],
) -> None:
    target = tmp_path / "target"

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(DiskSpaceError, match="no space left") as caught:
        fill(target)
    assert str(target) in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_systems_own_refusal_is_recognised(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(DiskSpaceError, match="target: no space left"), files.atomic_file(target):
        Path("/dev/full").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="other"), files.disk_errors(tmp_path):
        raise OSError(errno.EIO, "other")
    with pytest.raises(DanceflowError, match="ours"), files.disk_errors(tmp_path):
        raise DanceflowError("ours: no space left on device")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DanceflowError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "below", "")


def test_a_folder_without_the_right_to_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", deny)
    with pytest.raises(DanceflowError, match="cannot be written: Permission denied"):
        files.write_bytes(tmp_path / "target", b"")


def _write_and_stop(path: Path) -> None:
    with files.atomic_file(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=_write_and_stop, args=(target,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_process_left_whose_number_another_has_by_now_is_removed(tmp_path: Path) -> None:
    """As in a container that was restarted: the same numbers, started at another time."""
    number, _, started = process_mark().partition("-")
    former = f"{number}-{int(started) - 1}"
    for mark in (former, number):  # the second as an older version wrote it
        (tmp_path / f".target.{mark}-ab12.partial").touch()
    present = tmp_path / f".target.{process_mark()}-ab12.partial"
    present.touch()
    files.write_text(tmp_path / "target", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [present.name, "target"]


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with files.atomic_file(target) as first:
        first.write_text("first")
        files.write_text(target, "second")
        assert first.is_file()
    assert target.read_text() == "first"


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert files.sha256(path) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_fingerprint_stands_for_the_content() -> None:
    value = {"a": 1, "b": [1.5, None, "x"]}
    assert files.fingerprint(value) == files.fingerprint({"b": [1.5, None, "x"], "a": 1})
    assert files.fingerprint(value) != files.fingerprint({**value, "a": 2})
    assert files.fingerprint(value) == "51824779aebdb7de"
    with pytest.raises(TypeError):
        files.fingerprint({"path": Path("x")})


def test_who_comes_second_waits(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "some.folder"
    code = (
        "import sys; from pathlib import Path; from danceflow.ops.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print(Path(sys.argv[2]).read_text())"
    )
    note = tmp_path / "note"
    note.write_text("first")
    with files.exclusive(folder):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(note)],
            stdout=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(2)
        note.write_text("second")
    assert other.communicate(timeout=60)[0] == "second\n"
    assert not folder.exists()
