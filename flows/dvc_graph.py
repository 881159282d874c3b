"""DVC's graph and its files, read and set through DVC's own library.

Whether a stage is stale, what its outputs hash to and where they are cached is DVC's business;
``flows.dvc_stage`` runs its command.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import StageError, unknown_name
from danceflow.ops.files import disk_errors
from flows import dvc_command, dvc_temporaries


class DvcError(StageError):
    """DVC itself refused: no repository, an invalid ``dvc.yaml``, a cycle, a broken lock file."""


@dataclass(frozen=True)
class StageNode:
    """One stage of DVC's graph; ``needs`` names the stages that must be up to date before it."""

    name: str
    needs: tuple[str, ...]
    frozen: bool


@dataclass(frozen=True)
class Holder:
    """A DVC command that reads or writes a file or folder now, which others may not change."""

    process_id: int
    command: str
    path: str


def stage_graph(root: Path, thawed: str | None = None) -> tuple[StageNode, ...]:
    """Return the stages of DVC's graph, each after everything it needs.

    Files tracked with ``dvc add`` have no command and are left out.

    Args:
        root: a folder of the DVC repository.
        thawed: a stage that counts as not frozen.

    Raises:
        DvcError: the folder is no DVC repository, its graph is invalid, or ``thawed`` is not in it.
    """
    with open_repository(root) as repo:
        graph = repo.index.graph
        stages = {_name(stage): stage for stage in graph.nodes if stage.cmd}
        needs = {
            name: tuple(sorted(_name(dep) for dep in graph.successors(stage) if dep.cmd))
            for name, stage in stages.items()
        }
        frozen = {name: bool(stage.frozen) and name != thawed for name, stage in stages.items()}
    if thawed is not None and thawed not in needs:
        raise DvcError(unknown_name("stage", thawed, needs))
    return tuple(StageNode(name, needs[name], frozen[name]) for name in _ordered(needs))


def ancestry(nodes: Sequence[StageNode], name: str) -> tuple[StageNode, ...]:
    """Return a stage and everything it needs, in the given order.

    Raises:
        DvcError: there is no such stage.
    """
    known = {node.name: node for node in nodes}
    if name not in known:
        raise DvcError(unknown_name("stage", name, known))
    wanted = {name}
    for node in reversed(nodes):  # a stage comes after everything it needs
        if node.name in wanted:
            wanted.update(node.needs)
    return tuple(node for node in nodes if node.name in wanted)


def changed_stages(root: Path, thawed: str | None = None) -> frozenset[str]:
    """Return the names of the stages whose inputs, outputs, parameters or command changed.

    A stage that is not named here and none of whose ancestors is named needs no command at all.
    When another DVC command holds the repository, every stage counts as changed.

    Args:
        root: a folder of the DVC repository.
        thawed: a stage that counts as not frozen.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    from dvc.lock import LockError
    from dvc.repo import lock_repo

    with open_repository(root) as repo, _quiet("dvc.repo.status"):
        names = {stage.addressing: _name(stage) for stage in repo.index.stages}
        try:
            with lock_repo(repo):  # which loads the stages anew
                for stage in repo.index.stages:
                    stage.frozen = stage.frozen and _name(stage) != thawed
                status = repo.status()
        except LockError:
            return frozenset(names.values())
        return frozenset(names[address] for address in status)


def reasons(root: Path) -> dict[str, tuple[str, ...]]:
    """Return why stages are stale, by name; parameters apart, which ``locked_parameters`` tells.

    Args:
        root: a folder of the DVC repository.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    with open_repository(root) as repo, _quiet("dvc.repo.status"):
        names = {stage.addressing: _name(stage) for stage in repo.index.stages}
        found = {names[address]: tuple(_lines(item)) for address, item in repo.status().items()}
    return {name: lines for name, lines in found.items() if lines}


