"""Keeps a server as long as somebody uses it; run as a script, with the standard library alone.

Whoever uses the server holds a shared lock on a file. The system gives a lock up when its process
is gone, however that ended, so nobody needs to sign off.
"""

import contextlib
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


def keep(lock: str, command: Sequence[str]) -> int:
    """Run a server until it ends by itself, or nobody holds the lock; return its exit code.

    This process leads a group, and ends all that is in it.

    Args:
        lock: a file; each user has a shared lock on it.
        command: the server's.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not ignored: the server would ignore it, too
    with Path(lock).open("rb") as file:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        while server.poll() is None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.killpg(0, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(_GRACE_S)
                break
            time.sleep(_POLL_S)
        os.killpg(0, signal.SIGKILL)  # what the server has left, and this process
    return 0


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1], sys.argv[2:]))
