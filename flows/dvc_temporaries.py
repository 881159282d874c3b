"""DVC's temporary files: none stays where a copy fails, and each says who writes it.

DVC copies every object beside its place in the cache, and then renames it. It leaves the copy of a
disk that became full, and that of a command which was killed, under names that say nothing; no
command of its own removes them.
"""

import functools
import os
import platform
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from danceflow.ops.files import fingerprint, remove
from danceflow.ops.processes import is_running, process_mark

_DAY_S = 86_400
_NAME = re.compile(r".*\.[\w-]{22}\.tmp")  # what DVC calls every temporary file
_OURS = re.compile(r".*\.([0-9a-f]{16})\.([\d-]+)\.[\w-]{22}\.tmp")  # machine, process


@functools.cache
def leave_none() -> None:
    """Let DVC within this process remove what it could not copy, and name itself in what it can."""
    from dvc_data.hashfile.db import local as objects
    from dvc_objects.fs import local, utils

    copy: Callable[..., None] = utils.copyfile

    def copy_or_leave_nothing(src: Any, dest: Any, *args: Any, **kwargs: Any) -> None:
        try:
            copy(src, dest, *args, **kwargs)
        except BaseException:
            if _NAME.fullmatch(Path(dest).name):
                remove(Path(dest))
            raise

    modules: tuple[Any, ...] = (utils, local, objects)
    for module in modules:
        module.tmp_fname = _name
        module.copyfile = copy_or_leave_nothing


def remove_left(cache: Path, num_days: float | None = None) -> dict[Path, int]:
    """Return the temporary files that were removed, with their sizes in bytes.

    These are the ones whose writer, a process of this machine, has gone. A file without a writer's
    name is that of a bare ``dvc`` or of another machine: its age alone tells whether anybody still
    writes it.

    Args:
        cache: DVC's folder.
        num_days: since a file of an unknown writer was last written; None: these stay.
    """
    removed: dict[Path, int] = {}
    for path in sorted(cache.rglob("*.tmp")):
        if not _NAME.fullmatch(path.name) or not path.is_file():
            continue
        ours = _OURS.fullmatch(path.name)
        if ours and ours[1] == _machine():
            is_left = not is_running(ours[2])
        else:
            is_left = num_days is not None and _age_s(path) > num_days * _DAY_S
        if is_left:
            removed[path] = path.stat().st_size
            remove(path)
    return removed


def _name(prefix: str = "") -> str:
    return f"{prefix}.{_machine()}.{_mark(os.getpid())}.{secrets.token_urlsafe(16)}.tmp"


@functools.cache
def _machine() -> str:
    """Return a word for this machine: a cache may lie on a disk that several have."""
    return fingerprint(platform.node())


@functools.cache
def _mark(process_id: int) -> str:
    return process_mark(process_id)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime
