"""Removes work folders that nobody has used for a long time."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.errors import WeightsError
from danceflow.ops import keys
from danceflow.ops.files import exclusive_if_free, remove
from danceflow.paths import MANIFEST

if TYPE_CHECKING:
    from danceflow.paths import Paths

_DAY_S = 86_400


@dataclass(frozen=True)
class Cleaned:
    """What became of the work folders.

    Attributes:
        removed: bytes that were freed, by folder.
        busy: folders that are old, and that a process is working in.
        kept: folders that are younger, or that the checkout still goes by.
    """

    removed: dict[Path, int]
    busy: tuple[Path, ...]
    kept: tuple[Path, ...]


def clean(paths: "Paths", num_days: int) -> Cleaned:
    """Return what was removed: work folders that no process has used for some days.

    A folder that a process works in is left, however old, and so is the training of the student
    that is there: it would be packaged anew for another number of steps. So is everything whose
    name is no key's, such as the answers of a judge, which were paid for.

    Args:
        paths: of the checkout.
        num_days: since a folder was last used.

    Raises:
        WeightsError: the student that is there is damaged.
    """
    now = time.time()
    limit = now - num_days * _DAY_S
    student = _training_of(paths.student)
    removed: dict[Path, int] = {}
    busy, kept = [], []
    for folder in sorted(_folders(paths)):
        if folder.name.rpartition("-")[2] == student:
            kept.append(folder)
            continue
        with exclusive_if_free(keys.guard_of(folder)) as is_free:
            if not is_free:
                busy.append(folder)
            elif _last_used(folder, now) > limit:
                kept.append(folder)
            else:
                removed[folder] = _size(folder)
                remove(folder)
    for lock in paths.work("any").parent.glob("*.lock"):
        folder = lock.with_suffix("")
        if keys.is_work(folder.name) and not folder.exists():
            with exclusive_if_free(folder):
                pass  # which removes the lock
    return Cleaned(removed, tuple(busy), tuple(kept))


def _training_of(student: Path) -> str | None:
    """Return the digest of the key of a student's training; None where there is no student."""
    path = student / MANIFEST
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: does not say which training the student comes from ({error!r}); run the "
            "stage: dvc repro distill"
        ) from error


def _folders(paths: "Paths") -> list[Path]:
    place = paths.work("any").parent
    return [path for path in place.glob("*") if path.is_dir() and keys.is_work(path.name)]


def _last_used(folder: Path, now: float) -> float:
    """Return the time of the last change in a folder; who uses it touches it.

    A time that is still to come is that of a clock that was wrong. It counts as now and is set so:
    the folder would grow old only after that time.
    """
    newest = 0.0
    for path in (folder, *folder.rglob("*")):
        changed = path.stat().st_mtime
        if changed > now:
            os.utime(path, (now, now))
        newest = max(newest, min(changed, now))
    return newest


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
