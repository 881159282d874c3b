"""An evaluation's tiles, cut up into pictures that a page can hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from danceflow.columns import SOURCE_COLUMNS
from danceflow.errors import DataError
from danceflow.evaluate.records import TILES, TILES_INDEX
from danceflow.pictures import data_uri, png_bytes, read_own

_ALWAYS = (*SOURCE_COLUMNS, "target")


@dataclass(frozen=True)
class TileRow:
    """One row of pictures.

    Attributes:
        kind: ``standard``, another variant, or ``lost``.
        category: of the prompt.
        prompt: what was asked.
        pictures: PNG data URIs by column: sources, ``target`` and the fields that were asked.
        scores: by field.
    """

    kind: str
    category: str
    prompt: str
    pictures: Mapping[str, str]
    scores: Mapping[str, float]


def read_tiles(folder: Path) -> list[TileRow]:
    """Return the rows of a capability's tiles.

    Raises:
        DataError: the tiles are missing or damaged.
    """
    try:
        index = json.loads((folder / TILES_INDEX).read_text(encoding="utf-8"))
        sheet = read_own((folder / TILES).read_bytes())
        size, columns = int(index["size"]), list(index["columns"])
        if sheet.size != (size * len(columns), size * len(index["rows"])):
            raise ValueError(f"{TILES} is {sheet.width} x {sheet.height} pixels")
        return [
            TileRow(
                kind=row["kind"],
                category=row["category"],
                prompt=row["prompt"],
                pictures={
                    name: data_uri(png_bytes(sheet.crop(_box(number, place, size)), 9))
                    for place, name in enumerate(columns)
                    if name in _ALWAYS or name in row["scores"]
                },
                scores=row["scores"],
            )
            for number, row in enumerate(index["rows"])
        ]
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: the pictures of this evaluation are missing or damaged ({error}); run the "
            f"stage: dvc repro evaluate@{folder.name}"
        ) from error


def _box(row: int, column: int, size: int) -> tuple[int, int, int, int]:
    return column * size, row * size, (column + 1) * size, (row + 1) * size
