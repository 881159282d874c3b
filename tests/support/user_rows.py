"""What a user might bring: pictures, tables of them, and the parameters that describe both."""

import copy
import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_project import small_data

from danceflow.params.read import parse_params
from danceflow.params.sections import Params

INPUT: Mapping[str, Any] = {
    "path": "data/raw/pets/pets.csv",
    "config": None,
    "revision": None,
    "subset": None,
    "columns": {
        "uid": "id",
        "task": "kind",
        "prompt": "text",
        "source": "before",
        "target": "after",
    },
    "tasks": {"t2i": ["make"], "local_edit": ["object swap"]},
    "min_score": None,
    "fit": "crop",
    "aspect_ratios": ["1:1"],
    "size_multiple": 8,
    "min_side": 8,
    "paper": "#ffffff",
    "max_bad": 0.2,
    "num_shards": 1,
}


def picture(seed: int, size: tuple[int, int] = (20, 20)) -> Image.Image:
    """A picture of noise that no other seed gives."""
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pets(folder: Path, count: int = 60) -> list[dict[str, Any]]:
    """Rows in turn of a picture to make and an edit; their pictures are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        edit = number % 2 == 1
        picture(number).save(folder / f"{number}.png")
        picture(1000 + number).save(folder / f"{number}-after.png")
        rows.append(
            {
                "id": f"pet-{number}",
                "kind": "object_swap" if edit else "make",
                "text": f"swap pet {number}" if edit else f"a pet {number}",
                "before": f"{number}.png" if edit else "",
                "after": f"{number}-after.png",
            }
        )
    return rows


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row_data(source: str = "table", **changes: Any) -> dict[str, Any]:
    """The content of a params file that reads rows; ``changes`` are of ``data.input``."""
    data = small_data(("t2i", "local_edit"))
    data["data"] |= {"world": "rows", "source": source}
    data["data"]["input"] = copy.deepcopy({**INPUT, **changes})
    return data


def only(bucket: str, data: dict[str, Any]) -> dict[str, Any]:
    """The same with one of the two buckets alone, and its capability and teacher."""
    other, teacher = {"t2i": ("local_edit", "local"), "local_edit": ("t2i", "base")}[bucket]
    del data["data"]["buckets"][other]
    del data["capabilities"][other]
    del data["gate"]["min_retention"][other]
    del data["teachers"][teacher]
    columns = data["data"]["input"]["columns"]
    tasks = data["data"]["input"]["tasks"]
    data["data"]["input"]["tasks"] = {bucket: tasks[bucket]} if "task" in columns else {}
    return data


def row_params(source: str = "table", **changes: Any) -> Params:
    return parse_params(row_data(source, **changes), "test")
