"""An evaluation's tiles, cut up into pictures that a page can hold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from danceflow.columns import SOURCE_COLUMNS
from danceflow.errors import DataError
from danceflow.evaluate.records import STUDENT, TILES, TILES_INDEX
from danceflow.pictures import read_own
from danceflow.report.page.difference import difference, kept_share, without_bars

SOURCE, TARGET = SOURCE_COLUMNS[0], "target"
DIFFERENCE = "difference"
"""Column of what the student changed of the source."""


@dataclass(frozen=True)
class TileRow:
    """One row of pictures.

    Attributes:
        kind: ``standard``, another variant, or ``lost``.
        category: of the prompt.
        prompt: what was asked.
        pictures: by column: sources, ``target`` and the fields that were asked; of an edit also
            ``difference``.
        scores: by field.
        kept: of an edit, the share of the source's pixels that a column left alone.
    """

    kind: str
    category: str
    prompt: str
    pictures: Mapping[str, Image.Image]
    scores: Mapping[str, float]
    kept: Mapping[str, float] = field(default_factory=dict)


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
            _row(
                row,
                {
                    name: sheet.crop(_box(number, place, size))
                    for place, name in enumerate(columns)
                    if name in (*SOURCE_COLUMNS, TARGET) or name in row["scores"]
                },
            )
            for number, row in enumerate(index["rows"])
        ]
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: the pictures of this evaluation are missing or damaged ({error}); run the "
            f"stage: dvc repro evaluate@{folder.name}"
        ) from error


def _row(row: Mapping[str, Any], pictures: dict[str, Image.Image]) -> TileRow:
    kept: dict[str, float] = {}
    if SOURCE in pictures:
        # Further sources have bars of their own, and are nothing that was changed.
        some = {name: p for name, p in pictures.items() if name not in SOURCE_COLUMNS[1:]}
        bare = dict(zip(some, without_bars(list(some.values())), strict=True))
        kept = {name: kept_share(bare[SOURCE], bare[name]) for name in bare if name != SOURCE}
        if STUDENT in pictures:
            pictures |= {DIFFERENCE: difference(pictures[SOURCE], pictures[STUDENT])}
    return TileRow(row["kind"], row["category"], row["prompt"], pictures, row["scores"], kept)


def _box(row: int, column: int, size: int) -> tuple[int, int, int, int]:
    return column * size, row * size, (column + 1) * size, (row + 1) * size
