"""DVC's command, one stage at a time: the only place that runs dvc.

The command is read live and can be ended with everything it started.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from danceflow.errors import StageError, UsageError
from danceflow.ops.files import write_bytes
from flows.dvc_graph import DvcError
from flows.processes import LineReader, ProcessGroups, end_group

BAD_INPUT_EXIT_CODE = UsageError.exit_code

# What DVC says after every stage; here a flow goes on by itself.
_HINT = re.compile(
    r"To track the changes with git, run:|To enable auto staging, run:|\s+git add .*"
    r"|\s+dvc config core\.autostage true|Use `dvc push` to send your updates to remote storage\."
)
_ERROR = "error: "  # what the command line puts before an error
_DVC_ERROR = "ERROR: "
_STAGE_EXIT = re.compile(r"exited with (-?\d+)\s*$")


class StageFailedError(StageError):
    """A stage failed.

    Attributes:
        stage: the stage's name.
        command_exit_code: what the stage's command exited with; None when DVC failed around it.
    """

    def __init__(self, message: str, stage: str, command_exit_code: int | None) -> None:
        super().__init__(message)
        self.stage = stage
        self.command_exit_code = command_exit_code
        if command_exit_code == BAD_INPUT_EXIT_CODE:
            self.exit_code = BAD_INPUT_EXIT_CODE

    def __reduce__(self) -> tuple[type[StageFailedError], tuple[str, str, int | None]]:
        return type(self), (str(self), self.stage, self.command_exit_code)


class StageStoppedError(StageFailedError):
    """A stage was ended from outside: the flow was cancelled, or the stage's time was up."""


class Outcome(StrEnum):
    """What bringing a stage up to date came to."""

    RAN = "ran"
    RESTORED = "restored"  # from DVC's run-cache: the same inputs had been run before
    UNCHANGED = "unchanged"
    FROZEN = "frozen"


_OUTCOMES = {
    re.compile(r"Running stage '([^']+)'"): Outcome.RAN,
    re.compile(r"Stage '([^']+)' is cached"): Outcome.RESTORED,
    re.compile(r"Verifying outputs in frozen stage: '([^']+)'"): Outcome.FROZEN,
    re.compile(r"Stage '([^']+)' didn't change"): Outcome.UNCHANGED,
}


@dataclass(frozen=True)
class StageResult:
    """What happened to one stage; seconds of wall time."""

    name: str
    outcome: Outcome
    seconds: float


def save_experiment(
    root: Path,
    name: str,
    environment: Mapping[str, str],
    stages: Sequence[str] = (),
    untracked: Sequence[Path] = (),
) -> None:
    """Keep the state of the worktree at ``root`` as a DVC experiment.

    Args:
        root: the root of the worktree.
        name: the experiment's name; one of the same name on the same commit is replaced.
        environment: the process environment (it carries a git identity where the clone has none).
        stages: those whose outputs are there, where not all of them ran; none: all.
        untracked: files that git does not know yet and that belong to it.

    Raises:
        DvcError: DVC could not save it.
    """
    included = [word for path in untracked for word in ("--include-untracked", str(path))]
    words = ("exp", "save", "--name", name, "--force", *included, *stages)
    _dvc(root, *words, environment=environment)


@contextlib.contextmanager
def unfrozen(root: Path, stage: str) -> Iterator[None]:
    """Let a frozen stage run within the block; afterwards ``dvc.yaml`` is as it was.

    Args:
        root: the root of the DVC repository.
        stage: the stage's name.

    Raises:
        DvcError: there is no such stage.
    """
    graph = root / "dvc.yaml"
    before = graph.read_bytes()
    try:
        _dvc(root, "unfreeze", stage, environment=os.environ)
        yield
    finally:
        write_bytes(graph, before)


def reproduce(
    root: Path,
    stage: str,
    *,
    processes: ProcessGroups,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    force: bool = False,
) -> StageResult:
    """Bring one stage up to date through ``dvc repro --single-item`` and return what happened.

    The command runs in a process group of its own. It ends when the stage does, when ``processes``
    is stopped, or when ``timeout_s`` is over.

    Args:
        root: the root of the DVC repository.
        stage: the stage's name, such as ``cache@t2i``.
        processes: where the running group is kept.
        report: called with every line of the stage's output as it comes.
        environment: the process environment to start from; None: this process's.
        timeout_s: seconds the stage may take; None: as long as it needs.
        force: run it also when nothing changed.

    Raises:
        StageFailedError: the stage or DVC failed; ``command_exit_code`` says how.
        StageStoppedError: it was ended from outside.
    """
    start = time.monotonic()
    options = ["--single-item", *(["--force"] * force)]
    found = _repro(root, [*options, stage], stage, processes, report, environment, timeout_s)
    outcome = found[-1].outcome if found else Outcome.UNCHANGED
    return StageResult(stage, outcome, time.monotonic() - start)


