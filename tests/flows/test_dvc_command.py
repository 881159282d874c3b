"""DVC's command as the flows run it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from dvc.utils.serialize import dump_yaml, load_yaml

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


def test_an_exit_code_is_dvcs(repository: Path) -> None:
    assert repro(repository, "nothing").wait() == 255
