"""DVC's command, one stage at a time: the only place that runs dvc.

The command is read live and can be ended with everything it started.
"""

import builtins
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from danceflow.errors import StageError, UsageError
from flows import dvc_command, dvc_graph
from flows.dvc_graph import DvcError
from flows.processes import LineReader, ProcessGroups, end_group

# Without the working folder among the places of modules: a checkout decides what a stage runs, not
# what DVC is.
_DVC = (sys.executable, "-P", "-m", "flows.dvc_command")

# How long a stage waits for another DVC command on the same files (a training may take days), how
# often it says so, and how often it looks.
BUSY_PATIENCE_S = 7 * 24 * 3600.0
BUSY_REPORT_S = 300.0
BUSY_POLL_S = 2.0

BAD_INPUT_EXIT_CODE = UsageError.exit_code

# What DVC says after every stage; here a flow goes on by itself.
_HINT = re.compile(
    r"To track the changes with git, run:|To enable auto staging, run:|\s+git add .*"
    r"|\s+dvc config core\.autostage true|Use `dvc push` to send your updates to remote storage\."
)
_ERROR = "error: "  # what the command line puts before an error
_DVC_ERROR = "ERROR: "
_BUSY = re.compile(r"' is busy, it is being blocked by:$")
_BLOCKER = re.compile(r"\s*\(PID (\d+)\): ")
_STAGE_EXIT = re.compile(r"exited with (-?\d+)\s*$")
_TRACEBACK = "Traceback (most recent call last)"

BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""Errors of code: the same line with the same values raises them again."""


class StageFailedError(StageError):
    """A stage failed.

    Attributes:
        stage: the stage's name.
        command_exit_code: what the stage's command exited with; None when DVC failed around it.
        is_bug: whether it ended with an error of the code, which comes again.
    """

    def __init__(
        self, message: str, stage: str, command_exit_code: int | None, is_bug: bool = False
    ) -> None:
        super().__init__(message)
        self.stage = stage
        self.command_exit_code = command_exit_code
        self.is_bug = is_bug
        if command_exit_code == BAD_INPUT_EXIT_CODE:
            self.exit_code = BAD_INPUT_EXIT_CODE

    def __reduce__(self) -> "tuple[type[StageFailedError], tuple[str, str, int | None, bool]]":
        return type(self), (str(self), self.stage, self.command_exit_code, self.is_bug)


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
    message: str | None = None,
) -> None:
    """Keep the state of the worktree at ``root`` as a DVC experiment.

    Args:
        root: the root of the worktree.
        name: the experiment's name; one of the same name on the same commit is replaced.
        environment: the process environment (it carries a git identity where the clone has none).
        stages: those whose outputs are there, where not all of them ran; none: all.
        untracked: files that git does not know yet and that belong to it.
        message: of the experiment's commit; None: DVC's.

    Raises:
        DvcError: DVC could not save it.
    """
    said = () if message is None else ("--message", message)
    included = [word for path in untracked for word in ("--include-untracked", str(path))]
    words = ("exp", "save", "--name", name, "--force", *said, *included, *stages)
    _dvc(root, *words, environment=environment)


def reproduce(
    root: Path,
    stage: str,
    *,
    processes: ProcessGroups,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    force: bool = False,
    thaw: bool = False,
    pull: bool = False,
) -> StageResult:
    """Bring one stage up to date through ``dvc repro --single-item`` and return what happened.

    The command runs in a process group of its own. It ends when the stage does, when ``processes``
    is stopped, or when ``timeout_s`` is over. While another DVC command works on the same files it
    waits, and says for whom.

    Args:
        root: the root of the DVC repository.
        stage: the stage's name, such as ``cache@t2i``.
        processes: where the running group is kept.
        report: called with every line of the stage's output as it comes.
        environment: the process environment to start from; None: this process's.
        timeout_s: seconds the stage may take; None: as long as it needs.
        force: run it also when nothing changed.
        thaw: run it also where it is frozen; ``dvc.yaml`` is not touched.
        pull: take what the default remote has of it: inputs, outputs and the run-cache.

    Raises:
        StageFailedError: the stage or DVC failed; ``command_exit_code`` says how.
        StageStoppedError: it was ended from outside.
    """
    start = time.monotonic()
    options = ["--single-item", *(["--force"] * force), *(["--pull"] * pull)]
    arguments = ["repro", *options, stage]
    thawed = [dvc_command.THAW, stage] if thaw else []
    call = _Call(root, (*thawed, "--wait-for-lock", *arguments), stage, environment, timeout_s)
    found = _reproduced(call, processes, report)
    outcome = found[-1].outcome if found else Outcome.UNCHANGED
    return StageResult(stage, outcome, time.monotonic() - start)


def reproduce_all(
    root: Path,
    targets: Sequence[str],
    *,
    processes: ProcessGroups,
    report: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
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
        timeout_s: seconds that all of them may take; None: as long as they need.

    Raises:
        StageFailedError: a stage or DVC failed; it names the stage.
        StageStoppedError: it was ended from outside.
    """
    name = " ".join(targets) or "all stages"
    call = _Call(root, ("--wait-for-lock", "repro", *targets), name, environment, timeout_s)
    return _reproduced(call, processes, report)


