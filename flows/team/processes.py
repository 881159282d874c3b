"""The processes of a team's servers: found by a mark in their environment, started and ended.

There is no list of process numbers that a kill could leave wrong or a restart could make mean
somebody else: what runs is what the system says. Every process that a service starts inherits the
mark, so that none is left behind.
"""

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.errors import DanceflowError
from danceflow.ops.processes import process_mark
from flows.team.services import Service

if TYPE_CHECKING:
    from psutil import Process

MARK = "DANCEFLOW_TEAM_SERVICE"
_LOG = logging.getLogger(__name__)
_LOG_BYTES = 10_000_000
_POLL_S = 0.1
_READY_S = 180.0
_STUCK_S = 60.0
"""Seconds that a service which runs already may take to answer, before it is started anew."""
_GRACE_S = 20.0
_TAIL_LINES = 20


def running(folder: Path, name: str) -> "list[Process]":
    """Return the processes of a service, the eldest first.

    Args:
        folder: the team's.
        name: the service's.
    """
    import psutil

    wanted = _mark(folder, name)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == wanted and process.status() != psutil.STATUS_ZOMBIE:
                # Since the machine's start: a clock that is set changes no order.
                started = int(process_mark(process.pid).rpartition("-")[2])
                found.append((started, process.pid, process))
    return [process for *_, process in sorted(found, key=lambda item: item[:2])]


def start(service: Service, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """Return the process of a service that was started; it outlives this process.

    Args:
        service: what to start.
        folder: the team's.
        log: the file that everything it says is added to.
    """
    service.folder.mkdir(parents=True, exist_ok=True)
    if service.prepare is not None:
        service.prepare()
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".old.log"))
    environment = {**os.environ, **service.environment, MARK: _mark(folder, service.name)}
    with log.open("ab") as out:
        return subprocess.Popen(
            service.command,
            cwd=service.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=service.account.user,
            group=service.account.group,
            extra_groups=service.account.extra_groups,
        )


def wait_until_ready(service: Service, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a service answers.

    Raises:
        DanceflowError: it ended, or took too long; the end of its log is told.
    """
    deadline = time.monotonic() + _READY_S
    while not service.ready():
        if process.poll() is not None:
            raise DanceflowError(f"{service.name} ended at once; {_told(log)}")
        if time.monotonic() > deadline:
            raise DanceflowError(f"{service.name} does not answer; {_told(log)}")
        time.sleep(_POLL_S)


def answers_soon(service: Service) -> bool:
    """Return whether a service that runs already answers, now or in a moment."""
    deadline = time.monotonic() + _STUCK_S
    while not service.ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def end(folder: Path, name: str, stop_signal: signal.Signals = signal.SIGTERM) -> int:
    """Return how many processes of a service were ended: told to, and after a while killed.

    Args:
        folder: the team's.
        name: the service's.
        stop_signal: what lets it end in good order.
    """
    found = running(folder, name)
    _send(found, stop_signal)
    deadline = time.monotonic() + _GRACE_S
    while left := running(folder, name):
        if time.monotonic() > deadline:
            _LOG.warning("%s does not end, and is killed", name)
            _send(left, signal.SIGKILL)
            deadline = time.monotonic() + _GRACE_S
        time.sleep(_POLL_S)
    return len(found)


def _send(processes: "Iterable[Process]", number: signal.Signals) -> None:
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _mark(folder: Path, name: str) -> str:
    return f"{name}@{folder.resolve()}"


def _told(log: Path) -> str:
    """Return where a log is, and how it ends."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"the end of {log}:", *_last(lines)])


def _last(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[-_TAIL_LINES:])
