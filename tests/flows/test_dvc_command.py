"""DVC's command as the flows run it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.utils.serialize import dump_yaml, load_yaml
from little_room import little_room
from repository import ROOT

from flows.dvc_graph import changed_stages, holders

DVC = [sys.executable, "-m", "flows.dvc_command"]


def repro(root: Path, stage: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*DVC, "repro", "--single-item", stage], cwd=root, stdout=subprocess.DEVNULL
    )


def test_a_lock_file_is_never_half_written(repository: Path) -> None:
    """The lock holds so many stages that writing it takes long enough to be killed meanwhile."""
    assert repro(repository, "first").wait() == 0
    lock = repository / "dvc.lock"
    content = load_yaml(lock)
    entry = content["stages"]["first"]
    content["stages"] |= {f"other{number}": entry for number in range(1000)}
    dump_yaml(lock, content)
    before = lock.read_bytes()

    process = repro(repository, "both@1")
    while not list(repository.glob(".dvc.lock.*.partial")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert lock.read_bytes() == before

    assert repro(repository, "both@1").wait() == 0
    after = load_yaml(lock)
    assert after["stages"].pop("both@1")
    assert after == content
    assert not list(repository.glob("*.partial"))
    assert not list(repository.glob(".*.partial"))


@pytest.mark.parametrize("left", ["", "{", '{"write": {"/somewhere": {"pid": 1, "cm'])
def test_half_a_list_of_readers_and_writers_locks_nobody_out(repository: Path, left: str) -> None:
    """As DVC leaves it where it is killed while it writes."""
    rwlock = repository / ".dvc" / "tmp" / "rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text(left)
    assert holders(repository) == ()
    rwlock.write_text(left)
    assert "first" in changed_stages(repository)
    assert repro(repository, "first").wait() == 0
    assert not any(json.loads(rwlock.read_text()).values())


def test_the_list_of_readers_and_writers_is_never_half_written(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc import rwlock

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    assert holders(repository) == ()  # which writes it
    file = repository / ".dvc" / "tmp" / "rwlock"
    before = file.read_text()
    monkeypatch.setattr(rwlock.json, "dump", killed)
    with pytest.raises(KeyboardInterrupt):
        holders(repository)
    assert file.read_text() == before


def test_an_exit_code_is_dvcs(repository: Path) -> None:
    assert repro(repository, "nothing").wait() == 255


def objects(repository: Path, content: bytes) -> Path:
    """Return the object of DVC's cache that holds this content."""
    files = (repository / ".dvc" / "cache" / "files").rglob("*")
    (found,) = (path for path in files if path.is_file() and path.read_bytes() == content)
    return found


@pytest.mark.parametrize("damage", [b"two\n", b"on", b""])
def test_a_damaged_object_is_named_and_made_again(repository: Path, damage: bytes) -> None:
    """DVC would take it for what it says it is, as it is write-protected, and call it a result."""
    assert repro(repository, "first").wait() == 0
    place = objects(repository, b"one\n")
    place.chmod(0o644)
    place.write_bytes(damage)
    place.chmod(0o444)
    (repository / "a").unlink()
    command = [*DVC, "repro", "--single-item", "first"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    assert f"{place}: an object of DVC's cache was damaged" in done.stderr
    assert "first ran" in done.stdout
    assert (repository / "a").read_text() == "one\n"
    assert place.read_bytes() == b"one\n"


def test_a_database_that_cannot_be_written_is_one_error_with_its_place(repository: Path) -> None:
    """No file may grow, which SQLite tells as a failure of the disk."""
    with little_room(0):
        done = subprocess.run(
            [*DVC, "repro", "--single-item", "first"],
            cwd=repository,
            env=os.environ | {"DVC_SITE_CACHE_DIR": str(repository / "site")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 255
    assert done.stderr.count("ERROR:") == 1, done.stderr
    assert re.search(r"ERROR: .*Input/output error: '.*/site/", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert repro(repository, "first").wait() == 0


def test_a_database_without_room_is_not_asked_for_ever(tmp_path: Path) -> None:
    """In a process of its own: DVC is changed for the whole of it."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DATABASE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["True", str(tmp_path)], done.stderr
    assert done.stderr == (
        f"ERROR: {tmp_path}: no space left on the disk; nothing was kept; make room and run the "
        "same command again\n"
    )


# A database may not have more pages than it has: it says what it says on a full disk.
FULL_DATABASE = """
import errno, sys
from dvc import cli
from flows.dvc_command import end_without_room
from dvc_data.hashfile.cache import HashesCache

end_without_room()
cache = HashesCache(sys.argv[1])
pages = cache._sql("PRAGMA page_count").fetchone()[0]
cache._sql(f"PRAGMA max_page_count = {pages}")
try:
    for number in range(10_000):
        cache.set(str(number), "x" * 1000, retry=True)
except OSError as error:
    print(error.errno == errno.ENOSPC, error.filename)
    cli._log_exceptions(error)
"""
