"""DVC's command as the flows run it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.utils.serialize import dump_yaml, load_yaml

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
