"""Where a user's rows come from: tables, image folders and ``datasets`` data sets, row by row.

A source gives raw records in a fixed order, one at a time, from any row on: what is prepared can be
interrupted, and may be larger than the memory.
"""

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tqdm import tqdm

from danceflow.errors import DanceflowError, DataError, brief
from danceflow.ops.files import sha256

if TYPE_CHECKING:
    from danceflow.params.sections import InputParams

TABLE_ENDINGS = (".csv", ".jsonl", ".parquet")
_BLOCK = 64
"""Rows that one shard takes in turn; rows of a parquet file read at once."""
_LONG = 400
T = TypeVar("T")


@dataclass(frozen=True)
class RawRecord:
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


class RowSource(Protocol):
    """A sequence of records that can be read in parts."""

    folder: Path | None
    """Where the pictures lie that a cell names by path; None where there are none."""

    def columns(self) -> Iterator[str]:
        """Yield the names of the columns, each once."""
        ...

    def fingerprint(self) -> str:
        """Return what stands for the source's content, without pictures that rows name."""
        ...

    def num_rows(self) -> int | None:
        """Return the number of records, or None where only reading them would tell."""
        ...

    def records(self, shard: int, num_shards: int, start: int) -> Iterator[RawRecord]:
        """Yield the records of a shard, without its first ``start`` ones.

        The shards together hold every record once.
        """
        ...


def open_source(kind: str, config: "InputParams", root: Path) -> RowSource:
    """Return the source that the parameters name.

    Args:
        kind: ``table``, ``folder`` or ``dataset``.
        config: where it lies.
        root: the checkout, which paths are relative to.

    Raises:
        DataError: it is not there, cannot be read or lacks a column.
    """
    path = root / config.path
    source: RowSource
    if kind == "table":
        source = TableSource(path)
    elif kind == "folder":
        source = TableSource(_metadata(path))
    else:
        source = DatasetSource(path, config)
    _require_columns(source, config)
    return source


def _require_columns(source: RowSource, config: "InputParams") -> None:
    """Check that the source has every column, and read no further than it must to know."""
    lacking = set(config.columns.values())
    known = []
    for column in source.columns():
        known.append(column)
        lacking.discard(column)
        if not lacking:
            return
    missing = [f"{name} ({column})" for name, column in config.columns.items() if column in lacking]
    raise DataError(
        f"{config.path}: lacks the columns for {', '.join(missing)}; "
        f"it has {brief(', '.join(known), _LONG)}"
    )


def _metadata(folder: Path) -> Path:
    """Return the table of an image folder."""
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
        """Take the file.

        Raises:
            DataError: it is not there, of another kind, or text that is not UTF-8.
        """
        self.path = path
        self.folder: Path | None = path.parent
        if not path.is_file():
            raise DataError(f"{path}: there is no such table")
        if path.suffix not in TABLE_ENDINGS:
            raise DataError(f"{path}: should end in {', '.join(TABLE_ENDINGS)}")
        if path.suffix != ".parquet":
            _require_utf8(path)

    def columns(self) -> Iterator[str]:
        """Yield the names of the columns; of JSON lines, as the rows show them."""
        if self.path.suffix == ".parquet":
            yield from self._parquet().schema_arrow.names
        elif self.path.suffix == ".csv":
            with self._csv_reader() as reader:
                yield from self._header(reader)
        else:
            seen: dict[str, None] = {}
            for record in self._lines():
                new = [name for name in record.cells if name not in seen]
                seen |= dict.fromkeys(new)
                yield from new
            if not seen:
                raise DataError(f"{self.path}: holds no row that is a JSON object with columns")

    def fingerprint(self) -> str:
        """Return the SHA-256 of the table; its pictures are not looked at."""
        return sha256(self.path)

    def num_rows(self) -> int | None:
        """Return the number of rows of a parquet file; of others None."""
        if self.path.suffix != ".parquet":
            return None
        return int(self._parquet().metadata.num_rows)

    def records(self, shard: int, num_shards: int, start: int) -> Iterator[RawRecord]:
        """Yield the rows of a shard, blocks of rows in turn."""
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

    @contextmanager
    def _csv_reader(self) -> Iterator[Iterator[list[str]]]:
        csv.field_size_limit(sys.maxsize)
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)

            def unreadable(_: int, error: Exception) -> DataError:
                return DataError(f"{self.path}: line {reader.line_num}: {_reason(error)}")

            yield _guarded(reader, unreadable)

    def _csv(self) -> Iterator[RawRecord]:
        with self._csv_reader() as reader:
            header = self._header(reader)
            rows = (row for row in reader if row)
            for number, row in enumerate(rows):
                fault = None
                if len(row) != len(header):
                    fault = f"has {len(row)} fields, the first line has {len(header)}"
                cells = dict(zip(header, row, strict=False))
                yield RawRecord(self._place(number), number, cells, fault)

    def _lines(self) -> Iterator[RawRecord]:
        with self.path.open("rb") as file:
            for number, line in enumerate(row for row in file if row.strip()):
                fault = None
                try:
                    cells = json.loads(line)
                except ValueError:
                    cells = None
                except RecursionError:
                    cells, fault = None, "is nested too deeply"
                if not isinstance(cells, dict):
                    cells, fault = {}, fault or "is no JSON object"
                yield RawRecord(self._place(number), number, cells, fault)

    def _parquet(self) -> Any:
        import pyarrow.parquet as pq

        try:
            return pq.ParquetFile(self.path, pre_buffer=False)  # or the whole file is held
        except Exception as error:
            reason = _reason(error)
            raise DataError(f"{self.path}: is no readable parquet file: {reason}") from error

    def _rows(self) -> Iterator[RawRecord]:
        batches = self._parquet().iter_batches(batch_size=_BLOCK, use_threads=False)
        rows = (cells for batch in batches for cells in batch.to_pylist())
        for number, cells in enumerate(_guarded(rows, self._unreadable)):
            yield RawRecord(self._place(number), number, cells)

    def _unreadable(self, number: int, error: Exception) -> DataError:
        return DataError(f"{self.path}: is damaged behind row {number}: {_reason(error)}")


