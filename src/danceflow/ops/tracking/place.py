"""Where a project's store lies: beside the project, in the checkout that outlives the others.

Experiments work in git worktrees, or in folders of DVC, that are removed when they end; a store in
one of these would go with it. A worktree that the user made shares the store of the checkout it
was made from. The project need not be the top of its repository.
"""

import shlex
import subprocess
from pathlib import Path

from danceflow.errors import TrackingError
from danceflow.ops.files import write_text
from danceflow.paths import Paths

_DVC_EXPERIMENTS = (".dvc", "tmp", "exps")


def main_checkout(root: Path) -> Path:
    """Return the folder of the project that keeps the store of the one at ``root``.

    It is ``root`` itself, unless that is made for an experiment (by danceflow or by DVC), or lies
    in a git worktree that was made from another checkout in which the project is, too. A worktree
    of a bare repository keeps its own; so does one whose checkout has its git folder elsewhere
    (``--separate-git-dir``), as git does not record where that checkout is.

    Args:
        root: the project's folder in the checkout that is worked in.

    Raises:
        TrackingError: it lies in a worktree whose repository, or checkout, is gone.
    """
    root = root.resolve()
    started_from = _started_from(root)
    if started_from is not None:
        return main_checkout(started_from)
    top = _top(root)
    main = None if top is None else _main_worktree(top)
    if top is None or main is None:
        return root
    project = main / root.relative_to(top)
    return project if project.is_dir() else root


def mark_experiment(worktree: Path, checkout: Path) -> None:
    """Write down which checkout an experiment's worktree was made for.

    Args:
        worktree: the project's folder in the worktree.
        checkout: the project's folder in the checkout.
    """
    write_text(Paths(worktree).started_from, str(checkout.resolve()))


def git_says(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints in a folder; None: it fails, or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _started_from(root: Path) -> Path | None:
    """Return the project that an experiment at ``root`` was started from; None: it is none."""
    mark = Paths(root).started_from
    if mark.is_file():
        checkout = Path(mark.read_text(encoding="utf-8"))
        if not checkout.is_dir():
            raise TrackingError(f"{mark}: names {checkout}, which is not there; remove {root}")
        return checkout
    parts = root.parts
    for end in range(len(parts) - len(_DVC_EXPERIMENTS) + 1):
        if parts[end : end + len(_DVC_EXPERIMENTS)] == _DVC_EXPERIMENTS:
            break
    else:
        return None
    repository = Path(*parts[:end])  # DVC's, at the top of git's or below it
    copy, top = _top(root), _top(repository)
    experiments = repository.joinpath(*_DVC_EXPERIMENTS)
    if copy is None or top is None or not copy.is_relative_to(experiments):
        return repository
    return top / root.relative_to(copy)


def _top(root: Path) -> Path | None:
    """Return the top of the git checkout that a folder lies in; None: it lies in none."""
    for folder in (root, *root.parents):
        link = folder / ".git"
        if link.is_file() or (link / "HEAD").is_file():
            return folder
    return None


def _main_worktree(top: Path) -> Path | None:
    """Return the checkout that a git worktree was made from; None: there is none.

    Args:
        top: the top of a checkout, which is its own answer if it is no such worktree.
    """
    folder = _git_folder(top)
    if not folder.is_dir():
        raise TrackingError(
            f"{top / '.git'}: names {folder}, which is not there; if the repository was moved, "
            f"call `git worktree repair {shlex.quote(str(top))}` in it"
        )
    shared = folder / "commondir"
    if not shared.is_file():
        return top  # also of a submodule, or one with a separate git folder
    common = (folder / shared.read_text(encoding="utf-8").strip()).resolve()
    if _setting(common, "core.bare") == "true":
        return None
    told = _setting(common, "core.worktree")  # of a submodule
    candidate = common.parent if told is None else (common / told).resolve()
    return candidate if _git_folder(candidate) == common else None


def _git_folder(top: Path) -> Path:
    """Return the git folder that the ``.git`` of a checkout is, or names."""
    link = top / ".git"
    if not link.is_file():
        return link.resolve()
    named = link.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    return (top / named).resolve()


def _setting(folder: Path, name: str) -> str | None:
    """Return a setting of the repository in a git folder; None: it is not set."""
    return git_says(folder, f"--git-dir={folder}", "config", "--get", name)
