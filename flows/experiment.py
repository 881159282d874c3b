"""Runs with other parameters: in a git worktree of their own, kept as DVC experiments.

The user's checkout is not touched: no file of it changes, and it may be worked on meanwhile.
Changes that are not committed yet go along, as they do with ``dvc exp run``; files that git does
not know stay behind, and are named. (Running the last commit instead would quietly measure other
code than the user sees; refusing would make every small trial a commit.)

The worktree shares DVC's cache and run-cache and the rolling checkpoints with the checkout, so
nothing is computed twice and an interrupted experiment goes on where it was.
"""

import contextlib
import logging
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import DataError, StageError, UsageError
from danceflow.ops.files import exclusive_if_free, fingerprint, lock_of
from danceflow.ops.runtime import git_identity
from danceflow.ops.tracking import holds_login, mark_experiment
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from flows import dvc_graph, dvc_stage

_LOG = logging.getLogger(__name__)

# refs/exps/<the baseline's commit, in two parts>/<name>; refs/exps/exec/ is DVC's own.
_REF = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38,})/([^/]+)")
# What git sets for its hooks: it would lead away from the folder that a command is called in.
_GIT_PLACES = (
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)
_KEPT = "refs/exps/*/*/*"
_LOCK = "dvc.lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Proposal:
    """An experiment that was checked and may be started.

    Attributes:
        name: its name in ``dvc exp show``.
        recipe: a complete params file in place of the checkout's; None: the checkout's.
        overrides: new values by dotted name.
        params: the parameters that result.
    """

    name: str
    recipe: Path | None
    overrides: Mapping[str, Any]
    params: Params


@dataclass(frozen=True)
class Experiment:
    """A worktree that an experiment runs in.

    Attributes:
        name: the experiment's name.
        root: the worktree's counterpart of the checkout.
        environment: what its processes start with.
        checkout: the user's.
        is_clone: whether it is a repository of its own instead of a worktree.
    """

    name: str
    root: Path
    environment: Mapping[str, str]
    checkout: Path
    is_clone: bool

    def save(
        self,
        stages: Sequence[str] = (),
        untracked: Sequence[Path] = (),
        message: str | None = None,
    ) -> None:
        """Keep the worktree's present state as a DVC experiment.

        Args:
            stages: those whose outputs are there, where not all of them ran; none: all.
            untracked: files that git does not know yet and that belong to it.
            message: of the experiment's commit; None: DVC's.

        Raises:
            DvcError: DVC could not.
            StageError: git could not.
        """
        names = list(untracked)
        lock = self.root / _LOCK
        if lock.is_file() and _git(self.root, "ls-files", "--", _LOCK) == "":
            names.append(lock)  # DVC looks for it at the top of git's repository alone
        dvc_stage.save_experiment(self.root, self.name, self.environment, stages, names, message)
        if self.is_clone:
            refs = _git(self.root, "for-each-ref", "--format=+%(refname):%(refname)", _KEPT)
            found = [ref for ref in refs.splitlines() if ref.endswith(f"/{self.name}")]
            _git(self.checkout, "fetch", "--quiet", "--no-tags", _common(self.root), *found)


@dataclass(frozen=True)
class Kept:
    """An experiment that was saved: its commit, and the commit it started from."""

    name: str
    commit: str
    baseline: str


def plan(
    root: Path, recipe: Path | None, overrides: Mapping[str, Any] | None, name: str | None
) -> Proposal:
    """Return a checked experiment; nothing has been made for it yet.

    Args:
        root: the user's checkout.
        recipe: a complete params file; None: the checkout's.
        overrides: new values by dotted name.
        name: the experiment's name; None: made from the recipe's name and the parameters, so that
            the same experiment has the same name.

    Raises:
        ConfigError: the parameters are wrong.
        UsageError: the name cannot be one, a parameter holds a login, or the checkout has no
            commit to start from.
    """
    source = Paths(root).params if recipe is None else recipe.resolve()
    values = dict(overrides or {})
    data = override(read_yaml(source), values)
    require_no_login(data, str(source))
    params = parse_params(data, f"{source} with overrides" if values else str(source))
    if name is None:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", "run" if recipe is None else recipe.stem)
        name = f"{stem.strip('-') or 'run'}-{fingerprint(data)[:8]}"
    if not _NAME.fullmatch(name):
        raise UsageError(f"experiment name {name!r}: use letters, digits, dots, - and _")
    if _git(root, "rev-parse", "--verify", "--quiet", "HEAD", check=False) == "":
        raise UsageError(f"{root}: an experiment starts from a commit, and there is none yet")
    needed = [Paths(root).graph.name, Paths(root).params.name]
    if unknown := set(needed).difference(_git(root, "ls-files", "--", *needed).splitlines()):
        raise UsageError(
            f"{root}: git does not know {' and '.join(sorted(unknown))}, and an experiment takes "
            "only what git knows: git add them"
        )
    return Proposal(name, None if recipe is None else source, values, params)


