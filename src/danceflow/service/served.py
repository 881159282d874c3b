"""Samples of what was asked: JSON lines that ``danceflow watch`` reads, bounded on disk.

Nothing is written unless a rate is given, and no picture unless that is asked for too. The files
are for their owner alone: prompts tell of people.
"""

import errno
import json
import logging
import os
import random
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from danceflow.errors import DataError, UsageError

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"\d{8}T\d{12}-[0-9a-f]{8}\.jsonl")
_STAMP = len("20260101T000000000000")
_MAX_LINE = 64 << 20


@dataclass(frozen=True)
class ServedRow:
    """One picture that was served.

    Attributes:
        time: when, UTC, ISO 8601.
        version: of the model; 0: it came from a folder.
        digest: of the model.
        prompt: what was asked.
        is_edit: whether a picture was to be changed.
        steps: solver steps.
        guidance: guidance scale.
        seconds: from the request to its answer.
        source: the picture to change as the model saw it, base64 PNG; None: none, or not kept.
        image: the answer, base64 PNG; None: not kept.
        further: the further pictures of the edit, as ``source``.
    """

    time: str
    version: int
    digest: str
    prompt: str
    is_edit: bool
    steps: int
    guidance: float
    seconds: float
    source: str | None = None
    image: str | None = None
    further: tuple[str, ...] = ()


class ServedLog:
    """Writes samples; a disk that is full, or gone, costs the sample and never the answer."""

    def __init__(
        self,
        folder: Path,
        rate: float,
        *,
        pictures: bool = False,
        max_file: int = 8 << 20,
        max_bytes: int = 64 << 20,
    ) -> None:
        """Make the folder.

        Args:
            folder: of the files, those of other services among them.
            rate: the share of requests that is kept.
            pictures: whether pictures are kept, too.
            max_file: bytes after which the next file is begun.
            max_bytes: of all files; the oldest are removed.

        Raises:
            UsageError: the folder cannot be made or written to.
        """
        self._folder = folder
        self._rate = rate
        self.keeps_pictures = pictures
        self._max_file = max_file
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._is_failing = False
        if rate <= 0.0:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK):
            raise UsageError(f"{folder}: may not be written to")

    def wants(self) -> bool:
        """Return whether the request of now is a sample."""
        return self._rate > 0.0 and random.random() < self._rate

    def write(self, rows: Sequence[ServedRow]) -> None:
        """Append rows, and remove the oldest files where all are more than may be."""
        lines = [json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows]
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        with self._lock:
            try:
                self._append(data)
                self._is_failing = False
            except OSError as error:
                if not self._is_failing:
                    _LOG.warning("%s: samples are not kept: %s", self._folder, error.strerror)
                self._is_failing = True

    def _append(self, data: bytes) -> None:
        path = self._path
        is_full = path is not None and path.exists() and path.stat().st_size >= self._max_file
        if path is None or is_full:
            path = self._path = self._folder / _next_name(served_files(self._folder))
        # One write of whole lines: a process that is killed leaves at most the last one cut.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, data) < len(data):  # there was room for a part
                os.ftruncate(descriptor, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        files = served_files(self._folder)
        total = sum(file.stat().st_size for file in files)
        for file in files[:-1]:
            if total <= self._max_bytes:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)


def _next_name(files: Sequence[Path]) -> str:
    """Return a name for a file of now that stands behind all others, though the clock was set back.

    The file would else be the oldest, and be removed first.
    """
    number = int(datetime.now(UTC).strftime("%Y%m%d%H%M%S%f"))
    if files:
        number = max(number, int(files[-1].name[:_STAMP].replace("T", "")) + 1)
    digits = f"{number:020d}"
    return f"{digits[:8]}T{digits[8:]}-{secrets.token_hex(4)}.jsonl"


def served_files(folder: Path) -> list[Path]:
    """Return the files of samples in a folder, the oldest first; none where there is none."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _NAME.fullmatch(file.name))


def read_served(folder: Path, since: str = "") -> Iterator[ServedRow]:
    """Yield the samples in a folder, the oldest first.

    A last line that was cut, as its writer was killed, is passed over.

    Args:
        folder: of the files.
        since: a time; what is not later is left out.

    Raises:
        DataError: a line is damaged; it names file and line.
    """
    for path in served_files(folder):
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
                if not line.endswith(b"\n"):
                    _LOG.warning("%s, line %d is cut and left out", path, number)
                    break
                row = _row(line, f"{path}, line {number}")
                if row.time > since:
                    yield row


def _row(line: bytes, place: str) -> ServedRow:
    try:
        found: Mapping[str, Any] = json.loads(line)
        row = ServedRow(**{**found, "further": tuple(found.get("further", ()))})
        texts = (row.time, row.digest, row.prompt, *row.further)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("text is missing")
        if not isinstance(row.is_edit, bool) or not isinstance(row.version, int):
            raise TypeError("is_edit or version is of another type")
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{place}: is no sample of a served request ({error})") from None
    return row


def now() -> str:
    """Return the time as samples tell it, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
