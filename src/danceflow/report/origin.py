"""Where a result comes from: data, code, versions, and the machine that it was made on."""

import os
import platform
from importlib import metadata
from pathlib import Path

from danceflow.report.curves import Curves

_PACKAGES = (
    "danceflow",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
    "dvc",
    "mlflow",
    "prefect",
)
_CPU_INFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result may depend on."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, str]:
    """Return what this machine computes with; it is not named."""
    # macOS, whose GPU is the device mps, does not tell which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = _told(_CPU_INFO, "model name") or platform.processor() or platform.machine()
    found = {
        "System": f"{platform.system()} {platform.machine()}",
        "Processor": f"{processor}, {cores} core{'s' if cores != 1 else ''}",
    }
    models = [_told(path, "Model") for path in sorted(_GPUS.glob("*/information"))]
    gpus = [model for model in models if model]
    if gpus:
        found["Accelerator"] = ", ".join(gpus)
    return found


def milliseconds(curves: Curves) -> float | None:
    """Return the milliseconds of a forward pass: one picture, one network, within batches.

    It is the time of the training by the field evaluations of one process in it, of which a forward
    and backward pass is three. ``None``: nothing was trained, or the record does not tell.

    Args:
        curves: the training's record.
    """
    if not curves.seconds or not curves.field_evaluations:
        return None
    return 1000 * curves.seconds * curves.num_processes / curves.field_evaluations


def _told(path: Path, name: str) -> str | None:
    """Return what a file of the system says after a name and a colon."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None
