"""Where a user's rows come from: tables, image folders and ``datasets`` data sets, row by row.

A source gives raw records in a fixed order, one at a time, from any row on: what is prepared can be
interrupted, and may be larger than the memory.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from danceflow.errors import DataError
from danceflow.ops.files import sha256

if TYPE_CHECKING:
    from danceflow.schema import InputParams

TABLE_ENDINGS = (".csv", ".jsonl", ".parquet")
_BLOCK = 64
"""Rows that one shard takes in turn; rows of a parquet file read at once."""


@dataclass(frozen=True)
class Record:
    """One row as it stands in its source.

    Attributes:
        place: file and row, for messages.
        number: its place in the whole source, from 0.
        cells: by column, what the source holds there.
        fault: what is wrong with the row as a whole, or None.
    """

    place: str
    number: int
    cells: Mapping[str, Any]
    fault: str | None = None


class Source(Protocol):
    """A sequence of records that can be read in parts."""

    folder: Path
    """Where the pictures lie that a cell names by path."""

    def columns(self) -> list[str]:
        """Returns the names of the columns."""
        ...

    def fingerprint(self) -> str:
        """Returns what stands for the source's content, so far as it is cheap to know."""
        ...

    def num_rows(self) -> int | None:
        """Returns the number of records, or None where only reading them would tell."""
        ...

    def records(self, shard: int, num_shards: int, start: int) -> Iterator[Record]:
        """Yields the records of a shard, without its first ``start`` ones.

        The shards together hold every record once.
        """
        ...


def open_source(kind: str, config: "InputParams", root: Path) -> Source:
    """Returns the source that the parameters name.

    Args:
        kind: ``table``, ``folder`` or ``dataset``.
        config: where it lies.
        root: the checkout, which paths are relative to.

    Raises:
        DataError: it is not there, cannot be read or lacks a column.
    """
    path = root / config.path
    source: Source
    if kind == "table":
        source = TableSource(path)
    elif kind == "folder":
        source = TableSource(_metadata(path))
    else:
        source = DatasetSource(path, config)
    known = source.columns()
    missing = [
        f"{name} ({column})" for name, column in config.columns.items() if column not in known
    ]
    if missing:
        raise DataError(
            f"{config.path}: lacks the columns for {', '.join(missing)}; it has {', '.join(known)}"
        )
    return source


def _metadata(folder: Path) -> Path:
    """Returns the table of an image folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    for ending in TABLE_ENDINGS:
        if (path := folder / f"metadata{ending}").is_file():
            return path
    names = ", ".join(f"metadata{ending}" for ending in TABLE_ENDINGS)
    raise DataError(f"{folder}: holds no table of its images ({names})")


def _of_shard(number: int, shard: int, num_shards: int) -> bool:
    return (number // _BLOCK) % num_shards == shard


class TableSource:
    """A CSV, JSON lines or parquet file; paths in it are relative to its folder."""

    def __init__(self, path: Path) -> None:
        """Takes the file; raises ``DataError`` if it is not there or of another kind."""
        self.path, self.folder = path, path.parent
        if not path.is_file():
            raise DataError(f"{path}: there is no such table")
        if path.suffix not in TABLE_ENDINGS:
            raise DataError(f"{path}: should end in {', '.join(TABLE_ENDINGS)}")

    def columns(self) -> list[str]:
        """Returns the names of the columns; of JSON lines, those of the first row."""
        if self.path.suffix == ".parquet":
            return list(self._parquet().schema_arrow.names)
        if self.path.suffix == ".csv":
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                return self._header(csv.reader(file))
        first = next(iter(self._lines()), None)
        if first is None or first.fault is not None:
            raise DataError(f"{self.path}: row 1 is no JSON object")
        return list(first.cells)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the table; its pictures are not looked at."""
        return sha256(self.path)

    def num_rows(self) -> int | None:
        """Returns the number of rows of a parquet file; of others None."""
        if self.path.suffix != ".parquet":
            return None
        return int(self._parquet().metadata.num_rows)

    def records(self, shard: int, num_shards: int, start: int) -> Iterator[Record]:
        """Yields the rows of a shard, blocks of rows in turn."""
        readers = {".csv": self._csv, ".jsonl": self._lines, ".parquet": self._rows}
        rows = readers[self.path.suffix]()
        mine = (row for row in rows if _of_shard(row.number, shard, num_shards))
        return islice(mine, start, None)

    def _place(self, number: int) -> str:
        return f"{self.path.name}: row {number + 1}"

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        header = next(reader, None)
        if not header or len(set(header)) != len(header):
            raise DataError(f"{self.path}: its first line should name the columns, each once")
        return header

    def _csv(self) -> Iterator[Record]:
        csv.field_size_limit(sys.maxsize)
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file)
                header = self._header(reader)
                rows = (row for row in reader if row)
                for number, row in enumerate(rows):
                    fault = None
                    if len(row) != len(header):
                        fault = f"has {len(row)} fields, the first line has {len(header)}"
                    cells = dict(zip(header, row, strict=False))
                    yield Record(self._place(number), number, cells, fault)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path}: is no CSV in UTF-8: {error}") from error

    def _lines(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            for number, line in enumerate(row for row in file if row.strip()):
                try:
                    cells = json.loads(line)
                except ValueError:
                    cells = None
                good = isinstance(cells, dict)
                fault = None if good else "is no JSON object"
                yield Record(self._place(number), number, cells if good else {}, fault)

    def _parquet(self) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path, pre_buffer=False)  # or the whole file is held
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: is no readable parquet file: {error}") from error

    def _rows(self) -> Iterator[Record]:
        number = 0
        for batch in self._parquet().iter_batches(batch_size=_BLOCK, use_threads=False):
            for cells in batch.to_pylist():
                yield Record(self._place(number), number, cells)
                number += 1


