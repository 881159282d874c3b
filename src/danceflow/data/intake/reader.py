"""One record of a source to one row of a bucket, or to the reason why it cannot be one."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.columns import SOURCE_COLUMNS
from danceflow.data.intake.picture_files import PictureFiles
from danceflow.data.intake.sources import RawRecord
from danceflow.errors import DataError, brief
from danceflow.fields import MAX_SOURCES, seed_for
from danceflow.pictures import (
    Frame,
    fit_pair,
    fit_picture,
    frame_sizes,
    open_picture,
    png_bytes,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from danceflow.params.sections import DataParams

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What a column of splits may say, and what is meant."""

_STANDARD = "standard"
_MAX_DEPTH = 50
"""Levels of a row's facts; they are read again further down the stack."""
DIGEST_BYTES = 16


@dataclass(frozen=True)
class CheckedRow:
    """A checked row with its pictures in their frame.

    Attributes:
        place: where it stood.
        number: its place in the whole source.
        bucket: of the capability it belongs to.
        split: as the source says, or empty where chance decides.
        uid: its name.
        category: what kind of task it is.
        variant: ``standard`` unless the source says otherwise.
        prompt: what is asked.
        source: PNG file of the picture to edit, or None.
        source_2: PNG file of a further picture, or None.
        source_3: PNG file of another one, or None.
        target: PNG file of the answer.
        spec: JSON of what else is known about the answer, or empty.
        source_digest: of the source's pixels; empty without a source.
        further_digests: of the further pictures' pixels, one behind the other, ``DIGEST_BYTES``
            each.
        target_digest: of the target's pixels.
    """

    place: str
    number: int
    bucket: str
    split: str
    uid: str
    category: str
    variant: str
    prompt: str
    source: bytes | None
    source_2: bytes | None
    source_3: bytes | None
    target: bytes
    spec: str
    source_digest: bytes
    further_digests: bytes
    target_digest: bytes


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    place: str
    field: str
    reason: str


@dataclass(frozen=True)
class SkippedRow:
    """A good row that the parameters leave out, with the kind of reason."""

    kind: str


