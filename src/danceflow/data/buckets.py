"""Buckets on disk: one ``datasets`` folder per bucket and split, always with the same columns.

Those of edits of several pictures have a column for each further one, too.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from danceflow.columns import SOURCE_COLUMNS
from danceflow.errors import DataError
from danceflow.ops.files import read_object, write_json
from danceflow.pictures import FIT, PAPER, png_bytes, read_own, to_picture, to_pixels

if TYPE_CHECKING:
    from danceflow.params.sections import DataParams

COLUMNS = ("uid", "category", "variant", "prompt", "source", "target", "spec")
VALIDATION = "validation"
"""The split by which trainings are watched; the test split stays unseen until they are over."""
FRAMING = "framing.json"
"""In ``data/buckets``: how pictures were brought into their frame, which a student goes on with."""

_PICTURES = (*SOURCE_COLUMNS, "target")
_DATA_FILE = "data-00000-of-00001.arrow"
_ROWS_IN_MEMORY = 64
_EMPTY = "this bucket is empty; its capability has nothing to learn from"


def columns_of(num_further: int = 0) -> tuple[str, ...]:
    """Return the columns of a bucket whose rows have so many further pictures at most."""
    return COLUMNS + SOURCE_COLUMNS[1 : 1 + num_further]


def features(num_further: int = 0) -> Any:
    """Return the ``datasets`` features of every bucket.

    ``uid``, ``category``, ``variant``, ``prompt``: text. ``source`` (``None`` for text-to-image),
    further ones (``None`` in rows without) and ``target``: PNG images. ``spec``: JSON of what the
    world knows about the answer, empty where it knows nothing.
    """
    from datasets import Features, Image, Value

    text = Value("string")
    return Features({n: Image() if n in _PICTURES else text for n in columns_of(num_further)})


def write_bucket(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write ``rows`` to ``folder`` in ``datasets``' own format."""
    from datasets import Dataset

    table = {name: [] for name in COLUMNS}  # type: dict[str, list[Any]]
    for row in rows:
        for name in COLUMNS:
            table[name].append(row[name])
    Dataset.from_dict(table, features=features()).save_to_disk(str(folder))


class BucketWriter:
    """Writes a split row by row in ``datasets``' own format, a few pictures at a time in memory.

    To be used in a ``with`` block; the split can be read when the block was left.
    """

    def __init__(self, folder: Path, num_further: int = 0) -> None:
        """Take what to write.

        Args:
            folder: may not be there yet.
            num_further: pictures of a row beside the first source, at most.
        """
        self.folder, self.columns = folder, columns_of(num_further)
        self.features = features(num_further)
        self.digest = hashlib.blake2b(digest_size=8)

    def __enter__(self) -> "BucketWriter":
        """Open the file of the rows."""
        from datasets.arrow_writer import ArrowWriter

        self.folder.mkdir(parents=True)
        path = self.folder / _DATA_FILE
        self.writer = ArrowWriter(
            features=self.features, path=str(path), writer_batch_size=_ROWS_IN_MEMORY
        )
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of the bucket's columns; pictures are PNG cells or ``None``."""
        for name in self.columns:
            cell = row[name]
            data = cell["bytes"] if isinstance(cell, dict) else (cell or "").encode()
            self.digest.update(len(data).to_bytes(8, "big") + data)
        self.writer.write({name: row[name] for name in self.columns})

    def __exit__(self, *error: object) -> None:
        """Close the file and describe it, unless the block was left by an error."""
        from datasets import DatasetInfo

        if error[0] is not None:
            self.writer.close()
            return
        self.writer.finalize()
        DatasetInfo(features=self.features).write_to_directory(str(self.folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": _DATA_FILE}],
            "_fingerprint": self.digest.hexdigest(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))


def read_bucket(folder: Path, split: str) -> Any:
    """Return the ``datasets.Dataset`` of a split, images undecoded (PNG bytes).

    Raises:
        DataError: if the split is missing, damaged or empty, or has other columns.
    """
    from datasets import Image, load_from_disk

    place = folder / split
    try:
        dataset = load_from_disk(str(place))
    except Exception as error:
        if _has_no_file(place):  # which datasets writes for no rows, but does not read
            raise DataError(f"{place}: {_EMPTY}") from error
        raise DataError(f"{place}: cannot be read as a data set: {error}") from error
    if {*dataset.column_names} - {*SOURCE_COLUMNS[1:]} != {*COLUMNS}:
        raise DataError(f"{place}: has columns {dataset.column_names}, expected {list(COLUMNS)}")
    if len(dataset) == 0:
        raise DataError(f"{place}: {_EMPTY}")
    for name in (*source_columns(dataset), "target"):
        dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def bucket_digest(folder: Path, split: str) -> str:
    """Return the digest of a split's rows, as they were written.

    Raises:
        DataError: if the split is missing, damaged or empty, or has other columns.
    """
    return str(read_bucket(folder, split)._fingerprint)


def write_framing(folder: Path, data: "DataParams") -> None:
    """Write beside the buckets how their pictures were framed: ``fit`` and ``paper``."""
    fit, paper = (FIT, PAPER) if data.input is None else (data.input.fit, data.input.paper)
    write_json(folder / FRAMING, {"fit": fit, "paper": paper})


def read_framing(folder: Path) -> dict[str, str]:
    """Return ``fit`` and ``paper`` of the pictures in the buckets below ``folder``.

    Raises:
        DataError: they were prepared without.
    """
    path, advice = folder / FRAMING, "run the stage prepare"
    found = read_object(path, advice)
    if missing := {"fit", "paper"} - found.keys():
        raise DataError(f"{path}: has no {' and no '.join(sorted(missing))}; {advice}")
    return {"fit": str(found["fit"]), "paper": str(found["paper"])}


def _has_no_file(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "state.json").read_text())["_data_files"] == [])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def images_of(dataset: Any, rows: Sequence[int], column: str) -> Tensor:
    """Return the images of ``column``, [B, 3, H, W] float32 in [0, 1].

    Raises:
        DataError: naming the row whose image is missing or corrupt, or images of several sizes.
    """
    part = dataset.select(list(rows))
    cells = zip(rows, part["uid"], part[column], strict=True)
    images = [_decode(cell, f"row {row} ({uid}), {column}") for row, uid, cell in cells]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        shown = " and ".join(f"{width} x {height}" for _, height, width in sorted(sizes)[:2])
        raise DataError(f"{column}: images of {shown} pixels cannot be computed together")
    return torch.stack(images)