class DatasetSource:
    """A ``datasets`` data set, streamed: a saved folder, a folder of data files, or a name."""

    def __init__(self, path: Path, config: "InputParams") -> None:
        """Opens the data set without reading its rows.

        Raises:
            DataError: it is not there or cannot be opened.
        """
        self.folder = path if path.is_dir() else path.parent
        self.local, self.config = path.exists(), config
        self.stream = self._open(path)

    def _open(self, path: Path) -> Any:
        from datasets import load_dataset, load_from_disk
        from datasets.exceptions import DatasetNotFoundError

        name, subset = self.config.path, self.config.subset or "train"
        try:
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                saved = load_from_disk(str(path))
                saved = saved[subset] if (path / "dataset_dict.json").is_file() else saved
                num_shards = min(self.config.num_shards, max(1, len(saved)))
                stream = saved.to_iterable_dataset(num_shards=num_shards)
            else:
                stream = load_dataset(
                    str(path) if self.local else name,
                    self.config.config,
                    split=subset,
                    revision=None if self.local else self.config.revision,
                    streaming=True,
                )
            if stream.features is None:
                stream = stream._resolve_features()
        except DatasetNotFoundError as error:
            raise DataError(f"{name}: there is no such folder and no such data set") from error
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{name}: cannot be opened as a data set: {error}") from error
        return stream.decode(False)

    def columns(self) -> list[str]:
        """Returns the names of the columns."""
        return list(self.stream.features)

    def fingerprint(self) -> str:
        """Returns a digest of name and revision, or of the sizes and times of local files."""
        text = json.dumps([self.config.path, self.config.config, self.config.revision])
        if self.local:
            files = sorted(p for p in self.folder.rglob("*") if p.is_file())
            facts = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
            text += json.dumps(facts)
        return hashlib.sha256(text.encode()).hexdigest()

    def num_rows(self) -> int | None:
        """Returns the number of rows where the data set tells it."""
        splits = self.stream.info.splits or {}
        found = splits.get(self.config.subset or "train")
        return None if found is None else int(found.num_examples)

    def records(self, shard: int, num_shards: int, start: int) -> Iterator[Record]:
        """Yields the rows of a shard: whole files where there are enough, else rows in turn."""
        from datasets.distributed import split_dataset_by_node

        part: Any
        if self.stream.num_shards % num_shards:
            # The library's own split of rows in turn would skip rows of the other shards, too.
            part = islice(self.stream.skip(start * num_shards), shard, None, num_shards)
        elif num_shards > 1:
            part = split_dataset_by_node(self.stream, shard, num_shards).skip(start)
        else:
            part = self.stream.skip(start)
        name = self.config.path
        label = f"{name}, part {shard}" if num_shards > 1 else name
        for index, cells in enumerate(part, start=start):
            yield Record(f"{label}: row {index + 1}", index * num_shards + shard, cells)
