"""Which files a row may name, and what they held when they were read."""

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from danceflow.errors import DataError, brief
from danceflow.pictures import read_file

_MAX_NAME = 4096
_DIGEST_BYTES = 16


class PictureFiles:
    """The picture files of a source, each with its content as it was last read.

    A row is somebody else's text: it reaches regular files below the source's folder and nothing
    else on the machine, whether by an absolute path, by ``..`` or by a link.

    Attributes:
        seen: By name, the digest of what was read, or why it could not be.
    """

    def __init__(self, folder: Path | None) -> None:
        """Take the folder of the source, None where it has no files of its own."""
        self.folder = None if folder is None else Path(os.path.realpath(folder))
        self.seen: dict[str, str] = {}

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: It is not there, no regular file, too large, or lies elsewhere.
        """
        if len(name) > _MAX_NAME:
            raise DataError(
                f"{brief(name)}: is too long for a path; tables other than parquet name pictures"
            )
        try:
            data = self._read(name)
        except DataError as error:
            self.seen[name] = str(error)
            raise
        self.seen[name] = _digest(data)
        return data

    def still_hold(self, seen: Mapping[str, str]) -> bool:
        """Return whether every file holds what it held, by content, or still cannot be read."""
        return all(self._state(name) == state for name, state in seen.items())

    def _state(self, name: str) -> str:
        try:
            return _digest(self._read(name))
        except DataError as error:
            return str(error)

    def _read(self, name: str) -> bytes:
        shown = brief(name)
        if self.folder is None:
            raise DataError(f"{shown}: a data set that is known by name has no files to name")
        try:
            path = Path(os.path.realpath(self.folder / name, strict=True))
            if not path.is_relative_to(self.folder):
                raise DataError("leads out of the source's folder")
            if not stat.S_ISREG(path.lstat().st_mode):  # some devices do things when opened
                raise DataError("is no regular file")
            return read_file(path)
        except OSError as error:
            raise DataError(f"{shown}: {error.strerror}") from None
        except DataError as error:
            raise DataError(f"{shown}: {error}") from None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
