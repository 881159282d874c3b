"""The checkout: git, DVC, permissions, and what killed processes left."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from danceflow.errors import DanceflowError
from danceflow.ops.files import exclusive_if_free
from danceflow.ops.tracking.place import git_says
from danceflow.paths import Paths
from flows import dvc_remote
from flows.doctor.finding import Finding, fail, ok, warn
from flows.team.private import is_private

_NAMED = 4
_LOCK_S = 60.0
"""After so many seconds a lock of git is no longer that of a command that is running."""


def git_state(root: Path) -> Iterator[Finding]:
    """Yield what git says of the checkout.

    Args:
        root: the checkout.
    """
    if git_says(root, "rev-parse", "--is-inside-work-tree") != "true":
        text = f"{root} is no git checkout: runs cannot say which code they come from"
        yield fail("git", text, "git init, or clone the project")
        return
    head = git_says(root, "rev-parse", "--short", "HEAD")
    if head is None:
        yield fail("git", "there is no commit yet", "git add --all && git commit")
        return
    branch = git_says(root, "symbolic-ref", "--quiet", "--short", "HEAD")
    if branch is None:
        text = f"HEAD is detached at {head}: new commits belong to no branch"
        yield warn("git", text, "git switch -c NAME")
    else:
        yield ok("git", f"branch {branch} at {head}")
    if changed := git_says(root, "status", "--porcelain", "--untracked-files=no"):
        names = [line[2:].strip() for line in changed.splitlines()]
        text = f"changed and not committed: {_some(names)}"
        yield warn("git", text, "git commit, so that runs can be made again")
    if git_says(root, "rev-parse", "--is-shallow-repository") == "true":
        text = "the clone is shallow: experiments of older commits are not found"
        yield warn("git", text, "git fetch --unshallow")
    if git_says(root, "var", "GIT_COMMITTER_IDENT") is None:
        text = "git does not know who you are"
        yield warn("git", text, "git config user.name NAME; git config user.email ADDRESS")


def dvc_state(root: Path) -> Iterator[Finding]:
    """Yield whether DVC's settings can be read and its remotes reached.

    Args:
        root: the checkout.
    """
    try:
        found = dvc_remote.remotes(root)
    except DanceflowError as error:
        yield fail("dvc", str(error), "dvc doctor; git checkout .dvc")
        return
    if not found:
        text = "no remote: data, caches and results lie on this machine alone"
        yield warn("dvc", text, "dvc remote add --default NAME URL (docs/howto/team.md)")
    elif not any(remote.is_default for remote in found):
        names = _some([remote.name for remote in found])
        yield warn("dvc", f"no default among {names}", f"dvc remote default {found[0].name}")
    for remote in found:
        try:
            dvc_remote.reach(root, remote.name)
        except DanceflowError as error:
            advice = "is it running, is its address right, are its keys in the environment?"
            yield fail("dvc remote", f"{remote.name} at {remote.url}: {error}", advice)
        else:
            yield ok("dvc remote", f"{remote.name} at {remote.url}")


def permissions(root: Path) -> Iterator[Finding]:
    """Yield what this user may not write, and what others may read and should not.

    Args:
        root: the checkout.
    """
    paths = Paths(root)
    places = (root, root / ".git", root / ".dvc", paths.scratch, paths.reports)
    closed = [str(place) for place in places if place.exists() and not os.access(place, os.W_OK)]
    if closed:
        advice = f"chown -R {os.geteuid()} {root}, or work as its owner"
        yield fail("permissions", f"may not be written to: {_some(closed)}", advice)
    secret = [root / ".env", *sorted(paths.team.glob("passwords.json")), paths.team / "env"]
    opened = [str(place) for place in secret if place.is_file() and not is_private(place)]
    if opened:
        text = f"others may read {_some(opened)}"
        yield fail("permissions", text, f"chmod 600 {' '.join(opened)}")
    if not closed and not opened:
        yield ok("permissions", "the checkout may be written to, and secrets are private")


def leftovers(root: Path) -> Iterator[Finding]:
    """Yield what processes that are gone have left: worktrees, locks, half-written files.

    Args:
        root: the checkout.
    """
    paths, found = Paths(root), 0
    dead = []
    for place in sorted(item for item in paths.worktrees.glob("*.*") if item.is_dir()):
        with exclusive_if_free(place) as is_left:  # whoever works in it has its lock
            if is_left:
                dead.append(place.name)
    if dead:
        found += 1
        text = f"worktrees of experiments that were killed: {_some(dead)}"
        yield warn("leftovers", text, "the next danceflow run with a recipe removes them")
    listed = git_says(root, "worktree", "list", "--porcelain") or ""
    gone = [block.split("\n")[0] for block in listed.split("\n\n") if "\nprunable" in block]
    if gone:
        found += 1
        names = _some([line.removeprefix("worktree ") for line in gone])
        yield warn("leftovers", f"git lists worktrees that are gone: {names}", "git worktree prune")
    folder = git_says(root, "rev-parse", "--path-format=absolute", "--git-dir")
    lock = Path(folder or root / ".git") / "index.lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > _LOCK_S:
        found += 1
        text = f"{lock} is there since a git command was killed: every other one refuses"
        yield fail("leftovers", text, f"if no git command runs: rm {lock}")
    if not found:
        yield ok("leftovers", "none")


def clock(root: Path) -> Iterator[Finding]:
    """Yield whether this machine's clock can be right: later than the last commit.

    Args:
        root: the checkout.
    """
    committed = git_says(root, "log", "-1", "--format=%ct")
    if committed and int(committed) - time.time() > _LOCK_S:
        hours = (int(committed) - time.time()) / 3600
        text = f"this machine's clock is {hours:.1f} h behind the last commit"
        yield fail("clock", text, "set it: timedatectl set-ntp true")


def git_version() -> Iterator[Finding]:
    """Yield whether there is git."""
    try:
        done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        yield fail("git", f"git does not run: {error}", "install git")
    else:
        yield ok("git", done.stdout.strip())


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