class DatasetSource:
    """A ``datasets`` data set, streamed: a saved folder, a folder of data files, or a name."""

    def __init__(self, path: Path, config: "InputParams") -> None:
        """Open the data set without reading its rows.

        Raises:
            DataError: it is not there or cannot be opened.
        """
        self.path, self.local, self.config = path, path.exists(), config
        self.folder = None if not self.local else path if path.is_dir() else path.parent
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
        except Exception as error:  # of many libraries, one for each format
            reason = self._damage() or _reason(error)
            raise DataError(f"{name}: cannot be opened as a data set: {reason}") from error
        return stream.decode(False)

    def columns(self) -> Iterator[str]:
        """Yield the names of the columns."""
        yield from self.stream.features

    def fingerprint(self) -> str:
        """Return a digest of name and revision, and of the content of local files."""
        facts: list[Any] = [self.config.path, self.config.config, self.config.revision]
        files = tqdm(self._files(), desc="source", unit="file", mininterval=5, delay=5)
        facts += [[path.relative_to(self.path).as_posix(), sha256(path)] for path in files]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _files(self) -> list[Path]:
        """Return the data set's files on this machine."""
        if not self.local:
            return []
        return sorted(p for p in (self.path, *self.path.rglob("*")) if p.is_file())

    def _damage(self) -> str | None:
        """Return which of the local files cannot be read, and why."""
        for path in self._files():
            try:
                _read_through(path)
            except Exception as error:
                return f"{path.relative_to(self.path.parent)}: {_reason(error)}"
        return None

    def num_rows(self) -> int | None:
        """Return the number of rows where the data set tells it."""
        splits = self.stream.info.splits or {}
        found = splits.get(self.config.subset or "train")
        return None if found is None else int(found.num_examples)

    def records(self, shard: int, num_shards: int, start: int) -> Iterator[RawRecord]:
        """Yield the rows of a shard: whole files where there are enough, else rows in turn."""
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

        def unreadable(number: int, error: Exception) -> DanceflowError:
            text = f"{label}: cannot be read behind row {start + number}"
            if not self.local:  # perhaps the network: it may be tried again
                return DanceflowError(f"{text}: {_reason(error)}")
            return DataError(f"{text}: {self._damage() or _reason(error)}")

        for index, cells in enumerate(_guarded(iter(part), unreadable), start=start):
            yield RawRecord(f"{label}: row {index + 1}", index * num_shards + shard, cells)


def _guarded(rows: Iterator[T], failure: Callable[[int, Exception], DanceflowError]) -> Iterator[T]:
    """Yield what a library reads; its error, of whatever kind, becomes ours.

    Args:
        rows: what is read.
        failure: makes an error of the number of rows read before, and the library's.
    """
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise failure(number, error) from error
        yield row
        number += 1


def _reason(error: Exception) -> str:
    return brief(str(error), _LONG) or type(error).__name__


def _require_utf8(path: Path) -> None:
    """Check that a text file is UTF-8 as a whole, before any of its rows is worked on.

    Raises:
        DataError: naming the file, the line and the encoding that it seems to have.
    """
    mend = "save it as UTF-8"
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))
            if not encoding.startswith("utf-8"):
                raise DataError(f"{path}: is encoded in {encoding.upper()}; {mend}")
            file.seek(0)
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    guess = _single_byte_encoding(line)
                    raise DataError(
                        f"{path}: line {number} is not UTF-8 but {guess}; {mend}"
                    ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _single_byte_encoding(line: bytes) -> str:
    try:
        line.decode("cp1252")
    except UnicodeDecodeError:
        return "of another encoding"
    return "seems to be cp1252 (Windows-1252)"


def _read_through(path: Path) -> None:
    """Read a data file to its end; raise whatever its library does if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    batches: Iterable[Any] = ()
    if path.suffix == ".parquet":
        batches = pq.ParquetFile(path, pre_buffer=False).iter_batches(use_threads=False)
    elif path.suffix == ".arrow":
        batches = pa.ipc.open_stream(pa.memory_map(str(path)))
    elif path.suffix in (".csv", ".json", ".jsonl"):
        _require_utf8(path)
    for batch in batches:
        batch.validate(full=True)
