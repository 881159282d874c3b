"""DVC's temporary files: nothing stays of a copy that failed, or of a command that was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from little_room import little_room
from repository import ROOT

from flows import dvc_temporaries
from flows.dvc_graph import remove_temporaries

DVC = [sys.executable, "-m", "flows.dvc_command"]
DAY = 86_400


def temporaries(repository: Path) -> list[Path]:
    return list((repository / ".dvc" / "cache").rglob("*.tmp"))


def left_in_cache(repository: Path, name: str, days: float = 0) -> Path:
    path = repository / ".dvc" / "cache" / "files" / "md5" / "a9" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - days * DAY,) * 2)
    return path


def test_what_cannot_be_copied_whole_leaves_nothing(repository: Path) -> None:
    """A copy of 4 MB into a cache of which no file may be larger than 1 MB."""
    (repository / "large").write_bytes(bytes(4 << 20))
    with little_room(1 << 20):
        done = subprocess.run(
            [*DVC, "add", "large"], cwd=repository, capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert temporaries(repository) == []
    subprocess.run([*DVC, "add", "-q", "large"], cwd=repository, check=True)
    assert temporaries(repository) == []


def test_what_a_killed_command_left_goes_and_what_is_written_stays(repository: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COPIES_FOR_EVER, str(repository)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    (path,) = temporaries(repository)
    assert remove_temporaries(repository, 0) == {}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert remove_temporaries(repository) == {path: 5}
    assert temporaries(repository) == []


# DVC's own way into its cache, from a pipe that never ends.
COPIES_FOR_EVER = """
import os, sys, time
from flows.dvc_graph import open_repository
from dvc_objects.fs import local

def copy(source, place):
    with open(place, "wb") as file:
        file.write(b"begun")
    print("copying", flush=True)
    time.sleep(600)

local.shutil.copyfile = copy
with open_repository(sys.argv[1]) as repo:
    odb = repo.cache.local
    odb.add(os.path.join(sys.argv[1], "raw"), local.localfs, "a9" + 30 * "0")
"""


@pytest.mark.parametrize(
    "name", [".SZ7XMaS9g3P8oynTD9T0iw.tmp", ".0123456789abcdef.1-1.SZ7XMaS9g3P8oynTD9T0iw.tmp"]
)
def test_an_unknown_writer_or_one_elsewhere_has_some_days(repository: Path, name: str) -> None:
    path = left_in_cache(repository, name, days=13)
    assert remove_temporaries(repository) == {}
    assert remove_temporaries(repository, 14) == {}
    assert remove_temporaries(repository, 12) == {path: 4}


def test_nothing_else_is_taken_for_a_temporary_file(repository: Path) -> None:
    for name in ("short.tmp", "SZ7XMaS9g3P8oynTD9T0iw", "SZ7XMaS9g3P8oynTD9T0iw.tmp"):
        left_in_cache(repository, name, days=1000)
    assert remove_temporaries(repository, 0) == {}


def test_clean_tells_what_goes_of_dvcs_cache(repository: Path) -> None:
    for name in ("params.yaml", "pyproject.toml"):
        (repository / name).write_text((ROOT / name).read_text())
    dead = f".{dvc_temporaries._machine()}.1-1.SZ7XMaS9g3P8oynTD9T0iw.tmp"
    left_in_cache(repository, dead)
    command = [sys.executable, "-m", "danceflow.cli", "clean"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert "1 temporary files of DVC's cache removed, 4 bytes freed" in done.stdout, done.stderr
    assert temporaries(repository) == []
