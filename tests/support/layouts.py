"""Every way that git has to lay out a checkout, with a project in it."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BELOW = Path("team") / "project"  # below the top of a repository


@dataclass(frozen=True)
class Layout:
    """A project in a checkout.

    Attributes:
        project: where it is worked in.
        home: where its store belongs.
    """

    project: Path
    home: Path


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints."""
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"git {arguments} in {folder}: {done.stderr}"
    return done.stdout.strip()


def _repository(top: Path, source: Path, below: Path = Path(), *options: str) -> Path:
    """Make a repository with the project and return the project's folder."""
    top.mkdir(parents=True)
    git(top, "init", "--quiet", "--initial-branch", "main", *options)
    shutil.copytree(source, top / below, dirs_exist_ok=True)
    git(top, "add", "--all")
    git(top, "commit", "--quiet", "--allow-empty", "--message", "project")
    return top / below


def _worktree(checkout: Path, tree: Path) -> Path:
    git(checkout, "worktree", "add", "--quiet", "--detach", str(tree), "main")
    return tree


def no_git(folder: Path, source: Path) -> Layout:
    shutil.copytree(source, folder / "project")
    return Layout(folder / "project", folder / "project")


def top(folder: Path, source: Path) -> Layout:
    project = _repository(folder / "main", source)
    return Layout(project, project)


def monorepo(folder: Path, source: Path) -> Layout:
    project = _repository(folder / "main", source, BELOW)
    return Layout(project, project)


def _submodule(folder: Path, source: Path, below: Path) -> Path:
    _repository(folder / "library", source, below)
    super_project = folder / "super"
    super_project.mkdir()
    git(super_project, "init", "--quiet", "--initial-branch", "main")
    local = ("-c", "protocol.file.allow=always")
    git(super_project, *local, "submodule", "--quiet", "add", str(folder / "library"), "sub")
    git(super_project, "commit", "--quiet", "--message", "submodule")
    return super_project / "sub"


def submodule(folder: Path, source: Path) -> Layout:
    project = _submodule(folder, source, Path())
    return Layout(project, project)


def submodule_below(folder: Path, source: Path) -> Layout:
    project = _submodule(folder, source, BELOW) / BELOW
    return Layout(project, project)


def separate_git_dir(folder: Path, source: Path) -> Layout:
    apart = f"--separate-git-dir={folder / 'apart.git'}"
    project = _repository(folder / "main", source, BELOW, apart)
    return Layout(project, project)


def linked(folder: Path, source: Path) -> Layout:
    main = _repository(folder / "main", source)
    return Layout(_worktree(main, folder / "tree"), main)


def linked_below(folder: Path, source: Path) -> Layout:
    project = _repository(folder / "main", source, BELOW)
    return Layout(_worktree(folder / "main", folder / "tree") / BELOW, project)


def linked_with_own_settings(folder: Path, source: Path) -> Layout:
    project = _repository(folder / "main", source, BELOW)
    git(folder / "main", "config", "extensions.worktreeConfig", "true")
    return Layout(_worktree(folder / "main", folder / "tree") / BELOW, project)


def linked_to_a_submodule(folder: Path, source: Path) -> Layout:
    sub = _submodule(folder, source, BELOW)
    return Layout(_worktree(sub, folder / "tree") / BELOW, sub / BELOW)


def linked_to_a_separate_git_dir(folder: Path, source: Path) -> Layout:
    separate_git_dir(folder, source)
    project = _worktree(folder / "main", folder / "tree") / BELOW
    return Layout(project, project)


def linked_to_another_branch(folder: Path, source: Path) -> Layout:
    """The main checkout is on a branch that has no such project."""
    _repository(folder / "main", source, BELOW)
    project = _worktree(folder / "main", folder / "tree") / BELOW
    git(folder / "main", "switch", "--quiet", "--orphan", "other")
    shutil.rmtree(folder / "main" / BELOW.parts[0], ignore_errors=True)
    return Layout(project, project)


def bare(folder: Path, source: Path) -> Layout:
    _repository(folder / "source", source, BELOW)
    git(folder, "clone", "--quiet", "--bare", "source", "bare.git")
    project = _worktree(folder / "bare.git", folder / "tree") / BELOW
    return Layout(project, project)


def bare_inside(folder: Path, source: Path) -> Layout:
    """The bare repository is called ``.git`` and the worktrees lie beside it."""
    _repository(folder / "source", source)
    git(folder, "clone", "--quiet", "--bare", "source", "all/.git")
    project = _worktree(folder / "all", folder / "all" / "tree")
    return Layout(project, project)


LAYOUTS: dict[str, Callable[[Path, Path], Layout]] = {
    make.__name__: make
    for make in (
        no_git,
        top,
        monorepo,
        submodule,
        submodule_below,
        separate_git_dir,
        linked,
        linked_below,
        linked_with_own_settings,
        linked_to_a_submodule,
        linked_to_a_separate_git_dir,
        linked_to_another_branch,
        bare,
        bare_inside,
    )
}
