"""DVC remotes of a checkout: set, reached, and kept in step with it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import StageError
from danceflow.ops.tracking import without_login
from flows.dvc_graph import DvcError, open_repository
from flows.dvc_stage import stage_environment

_DVC = (sys.executable, "-P", "-m", "flows.dvc_command", "--wait-for-lock")
_NO_REMOTE = (
    "there is no default DVC remote: `dvc remote add --default NAME URL` (docs/howto/team.md)"
)


@dataclass(frozen=True)
class Remote:
    """Where DVC keeps a copy of data, outputs and its run-cache.

    Attributes:
        name: the remote's.
        url: its address, without any login.
        is_default: whether ``dvc push`` takes it.
    """

    name: str
    url: str
    is_default: bool


def remotes(root: Path) -> tuple[Remote, ...]:
    """Return the remotes that a checkout knows.

    Args:
        root: the root of the DVC repository.

    Raises:
        DvcError: DVC cannot read its settings.
    """
    with open_repository(root) as repo:
        default = repo.config["core"].get("remote")
        return tuple(
            Remote(name, without_login(str(settings["url"])), name == default)
            for name, settings in repo.config["remote"].items()
        )


def set_remote(root: Path, name: str, url: str, settings: Mapping[str, str]) -> None:
    """Set a remote in the checkout's own settings, which git does not know.

    It becomes the default where there is none.

    Args:
        root: the root of the DVC repository.
        name: the remote's.
        url: its address; no login belongs in it.
        settings: what else it needs, such as ``endpointurl``.

    Raises:
        DvcError: DVC cannot write its settings.
    """
    with open_repository(root) as repo:
        has_default = repo.config["core"].get("remote") not in {None, name}
        with repo.config.edit("local") as config:
            config["remote"][name] = {"url": url, **settings}
            if not has_default:
                config["core"]["remote"] = name


def require_remote(root: Path) -> Remote:
    """Return the remote that ``dvc push`` and ``dvc pull`` take.

    Raises:
        StageError: there is none.
    """
    for remote in remotes(root):
        if remote.is_default:
            return remote
    raise StageError(f"{root}: {_NO_REMOTE}")


def reach(root: Path, name: str) -> None:
    """Ask a remote for the first thing in it.

    Args:
        root: the root of the DVC repository.
        name: the remote's.

    Raises:
        DvcError: it cannot be reached, or refuses.
    """
    with open_repository(root) as repo:
        try:
            store = repo.cloud.get_remote_odb(name)
            _first(store)
        except Exception as error:  # each file system raises its own
            reason = without_login(" ".join(str(error).split()) or type(error).__name__)
            raise DvcError(f"DVC remote {name!r} cannot be reached: {reason}") from error


def push(root: Path, environment: Mapping[str, str] | None = None) -> None:
    """Send what the checkout has to the default remote: data, outputs and the run-cache.

    Args:
        root: the root of the DVC repository, or of an experiment's worktree.
        environment: what the command starts with; None: this process's.

    Raises:
        StageError: there is no default remote.
        DvcError: DVC could not.
    """
    require_remote(root)
    _dvc(root, environment, "push", "--run-cache")


def _first(store: Any) -> None:
    """Look into a store; a folder that is not there yet is none of its faults."""
    files = store.fs
    if files.protocol == "local":
        place = Path(store.path)
        above = next(folder for folder in (place, *place.parents) if folder.exists())
        if not os.access(above, os.W_OK):
            raise PermissionError(f"{above} may not be written to")
        return
    try:
        next(iter(files.ls(store.path, detail=False)), None)
    except FileNotFoundError:
        files.ls(store.path.split("/", 1)[0], detail=False)  # the bucket itself


def _dvc(root: Path, environment: Mapping[str, str] | None, *arguments: str) -> None:
    done = subprocess.run(
        [*_DVC, *arguments],
        cwd=root,
        env=stage_environment(os.environ if environment is None else environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR: ")), "")
        reason = without_login(said.removeprefix("ERROR: ") or " ".join(lines[-1:]))
        raise DvcError(f"dvc {' '.join(arguments)} in {root}: {reason}")
