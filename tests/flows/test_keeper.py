"""What ends a server, and what does not."""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import keeper

NOTES = "import os, signal, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()} ')\n"


def kept(lock: Path, notes: Path, then: str) -> "subprocess.Popen[bytes]":
    """A keeper whose server notes its number and then does something."""
    server = [sys.executable, "-c", NOTES + then, str(notes)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, str(lock), *server], start_new_session=True
    )


def number_in(notes: Path, process: "subprocess.Popen[bytes]") -> int:
    """The number of the server's process, once it has noted it."""
    while not (notes.exists() and notes.read_text().endswith(" ")):
        assert process.poll() is None
    return int(notes.read_text())


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[Path]:
    """A lock that somebody holds."""
    with (tmp_path / "lock").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield tmp_path / "lock"


@pytest.mark.parametrize(
    ("then", "starts"),
    [
        ("sys.exit(3)", 1),  # it cannot work: its port is taken, perhaps
        ("sys.exit(0)", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", keeper._MAX_STARTS),
    ],
)
def test_what_is_killed_is_started_again_and_what_ends_by_itself_is_not(
    lock: Path, tmp_path: Path, then: str, starts: int
) -> None:
    notes = tmp_path / "notes"
    assert kept(lock, notes, then).wait(60) == 0
    assert len(notes.read_text().split()) == starts


def test_with_the_keeper_that_is_killed_the_server_ends(lock: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    process = kept(lock, notes, "time.sleep(600)")
    server = psutil.Process(number_in(notes, process))
    process.kill()
    process.wait()
    assert server.wait(60) is None  # not our child: how it ended is not told


def test_a_keeper_that_was_told_to_stop_starts_nothing_again(lock: Path, tmp_path: Path) -> None:
    """As where the machine is shut down: everything is told to stop."""
    notes = tmp_path / "notes"
    process = kept(lock, notes, "time.sleep(600)")
    number = number_in(notes, process)
    process.send_signal(signal.SIGTERM)
    psutil.Process(number).kill()
    assert process.wait(60) == 0
    assert len(notes.read_text().split()) == 1