def require_no_login(data: Mapping[str, Any], source: str) -> None:
    """Raise UsageError where a parameter of an experiment holds a password or a token.

    Git keeps the parameters of every experiment, and Prefect those of every flow.

    Args:
        data: a params file's data, or new values by dotted name.
        source: where they come from, for messages.
    """
    for name, text in _texts(data):
        if holds_login(text):
            raise UsageError(
                f"{source}: {name}: holds a login or a token, and an experiment's parameters are "
                "kept; leave it out, and give MLflow's in the environment: MLFLOW_TRACKING_URI, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )


def _texts(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def kept_experiments(root: Path) -> tuple[Kept, ...]:
    """Return the experiments that were saved in a repository, the latest first.

    Args:
        root: the checkout.
    """
    shown = "--format=%(objectname) %(refname)"
    listed = _git(root, "for-each-ref", "--sort=-creatordate", shown, "refs/exps")
    found = []
    for line in listed.splitlines():
        commit, _, ref = line.partition(" ")
        if place := _REF.fullmatch(ref):
            found.append(Kept(place[3], commit, place[1] + place[2]))
    return tuple(found)


def kept_file(root: Path, kept: Kept, path: str) -> str | None:
    """Return the text of a file of a saved experiment, None where it has none.

    Args:
        root: the checkout.
        kept: the experiment.
        path: relative to the checkout.
    """
    if _git(root, "ls-tree", "--name-only", kept.commit, path) == "":
        return None
    return _git(root, "show", f"{kept.commit}:./{path}")


def entries(root: Path, tree: str) -> dict[str, str]:
    """Return the git object of every file and folder at the checkout's top, by name.

    Args:
        root: the checkout.
        tree: a snapshot, or a commit.
    """
    lines = _git(root, "ls-tree", tree).splitlines()
    return {line.partition("\t")[2]: line.partition("\t")[0] for line in lines}


@contextlib.contextmanager
def experiment(
    root: Path,
    plan: Proposal,
    tree: str | None = None,
    lock: contextlib.AbstractContextManager[object] | None = None,
) -> Iterator[Experiment]:
    """Give a worktree with the experiment's parameters; it is removed when the block is left.

    Args:
        root: the user's checkout.
        plan: what ``plan`` returned.
        tree: what ``snapshot`` returned, where several experiments start from one; None: now.
        lock: held while the worktree is made and removed, where others are made beside it.

    Raises:
        DataError: a link in the raw data leads nowhere.
        StageError: git or DVC could not set the worktree up.
    """
    check_raw(root)
    paths = Paths(root)
    folder = paths.worktrees / f"{plan.name}.{secrets.token_hex(4)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root, folder.parent)
    environment = {**_surroundings(), "DVC_EXP_NAME": plan.name}
    environment.update(git_identity(environment, root))
    tree = snapshot(root) if tree is None else tree
    lock = contextlib.nullcontext() if lock is None else lock
    is_clone = _git(root, "config", "--get", "core.worktree", check=False) != ""
    with exclusive_if_free(folder):  # its name is new: nobody else has it
        try:
            with lock:
                _add_tree(root, folder, is_clone=is_clone)
                _git(folder, "read-tree", "-u", "--reset", tree)
                inside = folder / _git(root, "rev-parse", "--show-prefix")
                mark_experiment(inside, root)
                dvc_graph.share_cache(root, inside)
                _share_work(paths, Paths(inside))
                if plan.recipe is not None:
                    shutil.copyfile(plan.recipe, Paths(inside).params)
                dvc_graph.write_parameters(Paths(inside).params, plan.overrides)
                dvc_graph.checkout_sources(inside)
                _share_raw(paths.raw, Paths(inside).raw)
            yield Experiment(plan.name, inside, environment, root, is_clone)
        finally:
            with lock:
                _remove(root, folder)
            lock_of(folder).unlink(missing_ok=True)


def check_raw(root: Path) -> None:
    """Check what DVC will meet below a checkout's raw data; a link to a folder is told in the log.

    Args:
        root: the checkout.

    Raises:
        DataError: links lead nowhere, and DVC can hash no folder with such a one in it; or there
            are pipes or devices, behind links too, which it would read for ever.
    """
    raw = Paths(root).raw
    places = [Path(at) / name for at, *both in os.walk(raw) for names in both for name in names]
    links = sorted(place for place in [raw, *places] if place.is_symlink())
    if dead := [f"{link} (to {link.readlink()})" for link in links if not link.exists()]:
        raise DataError(f"{_some(dead)}: a link that leads nowhere; mend it or remove it")
    if odd := [str(place) for place in sorted(places) if not (place.is_file() or place.is_dir())]:
        raise DataError(f"{_some(odd)}: neither a file nor a folder; remove it")
    if folders := [str(link) for link in links if link != raw and link.is_dir()]:
        _LOG.warning(
            "%s: a link to a folder. DVC does not look behind it: after a change there, "
            "`dvc repro --force prepare`",
            _some(folders),
        )


def snapshot(root: Path) -> str:
    """Return a git tree with the checkout's present content of every file that git knows.

    It is made in an index of its own: neither the user's index nor any file changes.

    Args:
        root: the user's checkout.
    """
    untracked = _git(root, "ls-files", "--others", "--exclude-standard")
    if untracked:
        names = untracked.splitlines()
        _LOG.warning("not part of the experiment, as git does not know them: %s", _some(names))
    present = Path(_git(root, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    with tempfile.TemporaryDirectory(prefix="danceflow-") as folder:
        index = Path(folder) / "index"
        if present.is_file():
            shutil.copyfile(present, index)
        environment = {**_surroundings(), "GIT_INDEX_FILE": str(index)}
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        _git(top, "add", "--update", environment=environment)
        return _git(top, "write-tree", environment=environment)


def _add_tree(root: Path, folder: Path, *, is_clone: bool) -> None:
    """Make a worktree of the checkout's commit, without its files yet.

    A submodule's settings name its place, which git knows to be that of the submodule alone and
    DVC takes for the place of every worktree: there it is a clone, which shares all objects.
    """
    if not is_clone:
        _git(root, "worktree", "add", "--quiet", "--detach", "--no-checkout", str(folder), "HEAD")
        return
    _git(root, "clone", "--quiet", "--shared", "--no-checkout", _common(root), str(folder))
    _git(folder, "update-ref", "--no-deref", "HEAD", _git(root, "rev-parse", "HEAD"))


def _common(folder: Path) -> str:
    """Return the git folder that a checkout's worktrees share."""
    return _git(folder, "rev-parse", "--path-format=absolute", "--git-common-dir")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _share_work(main: Paths, inside: Paths) -> None:
    """Let the worktree use the checkout's rolling checkpoints, which are named by their inputs."""
    target = main.work("any").parent
    link = inside.work("any").parent
    target.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=True)


def _share_raw(main: Path, inside: Path) -> None:
    """Let the worktree read the raw data that git does not know.

    Files are hard links where the disk allows it. A link stays a link, as DVC, which follows links
    to files and not those to folders, then finds what it finds in the checkout.
    """
    if main.is_symlink() and not os.path.lexists(inside):
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.symlink_to(main.resolve())
    elif main.is_dir():
        inside.mkdir(parents=True, exist_ok=True)
        _share_folder(main.resolve(), inside.resolve(), Path())


def _share_folder(main: Path, inside: Path, below: Path) -> None:
    """Share a folder of the raw data.

    Args:
        main: the resolved place of the checkout's raw data.
        inside: that of the worktree's.
        below: the folder, relative to both.
    """
    for item in sorted((main / below).iterdir()):
        place = inside / below / item.name
        if item.is_dir() and not item.is_symlink():
            if not item.with_name(f"{item.name}.dvc").exists():  # else it comes from the cache
                place.mkdir(exist_ok=True)
                _share_folder(main, inside, below / item.name)
        elif os.path.lexists(place):
            continue
        elif item.is_symlink():
            target = item.resolve()
            is_within = target.is_relative_to(main)
            place.symlink_to(inside / target.relative_to(main) if is_within else target)
        else:
            _link_or_copy(item, place)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def _remove(root: Path, folder: Path) -> None:
    """Remove a worktree, also one that was set up only in part."""
    _git(root, "worktree", "remove", "--force", "--force", str(folder), check=False)
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    _git(root, "worktree", "prune", check=False)


def _remove_leftovers(root: Path, parent: Path) -> None:
    """Remove the worktrees of processes that were killed.

    A process that works in one has its lock, which ends with the process, whatever its number and
    whichever container it runs in.
    """
    places = list(parent.iterdir())
    for folder in {place.with_suffix("") if place.is_file() else place for place in places}:
        with exclusive_if_free(folder) as is_left:
            if is_left and folder.exists():
                _remove(root, folder)


def _surroundings() -> dict[str, str]:
    """Return this process's environment without what would lead git to another repository."""
    return {name: value for name, value in os.environ.items() if name not in _GIT_PLACES}


def _git(
    folder: Path,
    *arguments: str,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Return what a git command prints; an empty text when it fails and need not succeed."""
    try:
        process = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=dict(_surroundings() if environment is None else environment),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise StageError(f"git in {folder}: {error}") from error
    if process.returncode == 0:
        return process.stdout.strip()
    if check:
        raise StageError(f"git {arguments[0]} in {folder}: {process.stderr.strip()}")
    return ""