class TaskMap:
    """Which bucket a task belongs to: the one with the longest phrase that the task holds.

    Phrases match whole words in a row, so ``art`` is not found in ``part`` and ``swap`` is found
    in ``object_swap``.
    """

    def __init__(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """Take the phrases by bucket.

        Raises:
            DataError: a phrase holds no word, or stands in two buckets.
        """
        self.buckets: dict[tuple[str, ...], str] = {}
        for bucket, phrases in tasks.items():
            for phrase in phrases:
                words = words_of(phrase)
                if not words:
                    raise DataError(f"data.input.tasks.{bucket}: {phrase!r} holds no word")
                if self.buckets.setdefault(words, bucket) != bucket:
                    raise DataError(
                        f"data.input.tasks: {phrase!r} stands in {self.buckets[words]} and {bucket}"
                    )

    def find(self, task: str) -> tuple[str, str] | None:
        """Return bucket and category (the phrase, joined by ``_``) of a task, or None.

        Raises:
            DataError: two phrases of the same length belong to different buckets.
        """
        words = words_of(task)
        found = [phrase for phrase in self.buckets if _holds(words, phrase)]
        longest = max((len(phrase) for phrase in found), default=0)
        best = [phrase for phrase in found if len(phrase) == longest]
        if len({self.buckets[phrase] for phrase in best}) > 1:
            shown = " and ".join(repr(" ".join(phrase)) for phrase in best)
            raise DataError(f"'{brief(task)}' holds {shown}, which belong to different buckets")
        return (self.buckets[best[0]], "_".join(best[0])) if best else None


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a task in lower case; ``_``, ``-`` and changes of case part words."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return tuple(re.findall(r"[^\W_]+", parted.lower()))


def _holds(words: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    length = len(phrase)
    return any(words[i : i + length] == phrase for i in range(len(words) - length + 1))


FactsTrouble = Callable[[Mapping[str, Any], bool], str | None]
"""Why facts about a row, which may be an edit, cannot be used; None where they can."""


def no_trouble(facts: Mapping[str, Any], is_edit: bool) -> str | None:
    """Return None: any facts will do."""
    del facts, is_edit
    return None


class RowReader:
    """Checks records and brings their pictures into their frame."""

    def __init__(
        self, data: "DataParams", folder: Path | None, trouble: FactsTrouble = no_trouble
    ) -> None:
        """Take the ``data`` section.

        Args:
            data: says what the columns hold.
            folder: of the pictures that cells name by path, None where there are none.
            trouble: what the world has against a row's facts.

        Raises:
            DataError: the tasks contradict each other.
        """
        if data.input is None:
            raise ValueError("only sources with an input are read row by row")
        self.config, self.files, self.seed = data.input, PictureFiles(folder), data.seed
        self.trouble = trouble
        self.tasks = TaskMap(data.input.tasks)
        self.only_bucket = next(iter(data.buckets))
        sizes = frame_sizes(data.image_size, self.config.aspect_ratios, self.config.size_multiple)
        self.frame = Frame(sizes, self.config.fit, self.config.paper, self.config.min_side)
        self.stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(self.config.path).stem).strip("-")

    def read(self, record: RawRecord) -> CheckedRow | BadRow | SkippedRow:
        """Return the row of a record, what is wrong with it, or why it is left out."""
        if record.fault is not None:
            return BadRow(record.place, "row", record.fault)
        try:
            return self._row(record)
        except _FieldError as error:
            return BadRow(record.place, error.field, str(error))

    def _row(self, record: RawRecord) -> CheckedRow | SkippedRow:
        uid = self._text(record, "uid") or f"{self.stem}-{record.number:08d}"
        place = self._bucket(record)
        if place is None:
            return SkippedRow(f"task '{brief(self._text(record, 'task'))}' belongs to no bucket")
        if not self._scores_enough(record):
            return SkippedRow(f"score below {self.config.min_score:g}")
        prompt = self._prompt(record, uid)
        pictures = self._sources(record)
        source, further = pictures[0] if pictures else None, pictures[1:]
        target = self._picture(record, "target")
        if target is None:
            raise _FieldError(self._column("target"), "is empty")
        try:
            source, target = fit_pair(source, target, self.frame)
        except DataError as error:
            raise _FieldError(self._column("target"), str(error)) from None
        more = [self._fitted(image, target.size, place) for place, image in enumerate(further, 2)]
        files = [png_bytes(image) for image in more] + [None] * (MAX_SOURCES - 1)
        return CheckedRow(
            place=record.place,
            number=record.number,
            bucket=place[0],
            split=self._split(record),
            uid=uid,
            category=place[1],
            variant=self._text(record, "variant") or _STANDARD,
            prompt=prompt,
            source=None if source is None else png_bytes(source),
            source_2=files[0],
            source_3=files[1],
            target=png_bytes(target),
            spec=self._spec(record, is_edit=source is not None),
            source_digest=b"" if source is None else _digest(source),
            further_digests=b"".join(map(_digest, more)),
            target_digest=_digest(target),
        )

    def _column(self, name: str) -> str:
        return self.config.columns.get(name, name)

    def _cell(self, record: RawRecord, name: str) -> Any:
        column = self.config.columns.get(name)
        return None if column is None else record.cells.get(column)

    def _text(self, record: RawRecord, name: str) -> str:
        cell = self._cell(record, name)
        if cell is None:
            return ""
        if isinstance(cell, float) and not math.isfinite(cell):
            raise _FieldError(self._column(name), f"should be text, found the number {cell}")
        if isinstance(cell, str | int | float) and not isinstance(cell, bool):
            return _clean(str(cell), self._column(name)).strip()
        raise _FieldError(self._column(name), f"should be text, found {type(cell).__name__}")

    def _bucket(self, record: RawRecord) -> tuple[str, str] | None:
        """Return bucket and category of a record, None where its task belongs to no bucket."""
        category = "_".join(words_of(self._text(record, "category")))
        if "task" not in self.config.columns:
            return self.only_bucket, category or self.only_bucket
        task = self._text(record, "task")
        if not task:
            raise _FieldError(self._column("task"), "is empty")
        try:
            found = self.tasks.find(task)
        except DataError as error:
            raise _FieldError(self._column("task"), str(error)) from None
        return None if found is None else (found[0], category or found[1])

    def _scores_enough(self, record: RawRecord) -> bool:
        if self.config.min_score is None or "score" not in self.config.columns:
            return True
        text = self._text(record, "score")
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise _FieldError(self._column("score"), f"should be a number, found '{brief(text)}'")
        return score >= self.config.min_score

    def _prompt(self, record: RawRecord, uid: str) -> str:
        """Return the prompt; of a list of wordings, one that the seed and the row decide."""
        cell, column = self._cell(record, "prompt"), self._column("prompt")
        texts = cell if isinstance(cell, list) else [cell]
        for text in texts:
            if not isinstance(text, str | None):  # a number is no caption, though it can be a name
                raise _FieldError(column, f"should be text, found {type(text).__name__}")
        wordings = [_clean(text, column).strip() for text in texts if text and text.strip()]
        if not wordings:
            raise _FieldError(column, "is empty")
        if isinstance(cell, list):
            return wordings[seed_for(self.seed, f"wording/{uid}", 0, 0) % len(wordings)]
        return " ".join(wordings[0].split())

    def _split(self, record: RawRecord) -> str:
        text = self._text(record, "split").lower()
        if "split" not in self.config.columns:
            return ""
        if text not in SPLIT_NAMES:
            known = ", ".join(SPLIT_NAMES)
            raise _FieldError(
                self._column("split"), f"should be one of {known}, found '{brief(text)}'"
            )
        return SPLIT_NAMES[text]

    def _spec(self, record: RawRecord, *, is_edit: bool) -> str:
        text = self._text(record, "spec")
        spec: Any = {}
        try:
            spec = json.loads(text) if text else {}
            json.dumps(spec, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            spec = None
        if not isinstance(spec, dict) or _is_deeper(spec, _MAX_DEPTH):
            raise _FieldError(self._column("spec"), "is no JSON object")
        if (trouble := self.trouble(spec, is_edit)) is not None:
            raise _FieldError(self._column("spec"), trouble)
        return text

    def _sources(self, record: RawRecord) -> "list[Image]":
        """Return the pictures to edit, in order: of a column each, or of a list in the first."""
        found: list[Image] = []
        for name in SOURCE_COLUMNS:
            cell = self._cell(record, name)
            cells = cell if isinstance(cell, list | tuple) else [cell]
            images = [self._opened(item, name) for item in cells]
            there = [image for image in images if image is not None]
            if name != SOURCE_COLUMNS[0] and there and not found:
                raise _FieldError(self._column("source"), f"is empty, and {name} is not")
            found += there
        if len(found) > MAX_SOURCES:
            text = f"{len(found)} pictures are given, at most {MAX_SOURCES} are taken"
            raise _FieldError(self._column("source"), text)
        return found

    def _fitted(self, image: "Image", size: tuple[int, int], place: int) -> "Image":
        """Return a further picture in the frame of its row, whatever its aspect is."""
        name = SOURCE_COLUMNS[place - 1]
        if min(image.size) < self.frame.min_side:
            text = f"is {image.width} x {image.height} pixels, less than {self.frame.min_side}"
            raise _FieldError(self._column(name), text)
        try:
            return fit_picture(image, size, self.frame)
        except DataError as error:
            raise _FieldError(self._column(name), str(error)) from None

    def _picture(self, record: RawRecord, name: str) -> "Image | None":
        """Return the picture that a cell holds or names, None where it is empty."""
        return self._opened(self._cell(record, name), name)

    def _opened(self, cell: Any, name: str) -> "Image | None":
        data = self._bytes(cell, self._column(name))
        if data is None:
            return None
        try:
            return open_picture(data, self.config.paper)
        except DataError as error:
            raise _FieldError(self._column(name), str(error)) from None

    def _bytes(self, cell: Any, column: str) -> bytes | None:
        if isinstance(cell, dict):
            data, path = cell.get("bytes"), cell.get("path")
            cell = data if data is not None else path
        if cell is None or cell in ("", b""):
            return None
        if isinstance(cell, bytes):
            return cell
        if not isinstance(cell, str):
            raise _FieldError(
                column, f"should be a picture or its path, found {type(cell).__name__}"
            )
        try:
            return self.files.read(_clean(cell, column))
        except DataError as error:
            raise _FieldError(column, str(error)) from None


class _FieldError(Exception):
    """One field of a row cannot be used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def _clean(text: str, column: str) -> str:
    """Return a text, or raise if no file, model or page could take it."""
    if "\0" in text:
        raise _FieldError(column, f"holds a NUL character: {brief(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _FieldError(column, f"holds half of a character: {brief(text)}") from None
    return text


def _is_deeper(value: Any, depth: int) -> bool:
    """Return whether lists and objects are nested more than ``depth`` times."""
    level = [value]
    for _ in range(depth):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [part for i in inner for part in (i.values() if isinstance(i, dict) else i)]
    return bool(level)


def _digest(image: "Image") -> bytes:
    content = f"{image.width}x{image.height}".encode() + image.tobytes()
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
