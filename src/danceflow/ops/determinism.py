"""What decides the numbers of a process beside its code: threads, seeds, torch's algorithms."""

import os
import random
import sys
from typing import TYPE_CHECKING

from danceflow.errors import UsageError

if TYPE_CHECKING:
    from danceflow.params.sections import RunParams


def prepare(run: "RunParams") -> None:
    """Let a run's parameters, and nothing from outside, decide the numbers of this process.

    Sets the number of threads, seeds the global generators (the library itself draws from
    counter-based seeds only) and asks torch for deterministic algorithms. Torch is not imported
    for it: where it comes later, the environment tells it the number of threads.

    Args:
        run: The ``run`` section.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(run.num_threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    random.seed(run.seed)
    if "torch" in sys.modules:
        prepare_torch(run)


def prepare_torch(run: "RunParams") -> None:
    """Set torch's threads, seed and deterministic algorithms; imports torch.

    Args:
        run: The ``run`` section.

    Raises:
        UsageError: The device is not there.
    """
    import torch

    torch.set_num_threads(run.num_threads)
    torch.manual_seed(run.seed)
    if run.compile:  # which tells torch's compiler, too, by importing it: a second of every start
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")
    # Filling fresh memory would cost time and hide reads of it, not prevent them.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if not is_there(run.device):
        raise UsageError(f"run.device: there is no {run.device!r} on this machine")


def is_there(name: str) -> bool:
    """Return whether this machine has a device, such as ``cpu`` or ``cuda:1``; imports torch.

    Args:
        name: As it was written; what torch knows no name for is not there.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    num_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": torch.mps.device_count()}
    return (device.index or 0) < num_devices.get(device.type, 0)
