"""Reads a source into checked parts on disk: resumable, in flat memory, in several processes.

A part holds the good rows of some hundred records in a row as one parquet file, and in that file's
metadata what became of the others, and the content of every picture file that was looked at. A part
is there as a whole or not at all, so an interrupted run goes on after its last one. A part whose
picture files hold something else by now is read again.
"""

import json
import logging
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from danceflow.columns import SOURCE_COLUMNS
from danceflow.data.intake.picture_files import PictureFiles
from danceflow.data.intake.reader import (
    BadRow,
    CheckedRow,
    FactsTrouble,
    RowReader,
    SkippedRow,
    no_trouble,
)
from danceflow.data.intake.sources import RawRecord, open_source
from danceflow.errors import DataError
from danceflow.ops.files import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa

    from danceflow.params.sections import DataParams

_LOG = logging.getLogger(__name__)
_PART_ROWS = 512
"""Records per part."""
_GROUP_BYTES = 8_000_000
"""Pictures that are held in memory before they are written."""
_FACTS, _FILES = b"danceflow", b"danceflow.files"
_BINARY = (*SOURCE_COLUMNS, "target", "source_digest", "further_digests", "target_digest")


@dataclass(frozen=True)
class Facts:
    """What became of the records of a part.

    Attributes:
        num_records: how many were read.
        bad: those that cannot be used.
        skipped: how many were left out, by reason.
    """

    num_records: int
    bad: tuple[BadRow, ...]
    skipped: dict[str, int]


def ingest(
    data: "DataParams", root: Path, work: Path, trouble: FactsTrouble = no_trouble
) -> list[Path]:
    """Read the whole source into parts below ``work`` and return them in order.

    Args:
        data: the ``data`` section, with an input.
        root: the checkout.
        work: the folder of the parts; those that are there and still true are kept.
        trouble: what the world has against a row's facts.

    Raises:
        DataError: the source cannot be read, or more rows are bad than ``max_bad`` allows.
    """
    if data.source is None or data.input is None:
        raise ValueError("only a source with an input is read row by row")
    num_shards = data.input.num_shards
    if num_shards == 1:
        _ingest_shard(data, root, work, 0, trouble)
    else:
        # Fresh processes: a forked one would share locks of libraries that have threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_shards, mp_context=context) as pool:
            jobs = [
                pool.submit(_ingest_shard, data, root, work, n, trouble) for n in range(num_shards)
            ]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return sorted(work.glob("part-*.parquet"))


def _ingest_shard(
    data: "DataParams", root: Path, work: Path, shard: int, trouble: FactsTrouble
) -> None:
    """Write the parts of one shard that are not there yet, or whose pictures changed."""
    if data.source is None or data.input is None:
        raise ValueError("only a source with an input is read row by row")
    config = data.input
    source = open_source(data.source, config, root)
    reader = RowReader(data, source.folder, trouble)
    records: Iterator[RawRecord] | None = None
    num_records = num_bad = 0
    total = source.num_rows()
    with tqdm(
        desc=f"rows {shard + 1}/{config.num_shards}" if config.num_shards > 1 else "rows",
        total=None if total is None else -(-total // config.num_shards),
        position=shard,
        unit="row",
        mininterval=5,
    ) as bar:
        for number in count():
            path = work / f"part-{shard:03d}-{number:06d}.parquet"
            facts = _kept(path, reader.files)
            if facts is None:
                if records is None:
                    if num_records:
                        _LOG.info("going on after row %d of shard %d", num_records, shard)
                    records = source.records(shard, config.num_shards, num_records)
                facts = _write_part(path, reader, islice(records, _PART_ROWS), bar)
            else:
                bar.update(facts.num_records)
                if records is not None:
                    deque(islice(records, facts.num_records), maxlen=0)
            num_records, num_bad = num_records + facts.num_records, num_bad + len(facts.bad)
            if facts.num_records < _PART_ROWS:
                return  # only the last part of a shard is short
            # Early enough to save hours, late enough that a few bad rows at the top do not count.
            if num_bad > config.max_bad * max(num_records, 10_000):
                return


def _kept(path: Path, files: PictureFiles) -> Facts | None:
    """Return what became of a part's records, None where they must be read (again)."""
    import pyarrow.parquet as pq

    if not path.is_file():
        return None
    seen = json.loads(pq.read_metadata(path).metadata[_FILES])
    if not files.still_hold(seen):
        _LOG.info("%s: its pictures are others by now", path.name)
        return None
    return read_facts(path)


def _write_part(path: Path, reader: RowReader, records: Iterator[RawRecord], bar: Any) -> Facts:
    """Write the rows of some records and return what became of the others."""
    import pyarrow.parquet as pq

    bad: list[BadRow] = []
    skipped: Counter[str] = Counter()
    num_records = 0
    reader.files.seen.clear()
    with atomic_file(path) as partial:
        writer = pq.ParquetWriter(partial, _schema(), compression="NONE")
        with writer:
            group: list[CheckedRow] = []
            size = 0
            for record in records:
                found = reader.read(record)
                num_records += 1
                bar.update()
                if isinstance(found, BadRow):
                    bad.append(found)
                elif isinstance(found, SkippedRow):
                    skipped[found.kind] += 1
                else:
                    group.append(found)
                    files = (found.target, found.source, found.source_2, found.source_3)
                    size += sum(len(file or b"") for file in files)
                    if size > _GROUP_BYTES:
                        writer.write_batch(_batch(group))
                        group, size = [], 0
            if group:
                writer.write_batch(_batch(group))
            facts = Facts(num_records, tuple(bad), dict(skipped))
            notes = {_FACTS: asdict(facts), _FILES: reader.files.seen}
            writer.add_key_value_metadata({k: json.dumps(v).encode() for k, v in notes.items()})
    return facts


def read_facts(part: Path) -> Facts:
    """Return what became of the records of a part."""
    import pyarrow.parquet as pq

    found = json.loads(pq.read_metadata(part).metadata[_FACTS])
    bad = tuple(BadRow(**row) for row in found["bad"])
    return Facts(found["num_records"], bad, found["skipped"])


def read_part(part: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part, all columns or some, a group of rows at a time in memory."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(part, memory_map=False, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=columns, use_threads=False).to_pylist()


def require_few_bad(bad: list[BadRow], num_records: int, max_bad: float, table: Path) -> None:
    """Check that the rows that cannot be used are few enough.

    Args:
        bad: those rows.
        num_records: how many were read.
        max_bad: share of them that may be bad.
        table: where the bad rows were written, for the message.

    Raises:
        DataError: there are more, or there is no row at all.
    """
    if num_records == 0:
        raise DataError("data.input: the source holds no row")
    if len(bad) > max_bad * num_records:
        first = "; ".join(f"{row.place}, {row.field}: {row.reason}" for row in bad[:3])
        raise DataError(
            f"{len(bad)} of {num_records} rows are bad, data.input.max_bad allows {max_bad:g} "
            f"({first}); all of them: {table}"
        )


def _schema() -> "pa.Schema":
    import pyarrow as pa

    def kind(name: str) -> pa.DataType:
        if name == "number":
            return pa.int64()
        return pa.binary() if name in _BINARY else pa.string()

    return pa.schema([(item.name, kind(item.name)) for item in fields(CheckedRow)])


def _batch(rows: list[CheckedRow]) -> "pa.RecordBatch":
    import pyarrow as pa

    schema = _schema()
    columns = [pa.array([getattr(row, f.name) for row in rows], f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
