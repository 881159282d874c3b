"""DVC's command, one stage at a time: the only place that runs dvc.

The command is read live and can be ended with everything it started.
"""

from __future__ import annotations

import contextlib
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


@dataclass(frozen=True)
class StageResult:
    """What happened to one stage; seconds of wall time."""

    name: str
    outcome: Outcome
    seconds: float


def save_experiment(root: Path, name: str, environment: Mapping[str, str]) -> None:
    """Keep the state of the worktree at ``root`` as a DVC experiment.

    Args:
        root: the root of the worktree.
        name: the experiment's name; one of the same name on the same commit is replaced.
        environment: the process environment (it carries a git identity where the clone has none).

    Raises:
        DvcError: DVC could not save it.
    """
    _dvc(root, "exp", "save", "--name", name, "--force", environment=environment)


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
    if processes.stopped:
        raise StageStoppedError(f"stage {stage!r} was not started: the flow ends", stage, None)
    tail: deque[str] = deque(maxlen=40)
    outcomes: list[Outcome] = []
    timed_out = threading.Event()

    def line(text: str) -> None:
        if _HINT.fullmatch(text):
            return
        tail.append(text)
        outcomes.extend(_outcome(text, stage))
        report(text)

    start = time.monotonic()
    options = ["--single-item", *(["--force"] * force)]
    process = subprocess.Popen(
        [*_dvc_command(), "--wait-for-lock", "repro", *options, stage],
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
    seconds = time.monotonic() - start
    if timed_out.is_set():
        raise StageStoppedError(f"stage {stage!r} was ended after {timeout_s:g} s", stage, None)
    if processes.stopped and exit_code != 0:
        raise StageStoppedError(f"stage {stage!r} was ended: the flow was cancelled", stage, None)
    if exit_code != 0:
        raise _failure(stage, exit_code, list(tail))
    return StageResult(stage, outcomes[-1] if outcomes else Outcome.UNCHANGED, seconds)


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


def _outcome(line: str, stage: str) -> list[Outcome]:
    """Return what one line of DVC's output says about the stage, as a list of none or one."""
    if line.startswith(f"Running stage '{stage}'"):
        return [Outcome.RAN]
    if line.startswith(f"Stage '{stage}' is cached"):
        return [Outcome.RESTORED]
    if line.startswith(f"Verifying outputs in frozen stage: '{stage}'"):
        return [Outcome.FROZEN]
    if line.startswith(f"Stage '{stage}' didn't change"):
        return [Outcome.UNCHANGED]
    return []


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
    said = [line for line in tail if not line.startswith(("> ", "Running stage ", "ERROR: "))]
    reason = f": {said[-1]}" if said else ""
    return StageFailedError(
        f"stage {stage!r} failed (exit code {exit_code}){reason}", stage, exit_code
    )


def _last_error(output: str) -> str:
    """Return DVC's last error line of ``output``, or else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no output"])[-1]
