"""Which rows of a source go where: splits, duplicates, leaks and sizes, from digests alone.

The decision needs a few dozen bytes per row, so it is made for all rows at once; pictures are
copied afterwards, one after the other.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from danceflow.data.intake.reader import DIGEST_BYTES, BadRow
from danceflow.errors import DataError, brief
from danceflow.fields import seed_for

if TYPE_CHECKING:
    from danceflow.params.sections import BucketParams

SPLIT_ORDER = ("test", "validation", "train")
"""Whose pictures are kept where two splits would share one: the first's."""

LIGHT_COLUMNS = (
    "place", "number", "bucket", "split", "uid", "prompt", "source_digest", "further_digests",
    "target_digest",
)  # fmt: skip
_SCALE = 1 << 63


@dataclass
class Selection:
    """Where every row goes.

    Attributes:
        places: (bucket, split) by row number.
        bad: rows that cannot be used together with the others.
        num_duplicates: rows that repeat an earlier one.
        num_leaks: rows whose picture stands in a split that matters more.
        num_spare: rows beyond the sizes that were asked for.
        num_further: by bucket, how many further pictures a row of it has at most.
    """

    places: dict[int, tuple[str, str]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    num_duplicates: int = 0
    num_leaks: int = 0
    num_spare: int = 0
    num_further: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Light:
    number: int
    bucket: str
    split: str
    pictures: tuple[bytes, ...]


def select_rows(
    rows: Iterable[Mapping[str, Any]], buckets: Mapping[str, "BucketParams"], seed: int
) -> Selection:
    """Return where every row goes.

    A row without a split gets one by chance, in the proportion of the bucket's sizes; rows of one
    picture (an edit's source, else the target) get the same. No picture then stands in two splits:
    a row of training that shares one with a row of test is left out. Of more rows than a split may
    hold, chance keeps some.

    Args:
        rows: ``LIGHT_COLUMNS`` of every row, in order.
        buckets: sizes by bucket.
        seed: decides what chance decides.

    Raises:
        DataError: a split of a bucket is left without a row.
    """
    selection = Selection()
    light = _distinct(rows, buckets, seed, selection)
    kept = _without_leaks(light, selection)
    for bucket, sizes in buckets.items():
        for split, size in _sizes(sizes).items():
            numbers = [row.number for row in kept if (row.bucket, row.split) == (bucket, split)]
            if not numbers:
                raise DataError(f"data.buckets.{bucket}: no row of the source is left for {split}")
            numbers.sort(key=lambda number: seed_for(seed, f"take/{bucket}/{split}", 0, number))
            selection.num_spare += max(0, len(numbers) - size)
            selection.places |= dict.fromkeys(numbers[:size], (bucket, split))
    return selection


def _sizes(sizes: "BucketParams") -> dict[str, int]:
    return {"train": sizes.num_train, "validation": sizes.num_validation, "test": sizes.num_test}


def _distinct(
    rows: Iterable[Mapping[str, Any]],
    buckets: Mapping[str, "BucketParams"],
    seed: int,
    selection: Selection,
) -> list[_Light]:
    """Return the rows that stand there once and fit the others of their bucket."""
    light: list[_Light] = []
    seen: set[bytes] = set()
    uids: dict[str, str] = {}
    without_source: dict[str, list[tuple[int, str]]] = {}
    edits: Counter[str] = Counter()
    for row in rows:
        key = (
            b"\0".join((row["bucket"].encode(), row["source_digest"], row["target_digest"]))
            + row["further_digests"]
            + row["prompt"].encode()
        )
        if key in seen:
            selection.num_duplicates += 1
            continue
        seen.add(key)
        if row["uid"] in uids:
            reason = f"'{brief(row['uid'])}' is the name of {uids[row['uid']]}, too"
            selection.bad.append(BadRow(row["place"], "uid", reason))
            continue
        uids[row["uid"]] = row["place"]
        further = _parted(row["further_digests"])
        bucket, pictures = row["bucket"], (row["source_digest"], row["target_digest"], *further)
        selection.num_further[bucket] = max(selection.num_further.get(bucket, 0), len(further))
        if row["source_digest"]:
            edits[bucket] += 1
        else:
            without_source.setdefault(bucket, []).append((row["number"], row["place"]))
        anchor = pictures[0] or pictures[1]
        split = row["split"] or _chance_split(anchor, buckets[bucket], seed)
        light.append(_Light(row["number"], bucket, split, tuple(item for item in pictures if item)))
    lacking: set[int] = set()
    for bucket in edits.keys() & without_source.keys():
        for number, place in without_source[bucket]:
            reason = f"is empty, and other rows of bucket {bucket!r} have one"
            selection.bad.append(BadRow(place, "source", reason))
            lacking.add(number)
    return [row for row in light if row.number not in lacking]


def _parted(digests: bytes) -> list[bytes]:
    """Return digests that stand one behind the other."""
    starts = range(0, len(digests), DIGEST_BYTES)
    return [digests[start : start + DIGEST_BYTES] for start in starts]


def _chance_split(anchor: bytes, sizes: "BucketParams", seed: int) -> str:
    """Return the split of a picture, in the proportion of the sizes."""
    share = seed_for(seed, f"split/{anchor.hex()}", 0, 0) / _SCALE
    wanted = _sizes(sizes)
    point = share * sum(wanted.values())
    for split, size in wanted.items():
        if point < size:
            return split
        point -= size
    return "train"


def _without_leaks(light: list[_Light], selection: Selection) -> list[_Light]:
    owner: dict[bytes, str] = {}
    for split in SPLIT_ORDER:
        for row in light:
            if row.split == split:
                for picture in row.pictures:
                    owner.setdefault(picture, split)
    kept = [row for row in light if all(owner[item] == row.split for item in row.pictures)]
    selection.num_leaks = len(light) - len(kept)
    return kept