def locked_parameters(root: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters that each stage ran with last, by stage and dotted name.

    Args:
        root: a folder of the DVC repository.
    """
    from dvc.utils.serialize import load_yaml

    lock = root / "dvc.lock"
    stages = load_yaml(str(lock))["stages"] if lock.is_file() else {}
    return {
        name: dict(entry.get("params", {}).get("params.yaml", {})) for name, entry in stages.items()
    }


def _lines(entries: Sequence[Any]) -> Iterator[str]:
    """Give a sentence for everything that DVC says of a stage, but for its parameters."""
    words = {"changed deps": "its input", "changed outs": "its result"}
    states = {"deleted": "is missing", "not in cache": "is missing", "new": "is new"}
    for entry in entries:
        if isinstance(entry, str):
            yield f"its {entry.removeprefix('changed ')} changed"
            continue
        for kind, paths in entry.items():
            for path, state in paths.items():
                if isinstance(state, str):
                    yield f"{words.get(kind, kind)} {path} {states.get(state, 'changed')}"


def holders(root: Path) -> tuple[Holder, ...]:
    """Return the DVC commands that hold files of the repository; none that is gone is among them.

    DVC itself forgets a command whose process is gone, but not one whose number another process
    has by now, as is usual in containers. Such entries are removed here.

    Args:
        root: the root of the DVC repository.

    Raises:
        DvcError: DVC cannot read its list.
    """
    from dvc import rwlock

    with open_repository(root) as repo:
        hardlink = repo.config["core"].get("hardlink_lock", False)
        with rwlock._edit_rwlock(repo.tmp_dir, repo.fs, hardlink) as lists:
            written = {path: [entry] for path, entry in lists["write"].items()}
            kept: list[Holder] = []
            for kind, entries in (("write", written), ("read", dict(lists["read"]))):
                for path, found in entries.items():
                    alive = [item for item in found if _is_running(item["pid"], item["cmd"])]
                    kept += [Holder(item["pid"], item["cmd"], path) for item in alive]
                    if not alive:
                        del lists[kind][path]
                    elif kind == "read":
                        lists[kind][path] = alive
    return tuple(kept)


def experiments(root: Path) -> list[dict[str, Any]]:
    """Return a mapping of DVC's columns for the present state, the last commit and its experiments.

    What a row does not have is None.

    Args:
        root: a folder of the DVC repository.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    import dvc.api
    from dvc.exceptions import DvcException

    try:
        rows: list[dict[str, Any]] = dvc.api.exp_show(str(root))
    except DvcException as error:
        raise DvcError(f"DVC in {root}: {_chain(error)}") from error
    # DVC's words for a file that lacks the value and for one that cannot be read.
    return [
        {name: None if value in ("None", "!") else value for name, value in row.items()}
        for row in rows
    ]


def _is_running(process_id: int, command: str) -> bool:
    """Return whether a process lives and may be the one that was started as ``command``."""
    import psutil

    try:
        words = " ".join(psutil.Process(process_id).cmdline())
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False
    # What DVC notes begins with the program's file where the process has `python -m dvc`.
    return "dvc" in words or words.endswith(command.partition(" ")[2])


def remove_temporaries(root: Path, num_days: float | None = None) -> dict[Path, int]:
    """Return the temporary files of DVC's cache that nobody writes any more, now removed.

    Args:
        root: a folder of the DVC repository.
        num_days: as ``dvc_temporaries.remove_left``.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    with open_repository(root) as repo:
        return dvc_temporaries.remove_left(Path(repo.cache.local_cache_dir), num_days)


def tidy(root: Path, report: Callable[[str], object]) -> None:
    """Remove what killed commands left in DVC's cache, and say so in one line.

    Args:
        root: a folder of the DVC repository.
        report: takes the line.

    Raises:
        DvcError: DVC cannot read the repository.
    """
    if left := remove_temporaries(root):
        size = sum(left.values()) / 1e6
        report(
            f"removed {len(left)} temporary files of killed commands from DVC's cache "
            f"({size:.1f} MB)"
        )


def checkout_sources(root: Path) -> None:
    """Bring the files tracked with ``dvc add`` into ``root`` from the cache (a fresh worktree).

    Args:
        root: the root of the DVC repository.

    Raises:
        DvcError: a file is not in the cache.
    """
    with open_repository(root) as repo:
        targets = [stage.path for stage in repo.index.stages if stage.is_data_source]
        if targets:
            repo.checkout(targets=targets, force=True)


def share_cache(root: Path, worktree: Path) -> None:
    """Let a worktree use the checkout's cache and its local settings.

    Args:
        root: the root of the DVC repository in the checkout.
        worktree: its counterpart in the worktree; only its ``.dvc/config.local`` is written.

    Raises:
        DvcError: DVC cannot read one of the two.
    """
    with open_repository(root) as main, open_repository(worktree) as repo:
        local = main.config.read("local")  # with absolute paths
        with repo.config.edit("local") as config:
            for section, values in local.items():
                config.setdefault(section, {}).update(values)
            config.setdefault("cache", {})["dir"] = main.cache.local_cache_dir


def write_parameters(path: Path, values: Mapping[str, object]) -> None:
    """Set dotted keys in a YAML parameter file in place, keeping its comments and order.

    Args:
        path: the parameter file.
        values: dotted key to value; the keys exist (``config.load_params`` checks them before).
    """
    from dvc.utils.serialize import modify_yaml

    with modify_yaml(path) as document:
        for key, value in values.items():
            *parents, last = key.split(".")
            section = document
            for parent in parents:
                section = section[parent]
            section[last] = value
        _quote(document)


def _quote(node: Any) -> None:
    """Keep the quotes of strings like "1:1" in lists, without which DVC cannot read ``[1:1]``."""
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(value, dict | list):
            _quote(value)
        elif isinstance(node, list) and isinstance(value, str) and ":" in value:
            node[key] = DoubleQuotedScalarString(value)


def _name(stage: Any) -> str:
    """Return how ``dvc repro``, called at the repository's root, names the stage."""
    if not stage.cmd:
        return str(stage.path_in_repo)
    return stage.name if stage.path_in_repo == "dvc.yaml" else f"{stage.path_in_repo}:{stage.name}"


@contextlib.contextmanager
def open_repository(root: Path) -> Iterator[Any]:
    """Open the DVC repository; DVC's own exceptions leave as ``DvcError``.

    Raises:
        DiskSpaceError: There is no room, named by its place.
        DvcError: DVC or the system refuses.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    dvc_command.write_whole()
    dvc_command.look_at_objects()
    dvc_command.end_without_room()
    dvc_temporaries.leave_none()
    try:
        with Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        raise DvcError(f"DVC in {root}: {_chain(error)}") from error
    except OSError as error:
        try:
            with disk_errors(Path(error.filename or root / ".dvc")):
                raise
        except OSError:
            raise DvcError(f"DVC in {root}: {error}") from error


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger's warnings back: a stage is frozen on purpose."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _chain(error: BaseException) -> str:
    """Return the messages of an exception and its causes, the nearest first."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = str(current).strip()
        if text and text not in parts:
            parts.append(text)
        current = current.__cause__
    return ": ".join(parts) or type(error).__name__


def _ordered(needs: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the names with each after its needs, otherwise in the given order (Kahn, stable)."""
    order: list[str] = []
    left = dict(needs)
    while left:
        ready = next(name for name, need in left.items() if not any(item in left for item in need))
        order.append(ready)
        del left[ready]
    return order
