"""The processes that compute a stage together: which one this is, and what they tell each other.

``danceflow.ops.launch`` starts them. Every process computes its share of what has a global index
(samples of an update, rows of a task, shards of a table); the first one, ``main``, writes files and
talks to trackers. Alone, a process has every share, and nothing here imports torch or accelerate.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from danceflow.errors import DanceflowError
from danceflow.ops import determinism
from danceflow.ops.processes import is_running

if TYPE_CHECKING:
    from torch import Tensor

    from danceflow.params.sections import RunParams

PARENT = "DANCEFLOW_GROUP"
"""Names, in the environment of a process of a group, the process that started it, by its mark."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
# One may wait while another works alone, for hours. A dead one is seen by who started it.
_PATIENCE = timedelta(days=7)
_WATCH_S = 1.0


@dataclass(frozen=True)
class Group:
    """One of ``size`` processes.

    Attributes:
        rank: which one, from 0.
        size: how many there are.
        control: torch's group for plain data, None: the usual one.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Return which of ``total`` things with a global index are this process's, in one piece."""
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def wait(self) -> None:
        """Return when every process has come here."""
        self.all(None)

    def all(self, value: Any) -> list[Any]:
        """Return what every process gives, by rank, on every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self.control)
        return found

    def gathered(self, value: Any) -> list[Any]:
        """Return what every process gives, by rank, on the main one; nothing on the others."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] | None = [None] * self.size if self.is_main else None
        distributed.gather_object(value, found, dst=0, group=self.control)
        return found or []

    def told(self, value: Any) -> Any:
        """Return what the main process gives, on every process."""
        if self.size == 1:
            return value
        from torch import distributed

        found = [value]
        distributed.broadcast_object_list(found, src=0, group=self.control)
        return found[0]

    def add(self, values: "Tensor") -> None:
        """Replace a tensor by its sum over all processes; every process gets the same bits."""
        if self.size > 1:
            from torch import distributed

            distributed.all_reduce(values)


ALONE = Group()
_current = ALONE


def current() -> Group:
    """Return the processes that this one computes with."""
    return _current


@contextmanager
def each_for_itself() -> Iterator[None]:
    """Let every process do everything that it is asked within the block, as if it was alone."""
    global _current  # noqa: PLW0603
    before, _current = _current, ALONE
    try:
        yield
    finally:
        _current = before


def is_member() -> bool:
    """Return whether this process was started as one of a group."""
    return PARENT in os.environ


@contextmanager
def joined(run: "RunParams") -> Iterator[None]:
    """Be one of the processes of a group within the block, through Accelerate's own state.

    The process ends with the one that started it. An error ends it at once: what it was is left for
    the starter, who tells it once for all.

    Args:
        run: the section ``run``.
    """
    global _current  # noqa: PLW0603
    _end_with(os.environ[PARENT])
    if os.environ.get("RANK") != "0":
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("danceflow").setLevel(logging.ERROR)
        os.environ["TQDM_DISABLE"] = "1"  # of bars that are not imported yet
    try:
        determinism.prepare(run)
        _current = _connected(run.device)
        determinism.prepare_torch(run)
        yield
        _current.wait()
    except Exception as error:
        _leave(error)
    from torch import distributed

    distributed.destroy_process_group()
    _current = ALONE


def _connected(device: str) -> Group:
    from accelerate import PartialState
    from torch import distributed

    on_cpu = device == "cpu"
    state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
    # Plain data does not go by way of a GPU.
    control = None if on_cpu else distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Group(state.process_index, state.num_processes, control)


def _leave(error: Exception) -> NoReturn:
    """Leave word of an error and end this process; others may be waiting for it in a collective."""
    known = isinstance(error, DanceflowError)
    exit_code = error.exit_code if isinstance(error, DanceflowError) else 1
    content = {
        "message": str(error),
        "timestamp": str(int(time.time())),
        "known": known,
        "lost": not known and _is_lost(error),
        "exit_code": exit_code,
        "trace": "" if known else traceback.format_exc(),
    }
    if path := os.environ.get(_ERROR_FILE):
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(content, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _is_lost(error: BaseException | None) -> bool:
    """Return whether an error says no more than that another process has gone."""
    from torch import distributed

    while error is not None:
        text = str(error)
        if isinstance(error, distributed.DistError) or "gloo" in text or "NCCL" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def _end_with(parent: str) -> None:
    """Let this process end when another one is gone, whatever it does then.

    Args:
        parent: the other's mark.
    """

    def watch() -> None:
        while is_running(parent):
            time.sleep(_WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
