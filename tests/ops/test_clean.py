"""Old work goes, with a word about it; what is used, needed or paid for stays."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danceflow.errors import WeightsError
from danceflow.ops.clean import clean
from danceflow.ops.files import lock_of
from danceflow.ops.keys import Key, guard_of
from danceflow.paths import Paths

DAY = 86_400
DIGEST = "0123456789abcdef"
NAMES = (
    "cache-local_edit",
    "distill",
    "evaluation",
    "prepare",
    "teacher-base",
    "teacher-base-kept",
    "teachers-data",
    "text-encoder",
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path)


def work(paths: Paths, name: str, days: float = 0, size: int = 1000) -> Path:
    """A work folder that was last used some days ago."""
    with Key(name, DIGEST).working(paths) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "state.pt").write_bytes(b"x" * size)
    used(folder, days)
    return folder


def used(folder: Path, days: float) -> None:
    then = time.time() - days * DAY
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_used_for_long_goes_and_is_told(paths: Paths, name: str) -> None:
    old = work(paths, name, days=15)
    other = work(paths, "cache-t2i", days=13)
    found = clean(paths, 14)
    assert found.removed == {old: 1000}
    assert (found.busy, found.kept) == ((), (other,))
    assert not old.exists()
    assert not lock_of(old).exists()
    assert (other / "deep" / "state.pt").is_file()
    assert clean(paths, 14).removed == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_used_again_is_young(paths: Paths, name: str) -> None:
    folder = work(paths, name, days=15)
    with Key(name, DIGEST).working(paths):
        pass
    assert clean(paths, 14).kept == (folder,)


def test_a_time_to_come_counts_as_now(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was a year ahead when the folder was used, and was set right since."""
    folder = work(paths, "distill", days=-365)
    assert clean(paths, 14).kept == (folder,)
    later = time.time() + 15 * DAY
    monkeypatch.setattr("danceflow.ops.clean.time.time", lambda: later)
    assert clean(paths, 14).removed == {folder: 1000}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_process_works_in_stays_however_old(paths: Paths, name: str) -> None:
    folder = work(paths, name, days=100)
    code = (
        "import sys; from pathlib import Path; from danceflow.ops.files import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('has it', flush=True); sys.stdin.readline()"
    )
    command = [sys.executable, "-c", code, str(guard_of(folder))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "has it\n"
        found = clean(paths, 1)
        process.stdin.write("\n")
    assert (found.removed, found.busy) == ({}, (folder,))
    assert (folder / "deep" / "state.pt").is_file()
    assert clean(paths, 1).removed == {folder: 1000}


def test_what_was_paid_for_and_what_is_unknown_stays(paths: Paths) -> None:
    names = [paths.judge_answers, paths.judge_questions("t2i"), paths.work("notes")]
    for folder in names:
        folder.mkdir(parents=True)
        (folder / "one.json").write_text("{}")
        used(folder, 1000)
    assert clean(paths, 0).removed == {}
    assert all((folder / "one.json").is_file() for folder in names)


def test_the_training_of_the_student_that_is_there_stays(paths: Paths) -> None:
    folder = work(paths, "distill", days=100)
    paths.student.mkdir(parents=True)
    manifest = paths.student / "manifest.json"
    manifest.write_text(json.dumps({"key": DIGEST}))
    assert clean(paths, 14).kept == (folder,)
    manifest.write_text(json.dumps({"key": DIGEST[::-1]}))
    assert clean(paths, 14).removed == {folder: 1000}


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00"])
def test_a_damaged_student_is_told_before_anything_goes(paths: Paths, content: str) -> None:
    folder = work(paths, "distill", days=100)
    paths.student.mkdir(parents=True)
    (paths.student / "manifest.json").write_text(content)
    with pytest.raises(WeightsError, match="which training the student comes from"):
        clean(paths, 14)
    assert folder.is_dir()


def test_locks_without_a_folder_go(paths: Paths) -> None:
    folder = work(paths, "prepare")
    for path in (folder / "deep" / "state.pt", folder / "deep", folder):
        path.rmdir() if path.is_dir() else path.unlink()
    assert lock_of(folder).exists()
    clean(paths, 14)
    assert not lock_of(folder).exists()


def test_a_checkout_without_work_is_clean(paths: Paths) -> None:
    found = clean(paths, 14)
    assert (found.removed, found.busy, found.kept) == ({}, (), ())
