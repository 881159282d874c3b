"""DVC's own command line, run as ``python -m flows.dvc_command``, kinder to a checkout.

- ``--thaw NAME``, before everything else, takes a stage as not frozen within this process.
  ``dvc.yaml`` stays as it is: who edits it and is killed leaves a graph in which the next
  ``dvc repro`` would run the stage.
- ``dvc.lock`` and the list of who reads and writes what (``rwlock``) are written as every file of
  the project: all of it or nothing. DVC empties the file and then writes it, and a process killed
  in between leaves none or half of it. With half a list no DVC command works any more.
- An object of the cache is looked at by its hash before it is used. DVC takes the content of every
  write-protected file for what its name says, and would bring a damaged one back as a result. One
  that differs is named and removed, and its stage runs again.
- What could not be copied is removed, and a temporary file says who writes it
  (``flows.dvc_temporaries``).
- A full disk ends a command with one error that names the file. DVC's record of what it has hashed
  asks a database for ever that has no room, and an error of a file that is open names none.
- ``push --run-cache`` sends what git keeps, too, as far as the run-cache restores it. DVC leaves it
  out, and a clone without this lock would execute the stage although the run-cache knows it.
"""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from danceflow.errors import DiskSpaceError
from danceflow.ops.files import atomic_file, disk_errors
from flows import dvc_temporaries

THAW = "--thaw"
_LOG = logging.getLogger("dvc.danceflow")  # DVC shows what its own loggers say


def main(arguments: Sequence[str]) -> int:
    """Return the exit code of a DVC command.

    Args:
        arguments: what stands behind ``dvc``, perhaps after ``--thaw NAME``.
    """
    from dvc.cli import main as dvc

    write_whole()
    look_at_objects()
    end_without_room()
    dvc_temporaries.leave_none()
    send_what_git_keeps()
    if arguments and arguments[0] == THAW:
        _thaw(arguments[1])
        arguments = arguments[2:]
    return int(dvc(list(arguments)))


@functools.cache
def write_whole() -> None:
    """Let DVC within this process write its files whole, and read past half of a list."""
    from dvc import dvcfile, rwlock

    dvcfile.modify_yaml = _modify_yaml
    edit = rwlock._edit_rwlock
    rwlock._edit_rwlock = lambda folder, fs, hardlink: edit(folder, _Whole(fs), hardlink)


@functools.cache
def look_at_objects() -> None:
    """Let DVC within this process compare an object's content with its name, whatever its mode.

    DVC's own record of what it has hashed is used: a file is read again when its time, size or
    place on the disk changed.
    """
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_objects.errors import ObjectFormatError

    def check(self: Any, oid: str, check_hash: bool = True, _info: Any = None) -> Any:
        try:
            return HashFileDB.check(self, oid, check_hash, _info)
        except ObjectFormatError:
            _LOG.warning(
                "%s: an object of DVC's cache was damaged (its MD5 differs); it was removed, and "
                "is made again where it is needed",
                self.oid_to_path(oid),
            )
            raise

    local: Any = LocalHashFileDB
    local.check = check


@functools.cache
def end_without_room() -> None:
    """Let a DVC command within this process end where there is no room, and name the place.

    The package below DVC's databases takes every refusal to begin for a lock that somebody holds,
    and tries again without end. What is no lock is raised as what it is.
    """
    from dvc import cli
    from dvc_data.hashfile.cache import Cache

    sql: Any = Cache._sql
    tell: Callable[[Exception], int | None] = cli._log_exceptions

    def asked(self: Any) -> Callable[..., Any]:
        execute = sql.fget(self)

        def call(*arguments: Any) -> Any:
            try:
                return execute(*arguments)
            except sqlite3.OperationalError as error:
                place, kind = str(self.directory), error.sqlite_errorcode & 0xFF
                if kind not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                    raise
                # Where its list of pages in memory cannot grow, SQLite speaks of input and output.
                is_full = kind == sqlite3.SQLITE_FULL or not os.statvfs(place).f_bavail
                number = errno.ENOSPC if is_full else errno.EIO
                raise OSError(number, os.strerror(number), place) from error

        return call

    def told(error: Exception) -> int | None:
        place = error.filename if isinstance(error, OSError) else None
        try:
            with disk_errors(Path(place or ".dvc")):
                raise error
        except DiskSpaceError as full:
            _LOG.error("%s; make room and run the same command again", full)
            return None
        except Exception:
            return tell(error)

    database: Any = Cache
    database._sql = property(asked)
    cli._log_exceptions = told


@functools.cache
def send_what_git_keeps() -> None:
    """Let DVC within this process send outputs without a cache with the run-cache.

    Their content lies in the local cache since the stage ran: the run-cache restores it from there.
    """
    from dvc.exceptions import UploadError
    from dvc.stage.cache import StageCache

    push = StageCache.push

    def push_all(self: Any, remote: str | None, odb: Any = None) -> Any:
        sent = push(self, remote, odb)
        local = self.repo.cache.local
        kept = {
            out.hash_info
            for out in self.repo.index.outs
            if not out.use_cache and out.hash_info and local.exists(out.hash_info.value)
        }
        if kept and (failed := self.repo.cloud.push(kept, remote=remote, odb=odb).failed):
            raise UploadError(len(failed))
        return sent

    StageCache.push = push_all


class _Whole:
    """A file system to the function that edits ``rwlock``, which alone has the file meanwhile."""

    def __init__(self, fs: Any) -> None:
        self.join = fs.join

    def open(self, path: str, mode: str = "r", *, encoding: str) -> Any:
        """Return the file; a list that a killed command left half-written is an empty one."""
        if mode == "w":
            return self._written(Path(path), encoding)
        text = Path(path).read_text(encoding)
        try:
            json.loads(text)
        except json.JSONDecodeError:
            text = "{}"
        return io.StringIO(text)

    @staticmethod
    @contextlib.contextmanager
    def _written(path: Path, encoding: str) -> Iterator[io.TextIOBase]:
        with atomic_file(path) as partial, partial.open("w", encoding=encoding) as file:
            yield file


def _thaw(name: str) -> None:
    """Let every stage of this name be loaded as one that is not frozen."""
    from dvc.stage.loader import StageLoader

    load = StageLoader.load_stage  # bound: a class method

    def load_thawed(*args: Any, **kwargs: Any) -> Any:
        stage = load(*args, **kwargs)
        if stage.addressing == name:
            stage.frozen = False
        return stage

    StageLoader.load_stage = staticmethod(load_thawed)


@contextlib.contextmanager
def _modify_yaml(path: str, fs: Any = None) -> Iterator[Any]:  # noqa: ARG001
    """Give a local YAML file's content to be changed, as DVC's function of this name."""
    from dvc.utils.serialize import modify_yaml

    file = Path(path)
    with atomic_file(file) as partial:
        if file.exists():
            shutil.copyfile(file, partial)
        with modify_yaml(str(partial)) as data:
            yield data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
