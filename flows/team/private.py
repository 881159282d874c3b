"""Files for their owner's eyes alone."""

import os
from pathlib import Path

from danceflow.ops.files import atomic_file

MODE = 0o600


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody but its owner can read, at no moment.

    Args:
        path: the file; a former one is replaced as a whole.
        text: its content.

    Raises:
        DanceflowError: as ``danceflow.ops.files.atomic_file``.
    """
    with atomic_file(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)


def is_private(path: Path) -> bool:
    """Return whether nobody but its owner can read or write a file."""
    return path.stat().st_mode & 0o077 == 0