def reproduce_all(
    root: Path,
    targets: Sequence[str],
    *,
    processes: ProcessGroups,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> tuple[StageResult, ...]:
    """Bring stages and all that they need up to date, and return what happened to each.

    One ``dvc repro`` does it all: where many short runs follow each other, starting DVC once per
    stage would take longer than some of the stages.

    Args:
        root: the root of the DVC repository.
        targets: names of stages; ``cache`` stands for every ``cache@...``. None: all stages.
        processes: where the running group is kept.
        report: called with every line of the stages' output as it comes.
        environment: the process environment to start from; None: this process's.

    Raises:
        StageFailedError: a stage or DVC failed; it names the stage.
        StageStoppedError: it was ended from outside.
    """
    name = " ".join(targets) or "all stages"
    return _repro(root, list(targets), name, processes, report, environment, None)


def _repro(
    root: Path,
    arguments: Sequence[str],
    name: str,
    processes: ProcessGroups,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None,
    timeout_s: float | None,
) -> tuple[StageResult, ...]:
    """Run ``dvc repro`` to its end and return what it says about the stages it came by."""
    if processes.stopped:
        raise StageStoppedError(f"stage {name!r} was not started: the flow ends", name, None)
    tail: deque[str] = deque(maxlen=400)
    seen: list[tuple[str, Outcome, float]] = []
    timed_out = threading.Event()

    def line(text: str) -> None:
        if _HINT.fullmatch(text):
            return
        tail.append(text)
        told = _outcome(text)
        if told is not None:
            seen.append((*told, time.monotonic()))
        report(text)

    process = subprocess.Popen(
        [*_dvc_command(), "--wait-for-lock", "repro", *arguments],
        cwd=root,
        env=stage_environment(os.environ if environment is None else environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def expire() -> None:
        timed_out.set()
        end_group(process, grace_s=15.0)

    timer = None if timeout_s is None else threading.Timer(timeout_s, expire)
    try:
        with processes.holding(process):
            if timer is not None:
                timer.start()
            _read(process, LineReader(line))
            exit_code = process.wait()
    finally:
        if timer is not None:
            timer.cancel()
        if process.poll() is None:
            end_group(process, grace_s=5.0)
            process.wait()
    end = time.monotonic()
    if timed_out.is_set():
        raise StageStoppedError(f"stage {name!r} was ended after {timeout_s:g} s", name, None)
    if processes.stopped and exit_code != 0:
        raise StageStoppedError(f"stage {name!r} was ended: the flow was cancelled", name, None)
    if exit_code != 0:
        raise _failure(seen[-1][0] if seen else name, exit_code, list(tail))
    ends = [began for _, _, began in seen[1:]] + [end]
    return tuple(
        StageResult(stage, outcome, until - began)
        for (stage, outcome, began), until in zip(seen, ends, strict=True)
    )


def stage_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return ``base`` with this interpreter's folder first on PATH and unbuffered Python output.

    Stage commands name no interpreter, because the command is part of DVC's cache key.
    """
    folder = str(Path(sys.executable).parent)
    path = base.get("PATH", os.defpath)
    return {
        **base,
        "PATH": path if path.split(os.pathsep)[0] == folder else folder + os.pathsep + path,
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": base.get("DVC_NO_ANALYTICS", "1"),
    }


def _dvc(root: Path, *arguments: str, environment: Mapping[str, str]) -> None:
    """Run a short DVC command; its last error leaves as ``DvcError``."""
    process = subprocess.run(
        [*_dvc_command(), *arguments],
        cwd=root,
        env=stage_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise DvcError(f"dvc {' '.join(arguments)} in {root}: {_last_error(process.stderr)}")


def _dvc_command() -> Sequence[str]:
    return (sys.executable, "-m", "dvc")


def _outcome(line: str) -> tuple[str, Outcome] | None:
    """Return the stage that one line of DVC's output is about and what happens to it, if any."""
    for pattern, outcome in _OUTCOMES.items():
        if found := pattern.match(line):
            return found[1], outcome
    return None


def _read(process: subprocess.Popen[bytes], reader: LineReader) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        while chunk := os.read(stream.fileno(), 65536):
            reader.feed(chunk)
    reader.close()


def _failure(stage: str, dvc_exit_code: int, tail: Sequence[str]) -> StageFailedError:
    """Return the error for a failed stage, with the stage's own last words in it."""
    exit_code = next(
        (int(found.group(1)) for line in reversed(tail) if (found := _STAGE_EXIT.search(line))),
        None,
    )
    if exit_code is None:
        return StageFailedError(
            f"stage {stage!r}: dvc failed ({dvc_exit_code}): {_last_error(chr(10).join(tail))}",
            stage,
            None,
        )
    said = _last_words(
        [line for line in tail if not line.startswith(("> ", "Running stage ", "ERROR: "))]
    )
    reason = f": {said}" if said else ""
    return StageFailedError(
        f"stage {stage!r} failed (exit code {exit_code}){reason}", stage, exit_code
    )


def _last_words(said: Sequence[str]) -> str:
    """Return the error that a command ended with, all lines of it; else its last line."""
    for start in reversed(range(len(said))):
        if said[start].startswith(_ERROR):
            return "\n".join(said[start:])
        if said[start].startswith("Traceback (most recent call last)"):
            rest = itertools.dropwhile(lambda line: line.startswith(" "), said[start + 1 :])
            return "\n".join(rest)
    return said[-1] if said else ""


def _last_error(output: str) -> str:
    """Return DVC's last error in ``output``, all lines of it; else its last line."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if line.startswith(_DVC_ERROR)]
    if starts:
        return "\n".join(lines[starts[-1] :]).removeprefix(_DVC_ERROR)
    return lines[-1].strip() if lines else "no output"