@dataclass(frozen=True)
class _Call:
    """A ``dvc repro`` that may be tried several times.

    Attributes:
        root: the root of the DVC repository.
        arguments: what stands behind ``dvc``.
        name: of the stage or stages, for messages.
        environment: the process environment to start from; None: this process's.
        timeout_s: seconds that one try may take.
    """

    root: Path
    arguments: tuple[str, ...]
    name: str
    environment: Mapping[str, str] | None
    timeout_s: float | None


class _BusyError(Exception):
    """Another DVC command works on the same files.

    Attributes:
        processes: their numbers.
        results: what happened to the stages before.
    """

    def __init__(self, processes: frozenset[int], results: tuple[StageResult, ...]) -> None:
        super().__init__()
        self.processes = processes
        self.results = results


def _reproduced(
    call: _Call, processes: ProcessGroups, report: Callable[[str], None]
) -> tuple[StageResult, ...]:
    """Run ``dvc repro`` until nothing else is in its way, and return what happened to the stages.

    DVC waits for the repository's lock when told to, but gives up at once where another command
    works on the same files.
    """
    deadline = time.monotonic() + BUSY_PATIENCE_S
    before: dict[str, StageResult] = {}
    while True:
        try:
            found = _repro(call, processes, report)
        except _BusyError as busy:
            for result in busy.results:
                before.setdefault(result.name, result)
            _wait_for(busy.processes, deadline, call, processes, report)
        else:
            return tuple(before.get(result.name, result) for result in found)


def _wait_for(
    others: frozenset[int],
    deadline: float,
    call: _Call,
    processes: ProcessGroups,
    report: Callable[[str], None],
) -> None:
    """Return once none of some processes holds files of the repository any more.

    Raises:
        StageStoppedError: the flow ends, or patience does.
    """
    name, begin, told = call.name, time.monotonic(), float("-inf")
    while holding := [item for item in dvc_graph.holders(call.root) if item.process_id in others]:
        now, first = time.monotonic(), holding[0]
        who = f"process {first.process_id} ({first.command}), which works on {first.path}"
        if now >= deadline:
            raise StageStoppedError(
                f"stage {name!r} was not started: it has waited {BUSY_PATIENCE_S / 3600:g} hours "
                f"for {who}; end that process, or run this again when it is done",
                name,
                None,
            )
        if now - told >= BUSY_REPORT_S:
            report(f"stage {name!r} waits for {who} ({now - begin:.0f} s)")
            told = now
        if processes.wait_stopped(BUSY_POLL_S):
            raise StageStoppedError(f"stage {name!r} was not started: the flow ends", name, None)


def _repro(
    call: _Call, processes: ProcessGroups, report: Callable[[str], None]
) -> tuple[StageResult, ...]:
    """Run ``dvc repro`` to its end and return what it says about the stages it came by."""
    name, timeout_s = call.name, call.timeout_s
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
        [*_DVC, *call.arguments],
        cwd=call.root,
        env=stage_environment(os.environ if call.environment is None else call.environment),
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
    ends = [*(began for _, _, began in seen), end][1:]
    results = tuple(
        StageResult(stage, outcome, until - began)
        for (stage, outcome, began), until in zip(seen, ends, strict=True)
    )
    if exit_code == 0:
        return results
    if others := _blockers(tail):
        raise _BusyError(others, results)
    raise _failure(seen[-1][0] if seen else name, exit_code, list(tail))


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
        [*_DVC, "--wait-for-lock", *arguments],
        cwd=root,
        env=stage_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        raise DvcError(f"dvc {' '.join(arguments)} in {root}: {_last_error(process.stderr)}")


def _blockers(tail: Sequence[str]) -> frozenset[int]:
    """Return the numbers of the processes because of which DVC has given up, if it has."""
    start = next((i for i, line in enumerate(tail) if _BUSY.search(line)), len(tail))
    found = (_BLOCKER.match(line) for line in list(tail)[start + 1 :])
    return frozenset(int(match[1]) for match in found if match)


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
    raised = said.partition(":")[0] if any(line.startswith(_TRACEBACK) for line in tail) else ""
    kind = getattr(builtins, raised, None)
    return StageFailedError(
        f"stage {stage!r} failed (exit code {exit_code}){reason}",
        stage,
        exit_code,
        isinstance(kind, type) and issubclass(kind, BUGS),
    )


def _last_words(said: Sequence[str]) -> str:
    """Return the error that a command ended with, all lines of it; else its last line."""
    for start in reversed(range(len(said))):
        if said[start].startswith(_ERROR):
            return "\n".join(said[start:])
        if said[start].startswith(_TRACEBACK):
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
