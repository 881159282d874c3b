"""Keeps a server as long as somebody uses it; run as a script, with the standard library alone.

Whoever uses the server holds a shared lock on a file. The system gives a lock up when its process
is gone, however that ended, so nobody needs to sign off. A server that is killed, as by a lack of
memory, is started again: its users wait for it.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_POLL_S = 0.2
_GRACE_S = 10.0
_PARENT_DEATH_SIGNAL = 1  # of linux/prctl.h
_MAX_STARTS = 6
"""One that is killed as often is not kept: whatever kills it does not stop."""


def keep(lock: str, command: Sequence[str]) -> int:
    """Run a server until it ends by itself, or nobody holds the lock; return 0.

    The server leads a group, all of which is ended with it.

    Args:
        lock: a file; each user has a shared lock on it.
        command: the server's.
    """
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Not ignored: the server would ignore it, too.
        signal.signal(number, lambda number, _: told.append(number))
    with Path(lock).open("rb") as file:
        for _ in range(_MAX_STARTS):
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                process_group=0,
                preexec_fn=_end_with_keeper,  # noqa: PLW1509, this process has one thread
            )
            is_used = _watch(server, file.fileno())
            _end(server.pid, signal.SIGKILL)  # what the server has left
            if not is_used or server.wait() >= 0 or told:
                break
    return 0


def _end_with_keeper() -> None:
    """Let the system tell the server to end when this process is killed: nobody else would."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _watch(server: "subprocess.Popen[bytes]", lock: int) -> bool:
    """Return whether a server that has ended is still used; one that is not used is ended."""
    while server.poll() is None:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_GRACE_S)
            return False
        time.sleep(_POLL_S)
    return True


def _end(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1], sys.argv[2:]))
