"""Stage ``prepare`` for what users bring: tables, image folders and ``datasets`` data sets."""

import csv
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from danceflow.columns import SOURCE_COLUMNS
from danceflow.data.buckets import BucketWriter, write_framing
from danceflow.data.intake.parts import ingest, read_facts, read_part, require_few_bad
from danceflow.data.intake.reader import BadRow, FactsTrouble, no_trouble
from danceflow.data.intake.sources import open_source
from danceflow.data.intake.splits import LIGHT_COLUMNS, Selection, select_rows
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory, atomic_file

if TYPE_CHECKING:
    from danceflow.params.sections import DataParams
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)
QUARANTINE = "quarantine.csv"
"""In ``data/buckets``: the rows that could not be used, each with its place, field and reason."""

SPLITS = ("train", "validation", "test")
_NUM_SKIP_REASONS = 50
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|")


def write(data: "DataParams", paths: "Paths", trouble: FactsTrouble = no_trouble) -> dict[str, Any]:
    """Write ``data/buckets`` from a user's rows and return what the data report tells of it.

    Raises:
        DataError: the source cannot be read, too many of its rows are bad, or none is left for a
            split.
    """
    if data.source is None or data.input is None:
        raise ValueError("there is nothing to read")
    source = open_source(data.source, data.input, paths.root)
    with keys.prepared(data, source.fingerprint()).working(paths) as work:
        return _prepare(data, paths, work, trouble)


def _prepare(
    data: "DataParams", paths: "Paths", work: Path, trouble: FactsTrouble
) -> dict[str, Any]:
    """Write the buckets by way of checked parts in ``work``, which is removed at the end."""
    assert data.input is not None
    parts = ingest(data, paths.root, work, trouble)
    facts = [read_facts(part) for part in parts]
    bad = [row for item in facts for row in item.bad]
    num_records = sum(item.num_records for item in facts)
    table = work / QUARANTINE
    _write_quarantine(table, bad)
    require_few_bad(bad, num_records, data.input.max_bad, table)
    selection = select_rows(_light(parts), data.buckets, data.seed)
    bad += selection.bad
    _write_quarantine(table, bad)
    require_few_bad(bad, num_records, data.input.max_bad, table)
    with atomic_directory(paths.buckets) as folder:
        buckets = _write_buckets(folder, parts, selection, list(data.buckets))
        shutil.copyfile(table, folder / QUARANTINE)
        write_framing(folder, data)
    skipped: Counter[str] = Counter()
    for item in facts:
        skipped.update(item.skipped)
    rows = {
        "read": num_records,
        "written": len(selection.places),
        "bad": len(bad),
        "duplicates": selection.num_duplicates,
        "in_two_splits": selection.num_leaks,
        "spare": selection.num_spare,
        "skipped": sum(skipped.values()),
    }
    report = {
        "buckets": buckets,
        "rows": rows,
        "bad_fields": dict(Counter(row.field for row in bad).most_common()),
        "skipped": dict(skipped.most_common(_NUM_SKIP_REASONS)),
    }
    shutil.rmtree(work)
    _LOG.info("wrote %s: %s", paths.buckets, ", ".join(f"{n} {name}" for name, n in rows.items()))
    if bad:
        _LOG.warning("%d bad rows, with their reasons: %s", len(bad), paths.buckets / QUARANTINE)
    return report


def _light(parts: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from read_part(part, list(LIGHT_COLUMNS))


def _write_buckets(
    folder: Path, parts: Sequence[Path], selection: Selection, buckets: Sequence[str]
) -> dict[str, Any]:
    """Write every split of every bucket and return what they hold."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    prompts: dict[tuple[str, str], set[int]] = {}
    with ExitStack() as stack:
        writers = {
            (bucket, split): stack.enter_context(
                BucketWriter(folder / bucket / split, selection.num_further.get(bucket, 0))
            )
            for bucket in buckets
            for split in SPLITS
        }
        for part in tqdm(parts, desc="buckets", unit="part", mininterval=5):
            for row in read_part(part):
                place = selection.places.get(row["number"])
                if place is None:
                    continue
                writers[place].add(
                    {
                        **{name: row[name] for name in ("uid", "category", "variant", "prompt")},
                        **{name: _cell(row[name]) for name in SOURCE_COLUMNS},
                        "target": _cell(row["target"]),
                        "spec": row["spec"],
                    }
                )
                counts.setdefault(place, Counter())[f"{row['variant']}/{row['category']}"] += 1
                prompts.setdefault(place, set()).add(hash(row["prompt"]))
    return {
        bucket: {
            split: {
                "num_samples": sum(counts[bucket, split].values()),
                "num_prompts": len(prompts[bucket, split]),
                "categories": dict(sorted(counts[bucket, split].items())),
            }
            for split in SPLITS
        }
        for bucket in buckets
    }


def _cell(data: bytes | None) -> dict[str, Any] | None:
    return None if data is None else {"bytes": data, "path": None}


def _write_quarantine(path: Path, bad: Sequence[BadRow]) -> None:
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("place", "field", "reason"))
        writer.writerows(map(_cell_text, (row.place, row.field, row.reason)) for row in bad)


def _cell_text(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula: names of files may begin as one."""
    return f"'{text}" if text.startswith(_FORMULA) else text
