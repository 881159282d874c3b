"""Atomic writes, hashes and fingerprints.

A name either holds what it held before or everything that was written: the new content is
collected beside it under a name that ends in ``.partial``, flushed to the disk and then moved.
What a killed process left behind is removed by the next write to the same name.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from danceflow.errors import DanceflowError, DataError, DiskSpaceError
from danceflow.ops.processes import is_running, process_mark

_LOG = logging.getLogger(__name__)

_CHUNK = 1 << 20
_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left on the disk: the quota is used up",
    errno.EFBIG: "larger than the disk, or a limit such as ulimit -f, lets a file be",
}
_UNWRITABLE = (errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
# What native writers (safetensors, arrow, sqlite) say without an error number.
_FULL_TEXT = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a free name beside ``path``; the file written there becomes ``path`` at the end.

    For libraries that write files themselves. After an error nothing is left and ``path`` is as
    it was.

    Args:
        path: The file to write; missing parent folders are made.

    Raises:
        DiskSpaceError: There is no room.
        DanceflowError: The place cannot be written to.
    """
    with _writing(path) as partial:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_directory(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Give an empty folder beside ``path``; what is written there becomes ``path`` at the end.

    A former ``path`` is replaced as a whole. At no time does the name hold a mixture; a process
    killed between the two moves leaves the name free.

    Args:
        path: The folder to write; missing parent folders are made.
        flush: Whether every file is flushed to the disk before the move. For thousands of small
            files that can be made again it costs minutes.

    Raises:
        DiskSpaceError: There is no room.
        DanceflowError: The place cannot be written to.
    """
    with _writing(path) as partial:
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            if flush and file.is_file():
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
        former = _partial_name(path)
        if path.exists():
            path.replace(former)
        partial.replace(path)
        _sync_folder(path.parent)
        remove(former)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder within the block; who comes second waits.

    Args:
        folder: It need not exist; the lock is a file beside it.
    """
    with _locked(folder, waits=True):
        yield


@contextlib.contextmanager
def exclusive_if_free(folder: Path) -> Iterator[bool]:
    """Do as ``exclusive`` and give True; where another process has the folder, give False.

    Args:
        folder: It need not exist; its lock is removed at the end where it does not.
    """
    with _locked(folder, waits=False) as is_ours:
        yield is_ours
        if is_ours and not folder.exists():
            lock_of(folder).unlink(missing_ok=True)


def lock_of(folder: Path) -> Path:
    """Return the file by which processes keep each other out of a folder."""
    return folder.with_name(f"{folder.name}.lock")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        DanceflowError: As ``atomic_file``.
    """
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically.

    Raises:
        DanceflowError: As ``atomic_file``.
    """
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Append UTF-8 text to a file; where there is no room for all of it, the file is as before.

    Raises:
        DiskSpaceError: There is no room.
    """
    with disk_errors(path):
        before = path.stat().st_size if path.exists() else None
        try:
            with path.open("ab") as file:
                file.write(text.encode())
        except OSError:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                os.truncate(path, before)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: indented, a final newline, keys in their order.

    Raises:
        ValueError: A number is not finite; JSON has no word for it.
        DanceflowError: As ``atomic_file``.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        advice: What to do where there is none, such as ``run the stage report``.

    Raises:
        DataError: The file is missing, is no JSON or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it holds no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {advice}") from error
    return found


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn "no room" of any library into one error that names the place.

    Args:
        path: What is being written.

    Raises:
        DiskSpaceError: The disk or the quota is full, or a file may not grow further.
    """
    try:
        yield
    except DanceflowError:
        raise
    except Exception as error:
        if reason := _no_room(error):
            raise DiskSpaceError(f"{path}: {reason}; nothing was kept") from error
        raise


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path there, in the paths' order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def fingerprint(value: Any) -> str:
    """Return 16 hexadecimal digits that stand for plain data, the same in every process.

    Args:
        value: Whatever JSON can hold; the order of keys does not count.

    Raises:
        TypeError: The value holds something else.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds; it need not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path, *, waits: bool) -> Iterator[bool]:
    """Lock a folder and give True; where it is taken, wait for it or give False."""
    path = lock_of(folder)
    while True:
        with _opened_lock(path) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waits:
                    yield False
                    return
                _LOG.info("%s: another process works on the same; waiting for it", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(lock.fileno(), path):
                continue  # whoever had it removed it, and others may have made a new one
            yield True
            return


def _opened_lock(path: Path) -> TextIO:
    """Return the open file of a lock, made where it is missing."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w")


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        except OSError as error:
            if error.errno in _FULL:
                raise
            raise DanceflowError(f"{path}: cannot be written: {error.strerror}") from error
        partial = _partial_name(path)
        try:
            yield partial
        except OSError as error:
            if not isinstance(error, PermissionError) and error.errno not in _UNWRITABLE:
                raise
            raise DanceflowError(f"{path}: cannot be written: {error.strerror}") from error
        finally:
            remove(partial)


def _no_room(error: BaseException | None) -> str | None:
    """Return why an error, or one that led to it, says that there is no room; else None."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number not in _FULL:
            text = str(error).lower()
            number = next((_FULL_TEXT[words] for words in _FULL_TEXT if words in text), None)
        if number is not None:
            return _FULL[number]
        error = error.__cause__ or error.__context__
    return None


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{process_mark()}-{secrets.token_hex(4)}.partial")


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that are gone began to write under this name."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([\d-]+)-[0-9a-f]+\.partial")
    for sibling in path.parent.iterdir():
        found = pattern.fullmatch(sibling.name)
        if found and not is_running(found[1]):
            remove(sibling)


def _sync_folder(folder: Path) -> None:
    """Make a move in the folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
