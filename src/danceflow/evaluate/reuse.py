"""Answers that do not depend on the student are given once: those of its teachers and its start.

They lie in the work folder, named by everything that decides them, code included, so what is
reused is what would be computed. A sweep evaluates its teachers once, not once per student. What a
field scores in a further number of steps is kept, too, the student's included: no pictures of it
are needed, so it takes no room.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from danceflow.errors import DataError
from danceflow.evaluate.records import FieldResult
from danceflow.ops.files import atomic_directory, exclusive

T = TypeVar("T")

_IMAGES = "images.safetensors"
_RESULT = "result.json"
_SCORES = "scores.json"


def reused(
    folder: Path, answer: Callable[[], tuple[FieldResult, Sequence[Tensor]]]
) -> tuple[FieldResult, Sequence[Tensor]]:
    """Return a field's result and images [3, H, W]; they are computed where nobody has yet.

    Evaluations that run at the same time and need the same answers wait for the first.

    Args:
        folder: where they are kept; its name stands for everything that decides them.
        answer: computes them.

    Raises:
        DataError: what is kept there is damaged.
    """
    return _kept(folder, _read, answer, _write)


def reused_scores(folder: Path, answer: Callable[[], tuple[float, ...]]) -> tuple[float, ...]:
    """Return the scores of a field's answers; they are computed where nobody has yet.

    Args:
        folder: where they are kept; its name stands for everything that decides them.
        answer: computes them.

    Raises:
        DataError: what is kept there is damaged.
    """
    return _kept(folder, _read_scores, answer, _write_scores)


def _kept(
    folder: Path,
    read: Callable[[Path], T],
    compute: Callable[[], T],
    write: Callable[[Path, T], object],
) -> T:
    """Return what a folder keeps; it is computed and written where nobody has yet."""
    with exclusive(folder):
        if folder.is_dir():
            os.utime(folder)  # `danceflow clean` goes by the last use
            return read(folder)
        found = compute()
        with atomic_directory(folder) as place:
            write(place, found)
        return found


def _write_scores(folder: Path, scores: tuple[float, ...]) -> None:
    (folder / _SCORES).write_text(json.dumps(scores) + "\n")


def _read_scores(folder: Path) -> tuple[float, ...]:
    try:
        return tuple(float(score) for score in json.loads((folder / _SCORES).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder}: is damaged ({error}); delete it to start over") from error


def _write(folder: Path, answered: tuple[FieldResult, Sequence[Tensor]]) -> None:
    from safetensors.torch import save_file

    result, images = answered
    named = {
        f"{number:08d}": image.clone(memory_format=torch.contiguous_format)
        for number, image in enumerate(images)
    }
    save_file(named, folder / _IMAGES)
    (folder / _RESULT).write_text(result.model_dump_json())


def _read(folder: Path) -> tuple[FieldResult, Sequence[Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        result = FieldResult.model_validate_json((folder / _RESULT).read_bytes())
        images = dict(load_file(folder / _IMAGES))
    except (OSError, ValidationError, SafetensorError) as error:
        raise DataError(f"{folder}: is damaged ({error}); delete it to start over") from error
    return result, [images[name] for name in sorted(images)]
