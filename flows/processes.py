"""Process groups that can be ended at once, and their raw output as log lines.

Run as a script, with nothing but the standard library, this file is the watcher of a
``ProcessGroups``: it ends the groups when the process that has started them is gone.
"""

import codecs
import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LINE_END = re.compile(r"\r\n|\n|\r")
_LAST_WORDS_S = 60.0


class ProcessGroups:
    """The process groups that a flow has running, so that all of them can be ended at once.

    As a context manager it ends what is still running when the block is left: a cancelled or
    failed flow leaves no training behind. A flow that is killed cannot do that; a watcher does it
    then, which reads from a pipe that only this process holds open.
    """

    def __init__(self, grace_s: float = 15.0) -> None:
        self._grace_s = grace_s
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ProcessGroups":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        with self._lock:
            watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.communicate()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called: nothing may be started any more."""
        return self._stopped.is_set()

    def wait_stopped(self, timeout_s: float) -> bool:
        """Return whether ``stop`` was called, within ``timeout_s`` seconds at most."""
        return self._stopped.wait(timeout_s)

    @contextlib.contextmanager
    def holding(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Count ``process``, the leader of its own process group, as running within the block."""
        with self._lock:
            self._running.add(process)
            stopped = self._stopped.is_set()
            if not stopped:
                self._watcher = self._watcher or _start_watcher(self._grace_s)
                self._tell_watcher(f"+{process.pid}\n")
        if stopped:
            end_group(process, self._grace_s)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)
                self._tell_watcher(f"-{process.pid}\n")

    def stop(self) -> None:
        """End every running group: SIGTERM, then after the grace period SIGKILL."""
        with self._lock:
            self._stopped.set()
            running = list(self._running)
        for process in running:
            _signal_group(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        for process in running:
            end_group(process, max(0.0, deadline - time.monotonic()))

    def _tell_watcher(self, line: str) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # somebody has killed it
                self._watcher.stdin.write(line.encode())
                self._watcher.stdin.flush()


def end_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the process group led by ``process``: SIGTERM, then after ``grace_s`` seconds SIGKILL."""
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _group_alive(process.pid, process):
        if time.monotonic() >= deadline:
            _signal_group(process.pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def end_with_parent() -> None:
    """Let this process end when the process that started it through multiprocessing is gone.

    It gets SIGTERM, on which a flow ends its stages. Elsewhere than in such a process nothing is
    done.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LAST_WORDS_S)  # it may wait for a server that is gone, too
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


@dataclass
class LineReader:
    """Turns a command's raw output into log lines.

    A progress bar rewrites its line with carriage returns; such a line is passed on at most once
    per ``progress_every_s`` seconds, every other line at once. Colour codes are dropped.
    """

    emit: Callable[[str], None]
    progress_every_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _pending: str = ""
    _last_progress: float = float("-inf")
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def feed(self, chunk: bytes) -> None:
        """Take the next raw bytes."""
        text = self._pending + self._decoder.decode(chunk)
        held = text.endswith("\r")  # perhaps the first half of a "\r\n"
        start = 0
        for end in _LINE_END.finditer(text, 0, len(text) - held):
            self._line(text[start : end.start()], progress=end.group() == "\r")
            start = end.end()
        self._pending = text[start:]

    def close(self) -> None:
        """Pass on what is left without a line end."""
        rest = self._pending + self._decoder.decode(b"", final=True)
        self._pending = ""
        self._line(rest.rstrip("\r"), progress=False)

    def _line(self, line: str, *, progress: bool) -> None:
        line = _ANSI.sub("", line).rstrip()
        if not line:
            return
        if progress:
            now = self.clock()
            if now - self._last_progress < self.progress_every_s:
                return
            self._last_progress = now
        self.emit(line)


def _start_watcher(grace_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(grace_s)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _watch(grace_s: float) -> None:
    """End the process groups that standard input tells of, once nobody holds it open any more.

    A line ``+123`` adds a group, ``-123`` takes it off.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        _signal_group(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while any(map(_group_alive, groups)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for group in groups:
        _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _group_alive(group: int, leader: subprocess.Popen[bytes] | None = None) -> bool:
    if leader is not None:
        leader.poll()
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    _watch(float(sys.argv[1]))
