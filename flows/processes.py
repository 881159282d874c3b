"""Process groups that can be ended at once, and their raw output as log lines."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LINE_END = re.compile(r"\r\n|\n|\r")


class ProcessGroups:
    """The process groups that a flow has running, so that all of them can be ended at once.

    As a context manager it ends what is still running when the block is left: a cancelled or
    failed flow leaves no training behind.
    """

    def __init__(self, grace_s: float = 15.0) -> None:
        self._grace_s = grace_s
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> ProcessGroups:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called: nothing may be started any more."""
        return self._stopped

    @contextlib.contextmanager
    def holding(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Count ``process``, the leader of its own process group, as running within the block."""
        with self._lock:
            self._running.add(process)
            stopped = self._stopped
        if stopped:
            end_group(process, self._grace_s)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """End every running group: SIGTERM, then after the grace period SIGKILL."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s
        for process in running:
            end_group(process, max(0.0, deadline - time.monotonic()))


def end_group(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the process group led by ``process``: SIGTERM, then after ``grace_s`` seconds SIGKILL."""
    _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _group_alive(process):
        if time.monotonic() >= deadline:
            _signal_group(process, signal.SIGKILL)
            return
        time.sleep(0.05)


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


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the group led by ``process``; a group that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
