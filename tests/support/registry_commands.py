"""Commands on a registry for processes of their own, which are killed or run side by side."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scored import evidence_of

from danceflow.errors import DanceflowError
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.registry.promotion import Promotions

NAME = "student"
PRELOADED = (  # once, for all processes
    "danceflow.registry.register",
    "danceflow.registry.promotion",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "pytest",
)
WRITES = (
    "create_registered_model",
    "create_model_version",
    "delete_model_version",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "create_logged_model",
    "_create_logged_model",
    "log_outputs",
    "log_model_artifacts",
    "finalize_logged_model",
    "delete_logged_model",
)


@dataclass(frozen=True)
class Passed:
    """A verdict: what comes after one is tested here."""

    passed: bool = True
    reasons: tuple[str, ...] = ()


class Judged(Promotions):
    """Versions that all pass the gate."""

    def judge(self, version: Any, policy: Any) -> Any:
        return Passed()


def enter(promotions: Promotions, count: int) -> list[Any]:
    """Return new versions without weights, which the history does not look at."""
    from mlflow.exceptions import MlflowException

    client = promotions._store.client
    with contextlib.suppress(MlflowException):
        client.create_registered_model(NAME)
    return [client.create_model_version(NAME, "danceflow:/nothing") for _ in range(count)]


def promote(settings: TrackingSettings, version: int) -> str:
    return str(Judged(open_store(settings), NAME).promote(version, None))


def rollback(settings: TrackingSettings) -> str:
    return str(Judged(open_store(settings), NAME).rollback())


def consider(settings: TrackingSettings, version: int) -> str:
    store = open_store(settings)
    found = store.client.get_model_version(NAME, str(version))
    return str(Judged(store, NAME).consider(found, None, auto_promote=True))


def register(settings: TrackingSettings, folder: Path) -> str:
    """Register a folder as it is, whatever lies in it."""
    from danceflow.registry import register as module

    store = open_store(settings)
    run = store.client.search_runs([store.experiment_id])[0].info.run_id
    entry = module.register_student(store, lambda: run, folder, NAME, evidence_of(0.5))
    return f"{entry.version.version} {entry.made}"


def killed_at(write: int, command: Callable[..., str], *arguments: Any) -> bool:
    """Return whether a process was killed before its write of a number; False: it made fewer."""
    process = _context().Process(target=_dying, args=(write, command, arguments))
    process.start()
    process.join(120)
    assert process.exitcode in {0, -signal.SIGKILL}, process.exitcode
    return process.exitcode != 0


def at_once(commands: list[tuple[Any, ...]]) -> list[tuple[str, str]]:
    """Return how each of some commands ended that began at the same moment.

    Each is the name of its error, or an empty text, and what it said.
    """
    context = _context()
    barrier, said = context.Barrier(len(commands)), context.SimpleQueue()
    processes = [
        context.Process(target=_racing, args=(place, barrier, said, command))
        for place, command in enumerate(commands)
    ]
    for process in processes:
        process.start()
    answers = dict(said.get() for _ in processes)
    for process in processes:
        process.join(120)
    return [answers[place] for place in range(len(commands))]


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def _dying(write: int, command: Callable[..., str], arguments: tuple[Any, ...]) -> None:
    from mlflow import MlflowClient

    left = write

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return method(*args, **named)

        return call

    for name in WRITES:
        setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
    command(*arguments)


def _racing(place: int, barrier: Any, said: Any, command: tuple[Any, ...]) -> None:
    function, settings, *arguments = command
    open_store(settings)
    barrier.wait()
    try:
        said.put((place, ("", function(settings, *arguments))))
    except DanceflowError as error:
        said.put((place, (type(error).__name__, str(error))))
    except BaseException as error:  # it is told, and fails the test
        said.put((place, ("not foreseen", repr(error))))