def source_columns(dataset: Any) -> tuple[str, ...]:
    """Return the columns of pictures to edit that a bucket has."""
    return tuple(name for name in SOURCE_COLUMNS if name in dataset.column_names)


def sources_of(dataset: Any, rows: Sequence[int]) -> list[Tensor]:
    """Return the pictures to edit of rows by place, [B, 3, H, W] float32 in [0, 1] each.

    Where a row has no further picture it is NaN.

    Raises:
        DataError: naming the row whose image is missing or corrupt, or images of several sizes.
    """
    first = images_of(dataset, rows, SOURCE_COLUMNS[0])
    found = [first]
    for name in source_columns(dataset)[1:]:
        cells = dataset.select(list(rows))[name]
        there = [place for place, cell in enumerate(cells) if cell is not None]
        images = torch.full_like(first, math.nan)
        if there:
            images[there] = images_of(dataset, [rows[place] for place in there], name)
        found.append(images)
    return found


def encoded_sources(
    images: Sequence[Tensor], encode: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return latents of pictures to edit, zeros where there is none, and pictures to look at.

    Args:
        images: what ``sources_of`` gives.
        encode: gives the latents of pictures.
    """
    there = [~image.flatten(1).isnan().any(1) for image in images]
    seen = [image.nan_to_num(0.0) for image in images]
    latents = [encode(image) for image in seen]
    kept = [
        found * own.to(found).reshape(-1, *[1] * (found.ndim - 1))
        for found, own in zip(latents, there, strict=True)
    ]
    return kept, seen


def _decode(cell: dict[str, Any] | None, place: str) -> Tensor:
    if cell is None or cell["bytes"] is None:
        raise DataError(f"{place}: there is no image")
    try:
        return to_pixels(read_own(cell["bytes"]))
    except DataError as error:
        raise DataError(f"{place}: the image is corrupt: {error}") from error


def encode_png(image_3HW: Tensor) -> dict[str, Any]:
    """Return an image in [0, 1] as the PNG cell of an image column."""
    return {"bytes": png_bytes(to_picture(image_3HW)), "path": None}


def rows_of(dataset: Any, num_per_category: int, variant: str, *, at_least: int) -> list[int]:
    """Return the first ``num_per_category`` rows of each category of a variant.

    Args:
        dataset: what ``read_bucket`` gives.
        num_per_category: rows of each category, at most.
        variant: whose rows are counted.
        at_least: how many each category must have.

    Raises:
        DataError: a category has fewer rows.
    """
    counts: dict[str, int] = {}
    rows = []
    for row, (found, category) in enumerate(
        zip(dataset["variant"], dataset["category"], strict=True)
    ):
        if found == variant and counts.setdefault(category, 0) < num_per_category:
            counts[category] += 1
            rows.append(row)
    short = [category for category, count in counts.items() if count < at_least]
    if short or not (rows or at_least == 0):
        raise DataError(
            f"{num_per_category} rows per category were asked for, but {short or 'the bucket'} has "
            "fewer; raise data.buckets.<bucket>.num_test or lower evaluate.num_samples"
        )
    return rows
