"""The surroundings of a process: environment, logging, disk space, which checkout's code runs.

Nothing here happens at import time. A command calls ``start``. What decides a stage's numbers is
``danceflow.ops.determinism``.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from danceflow.errors import DiskSpaceError, UsageError, brief

# Off unless the user chose otherwise; the Makefile sets the same.
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

# A bar for every network that is read, however small, would hide the bars of the work.
_HUB_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"

_CHATTY = ("alembic", "datasets", "filelock", "fsspec", "httpx", "matplotlib", "PIL", "urllib3")
_IMPORTED = ("bitsandbytes", "diffusers.quantizers", "torch.utils._pytree", "torchao")
"""What diffusers imports where it is installed, though nobody asked for a quantised base: they warn
of parts that nothing here uses."""
_CHECKOUT_MARK = "DANCEFLOW_CHECKOUT"


def start(verbose: bool = False) -> None:
    """Set telemetry and others' bars off and logging up; the first thing that every command does.

    Args:
        verbose: Also show debug messages.
    """
    set_telemetry_off(os.environ)
    os.environ.setdefault(_HUB_BARS, "1")
    set_logging_up(verbose)


def set_telemetry_off(environment: MutableMapping[str, str]) -> None:
    """Switch the telemetry of DVC, Prefect, MLflow and the hub off where nothing was chosen."""
    for name, value in TELEMETRY_OFF.items():
        environment.setdefault(name, value)


def set_logging_up(verbose: bool = False) -> None:
    """Send log records to standard error, one line each, a second call changes the level only.

    Args:
        verbose: Also show debug messages.
    """
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("danceflow").setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _IMPORTED:
        logging.getLogger(name).setLevel(logging.ERROR)


def end_progress_bars() -> None:
    """End the line of every progress bar that an error interrupted; the error gets its own."""
    if "tqdm" not in sys.modules:
        return
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def require_writable(folder: Path) -> None:
    """Check that files can be written to a folder, before work begins; nothing is left there.

    Args:
        folder: Where results are to go; it is made with the first of them.

    Raises:
        UsageError: They cannot; it says why.
    """
    missing: list[Path] = []
    try:
        for place in (folder, *folder.parents):
            if place.is_dir():
                break
            missing.append(place)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # a path with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{brief(str(folder))}: cannot be written to: {reason}") from None
    finally:
        for place in missing:
            with contextlib.suppress(OSError, ValueError):  # not made, or others use it already
                place.rmdir()


def require_disk_space(folder: Path, num_bytes: int) -> None:
    """Check that a disk has room before work begins.

    Args:
        folder: Any place on the disk; it need not exist yet.
        num_bytes: What will be needed.

    Raises:
        DiskSpaceError: There is less.
    """
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        needed, left = (f"{count / 1e6:,.0f} MB" for count in (num_bytes, free))
        raise DiskSpaceError(f"{folder}: needs {needed} of disk space, {left} are free")


def git_identity(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return variables that let git and DVC write commits where no identity is configured.

    Args:
        environment: The surroundings of the process to be started.
        folder: The checkout.

    Returns:
        Names and values to add; nothing where git knows who the user is.
    """
    known = subprocess.run(
        ["git", "config", "user.email"],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        check=False,
    )
    if known.returncode == 0:
        return {}
    identity = {}
    for role in ("AUTHOR", "COMMITTER"):
        identity[f"GIT_{role}_NAME"] = "danceflow"
        identity[f"GIT_{role}_EMAIL"] = "danceflow@example.invalid"
    return {name: value for name, value in identity.items() if name not in environment}


def use_code_of(root: Path) -> None:
    """Continue in a checkout's own code where another checkout's is loaded.

    ``dvc exp run`` and the flow run stages in copies of the checkout whose hashes cover the copy's
    code, while the environment's installation points at the main one. Does not return then: the
    process is replaced by the same command with the copy's packages first.

    Args:
        root: The checkout that the command works on.

    Raises:
        UsageError: The checkout's code cannot be put first.
    """
    wanted = (root / "src" / "danceflow").resolve()
    if not wanted.is_dir() or wanted == Path(__file__).resolve().parents[1]:
        return
    if os.environ.get(_CHECKOUT_MARK) == str(root):
        raise UsageError(f"{root}: the code of this checkout cannot be loaded")
    others = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        part for part in (str(root / "src"), str(root), others) if part
    )
    os.environ[_CHECKOUT_MARK] = str(root)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "danceflow.cli", *sys.argv[1:]])  # noqa: S606
