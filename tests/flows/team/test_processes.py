"""Processes of services: found by their mark, ended with all that they started."""

import signal
import sys
import time
from pathlib import Path

import pytest

from danceflow.errors import DanceflowError
from flows.team import processes
from flows.team.services import Service

SLEEPS = "import time; time.sleep(300)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}])"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"


def service(folder: Path, code: str, **rest: object) -> Service:
    command = (sys.executable, "-c", code)
    ready = rest.pop("ready", lambda: True)
    return Service("thing", command, {}, ready, folder, **rest)  # type: ignore[arg-type]


def wait_for(folder: Path, count: int) -> None:
    while len(processes.running(folder, "thing")) != count:
        time.sleep(0.05)


def test_a_service_is_found_and_ended_with_its_children(tmp_path: Path) -> None:
    started = processes.start(service(tmp_path, CHILD), tmp_path, tmp_path / "log")
    wait_for(tmp_path, 2)
    assert processes.running(tmp_path, "thing")[0].pid == started.pid
    assert processes.running(tmp_path, "other") == []
    assert processes.running(tmp_path / "elsewhere", "thing") == []
    assert processes.end(tmp_path, "thing") == 2
    assert processes.running(tmp_path, "thing") == []
    assert processes.end(tmp_path, "thing") == 0
    started.wait()


def test_children_of_a_killed_service_are_found_and_ended(tmp_path: Path) -> None:
    started = processes.start(service(tmp_path, CHILD), tmp_path, tmp_path / "log")
    wait_for(tmp_path, 2)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert len(processes.running(tmp_path, "thing")) == 1
    assert processes.end(tmp_path, "thing") == 1


def test_who_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE_S", 0.3)
    started = processes.start(service(tmp_path, STUBBORN), tmp_path, tmp_path / "log")
    wait_for(tmp_path, 1)
    time.sleep(0.3)  # until it ignores the signal
    processes.end(tmp_path, "thing")
    assert started.wait() in {-signal.SIGKILL, -signal.SIGTERM}


def test_a_service_that_ends_at_once_says_why(tmp_path: Path) -> None:
    broken = service(tmp_path, "raise SystemExit('no room')", ready=lambda: False)
    started = processes.start(broken, tmp_path, tmp_path / "log")
    with pytest.raises(DanceflowError, match=r"thing ended at once(?s:.*)no room"):
        processes.wait_until_ready(broken, started, tmp_path / "log")


def test_a_log_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOG_BYTES", 10)
    log = tmp_path / "thing.log"
    log.write_text("a former log of some length\n")
    processes.start(service(tmp_path, "raise SystemExit('new')"), tmp_path, log).wait()
    assert (tmp_path / "thing.old.log").read_text().startswith("a former")
    assert log.read_text() == "new\n"
