"""Starts the processes that compute a stage together, by ``accelerate launch``, and ends with them.

``run.num_processes`` says how many there are on all machines. Where a stage runs on several
machines, it is started on each of them, in one checkout that all of them see, with three variables:
``DANCEFLOW_NUM_MACHINES``, ``DANCEFLOW_MACHINE_RANK`` (from 0) and ``DANCEFLOW_MAIN_ADDRESS`` (host
and port of machine 0, which others can reach).
"""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from danceflow.errors import StageError, UsageError
from danceflow.ops.group import PARENT
from danceflow.ops.processes import process_mark

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from danceflow.params.sections import RunParams

NUM_MACHINES = "DANCEFLOW_NUM_MACHINES"
MACHINE_RANK = "DANCEFLOW_MACHINE_RANK"
MAIN_ADDRESS = "DANCEFLOW_MAIN_ADDRESS"

# Processes that hang in a collective do not go on SIGTERM; after this long they are killed.
_GRACE_S = 10
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What torch's launcher handles while it runs, and leaves handled."""


def is_needed(run: "RunParams") -> bool:
    """Return whether more than this process shall compute a stage.

    Where several machines are told of, ``launch`` refuses a single process: each of them would
    compute and write everything.
    """
    return run.num_processes > 1 or os.environ.get(NUM_MACHINES, "1") != "1"


def launch(run: "RunParams", module: str, arguments: Sequence[str], what: str) -> None:
    """Run a module in ``run.num_processes`` processes to its end.

    Args:
        run: the section ``run``.
        module: what every process runs, as ``python -m`` does; it calls ``group.joined``.
        arguments: of its command line.
        what: it is, for messages.

    Raises:
        UsageError: the machines are not told as they must be.
        StageError: a process has failed or was killed; the others are ended then. It has the exit
            code that the process alone would have had.
    """
    machines = _machines(os.environ, run.num_processes)
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it is told here, once
    surroundings = {
        PARENT: process_mark(),
        "ACCELERATE_USE_CPU": str(run.device == "cpu").lower(),
        "OMP_NUM_THREADS": str(run.num_threads),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_GRACE_S),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    before = dict(os.environ)
    os.environ.update(surroundings)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    with tempfile.TemporaryDirectory(prefix="danceflow-") as folder:
        # A file of its own: the one in the user's home shall not change what is started.
        config = Path(folder) / "accelerate.json"
        config.write_text(json.dumps({**_CONFIG, "num_processes": run.num_processes}))
        options = ["--config_file", str(config), "--multi_gpu", "--log_dir", folder, *machines]
        options += ["--num_processes", str(run.num_processes)]
        options += ["--num_cpu_threads_per_process", str(run.num_threads)]
        words = [*options, "--module", module, *arguments]
        try:
            launch_command(launch_command_parser().parse_args(words))
        except ChildFailedError as error:
            sys.stderr.write("\n")  # a progress bar of a process that was ended may stand there
            _tell(error.failures, run.num_processes, what)
        except SignalException as error:
            _end_by(error.sigval)
        finally:
            for name in os.environ.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)


_CONFIG: Mapping[str, Any] = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",  # which starts processes by torch.distributed, on CPUs, too
    "mixed_precision": "no",
    "use_cpu": False,
    "debug": False,
}


def _machines(environment: Mapping[str, str], num_processes: int) -> list[str]:
    """Return the options of ``accelerate launch`` that say which machines there are."""
    count = environment.get(NUM_MACHINES, "1")
    if count == "1":
        return ["--num_machines", "1", "--machine_rank", "0", "--main_process_port", "0"]
    rank, address = environment.get(MACHINE_RANK, ""), environment.get(MAIN_ADDRESS, "")
    host, _, port = address.rpartition(":")
    if not count.isdigit() or not rank.isdigit() or int(rank) >= int(count):
        raise UsageError(
            f"{NUM_MACHINES} is {count!r} and {MACHINE_RANK} {rank!r}: the second should be a "
            "number below the first, from 0"
        )
    if not host or not port.isdigit():
        raise UsageError(f"{MAIN_ADDRESS} is {address!r}: should be host:port of machine 0")
    if num_processes % int(count):
        raise UsageError(
            f"run.num_processes: {num_processes} processes cannot be shared out evenly among "
            f"{count} machines ({NUM_MACHINES})"
        )
    options = ["--num_machines", count, "--machine_rank", rank, "--same_network"]
    return [*options, "--main_process_ip", host, "--main_process_port", port]


def _tell(failures: "Mapping[int, ProcessFailure]", num_processes: int, what: str) -> NoReturn:
    """Raise the error that ended a group, or end with its traceback if nobody foresaw it."""

    def weight(item: "tuple[int, ProcessFailure]") -> tuple[bool, bool, int, int]:
        rank, failure = item
        data = failure.error_file_data
        ended = failure.exitcode == -signal.SIGTERM
        return ended, bool(data.get("lost")), failure.timestamp, rank

    rank, failure = min(failures.items(), key=weight)
    who = f"{what}: process {rank} of {num_processes} (PID {failure.pid})"
    data = failure.error_file_data
    if data.get("known"):
        error = StageError(str(data["message"]))
        error.exit_code = int(data["exit_code"])
        raise error
    if data.get("trace") and not data["lost"]:
        sys.stderr.write(f"{who}:\n{data['trace']}")
        sys.stderr.flush()
        raise SystemExit(1)
    again = "the others were ended, too; running the stage again goes on where it was saved last"
    if failure.exitcode < 0:
        name = failure.signal_name()
        memory = "; the system does so when memory runs out" if name == "SIGKILL" else ""
        raise StageError(f"{who} was ended by {name}{memory}; {again}")
    if data.get("lost"):
        raise StageError(f"{who} has lost another one, perhaps on another machine; {again}")
    raise StageError(f"{who} ended with exit code {failure.exitcode}; {again}")


def _end_by(number: int) -> NoReturn:
    """End this process by a signal, as it would have without the others."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)
