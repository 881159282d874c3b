"""The machine: versions, room, memory, ports and the GPU."""

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path

from danceflow.params.sections import Params
from flows.doctor.finding import Finding, fail, ok, warn

_PYTHON = (3, 11)
_GIB = 1 << 30
_DISK_WARN_GIB, _DISK_FAIL_GIB = 10.0, 1.0
_MEMORY_WARN_GIB, _MEMORY_FAIL_GIB = 4.0, 1.0
_PORTS = {
    4200: "Prefect's page, choose another: danceflow ui --prefect-port PORT",
    5000: "MLflow's page, choose another: danceflow ui --mlflow-port PORT",
}
_NAMED = 6


def versions(root: Path) -> Iterator[Finding]:
    """Yield what is installed otherwise than the pins say.

    Args:
        root: the checkout, whose ``constraints.txt`` has the pins.
    """
    if sys.version_info[:2] == _PYTHON:
        yield ok("python", f"{sys.version.split()[0]} at {sys.executable}")
    else:
        text = f"{sys.version.split()[0]}; the project is made for 3.11"
        yield fail("python", text, "make setup PYTHON=python3.11")
    pins = root / "constraints.txt"
    if not pins.is_file():
        yield warn("packages", f"{pins} is missing", "git checkout constraints.txt")
        return
    wanted = dict(
        line.split("==") for line in pins.read_text(encoding="utf-8").split() if "==" in line
    )
    installed: dict[str, str] = {}
    for found in distributions():  # the first one found is the one that is imported
        if found.name:
            installed.setdefault(_plain(found.name), found.version)
    missing = [name for name in _required() if _plain(name) not in installed]
    if missing:
        text = f"not installed: {_some(missing)}"
        yield fail("packages", text, "make setup")
    others = [
        f"{name} {installed[_plain(name)]} (pinned {pin})"
        for name, pin in wanted.items()
        if installed.get(_plain(name), pin).partition("+")[0] != pin
    ]
    if others:
        advice = "pip install --constraint constraints.txt --editable '.[dev]'"
        yield warn("packages", f"other versions: {_some(others)}", advice)
    if not missing and not others:
        yield ok("packages", f"all {len(wanted)} pins of constraints.txt hold")


def room(root: Path) -> Iterator[Finding]:
    """Yield how much room is left on the disks, and how much memory.

    Args:
        root: the checkout.
    """
    import psutil

    places = {"disk": root, "disk (tmp)": Path(os.environ.get("TMPDIR", "/tmp"))}  # noqa: S108
    for name, place in places.items():
        free = shutil.disk_usage(place).free / _GIB
        text = f"{free:.1f} GiB free at {place}"
        advice = "danceflow clean; dvc gc --workspace; or a larger disk"
        yield _judged(name, free, _DISK_WARN_GIB, _DISK_FAIL_GIB, text, advice)
    memory = psutil.virtual_memory()
    free = memory.available / _GIB
    text = f"{free:.1f} GiB of {memory.total / _GIB:.1f} GiB available"
    advice = "end other programs, or see what a training needs: danceflow plan"
    yield _judged("memory", free, _MEMORY_WARN_GIB, _MEMORY_FAIL_GIB, text, advice)


def ports(wanted: Mapping[int, str] | None = None) -> Iterator[Finding]:
    """Yield who listens where the project's pages are usually shown.

    Args:
        wanted: ports, and how to choose another; None: those of the pages.
    """
    for port, advice in (_PORTS if wanted is None else wanted).items():
        with socket.socket() as sock:
            sock.settimeout(1.0)
            taken = sock.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            text = f"{port} is taken by {_owner(port)}"
            yield warn("port", text, f"if it is not {advice}")
        else:
            yield ok("port", f"{port} is free")


def gpu(params: Params) -> Iterator[Finding]:
    """Yield whether the device of the parameters is there.

    Args:
        params: the checkout's.
    """
    device = params.run.device
    if device == "cpu":
        yield ok("device", "run.device is cpu")
        return
    import torch

    kind, _, index = device.partition(":")
    if kind == "mps":
        found = torch.backends.mps.is_available()
        count = 1
    else:
        found, count = torch.cuda.is_available(), torch.cuda.device_count()
    if not found or int(index or 0) >= count:
        text = f"run.device is {device}, and PyTorch {torch.__version__} sees {count} of that kind"
        yield fail("device", text, "nvidia-smi; a PyTorch built for it; or set run.device to cpu")
        return
    if kind == "cuda":
        free, total = (size / _GIB for size in torch.cuda.mem_get_info(int(index or 0)))
        name = torch.cuda.get_device_name(int(index or 0))
        yield ok("device", f"{device}: {name}, {free:.1f} of {total:.1f} GiB free")
    else:
        yield ok("device", device)


def _judged(
    check: str, value: float, warn_below: float, fail_below: float, text: str, advice: str
) -> Finding:
    if value < fail_below:
        return fail(check, text, advice)
    return warn(check, text, advice) if value < warn_below else ok(check, text)


def _required() -> list[str]:
    """Return the packages that the installed project needs without any extra."""
    try:
        version("danceflow")
    except PackageNotFoundError:
        return ["danceflow"]
    found = [line for line in requires("danceflow") or [] if "extra ==" not in line]
    return [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in found]


def _owner(port: int) -> str:
    """Return which program listens on a port, as far as this user may know."""
    import psutil

    try:
        for found in psutil.net_connections(kind="tcp"):
            if found.laddr and found.laddr.port == port and found.status == psutil.CONN_LISTEN:
                if found.pid is None:
                    break
                return f"process {found.pid} ({psutil.Process(found.pid).name()})"
    except psutil.Error:
        pass  # not ours to know
    return "a program"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
