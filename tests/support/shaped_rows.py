"""Buckets whose pictures have two shapes: a table of rows, prepared, and the parameters for it."""

from pathlib import Path
from typing import Any

from PIL import Image
from tiny_project import SIZES
from user_rows import INPUT, picture, row_data, write_csv

from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.worlds import prepare

SQUARE, WIDE = (24, 24), (20, 28)
"""Height and width of what a row of ratio 1:1 or 3:2 becomes."""

CAPABILITIES = ("t2i", "local_edit")
COUNTS = {"train": 12, "validation": 6, "test": 6}
_PROMPTS = {
    "make": ("a red circle", "a photo of a blue square", "two red squares"),
    "object_swap": ("make the red circle green", "remove the blue square"),
}


def shaped_data(ratios: tuple[str, ...] = ("1:1", "3:2"), **changes: Any) -> dict[str, Any]:
    """The content of a params file; every third picture is wide where a wide ratio is given."""
    columns = {**INPUT["columns"], "split": "part"}
    data = row_data(
        path="data/raw/pets/pets.csv",
        columns=columns,
        aspect_ratios=list(ratios),
        size_multiple=4,
    )
    data["data"]["image_size"] = 24
    data["family"]["transformer"]["patch_size"] = 4
    data["data"]["buckets"] = {name: dict(SIZES) for name in CAPABILITIES}
    return override(data, {name.replace("__", "."): value for name, value in changes.items()})


def write_rows(folder: Path) -> None:
    """Write rows in turn of a picture to make and an edit, with every third of each wide."""
    rows = []
    for split, count in COUNTS.items():
        for number in range(2 * count):
            kind = ("make", "object_swap")[number % 2]
            shape = (90, 36) if number // 2 % 3 == 0 else (36, 36)
            name = f"{split}-{number}"
            before, after = picture(len(rows), shape), picture(1000 + len(rows), shape)
            if kind == "object_swap":  # the left half stays
                after.paste(before.crop((0, 0, shape[0] // 2, shape[1])), (0, 0))
            folder.mkdir(parents=True, exist_ok=True)
            for image, end in ((before, "before"), (after, "after")):
                _small_steps(image).save(folder / f"{name}-{end}.png")
            prompts = _PROMPTS[kind]
            rows.append(
                {
                    "id": name,
                    "kind": kind,
                    "text": prompts[number // 2 % len(prompts)],
                    "before": f"{name}-before.png" if kind == "object_swap" else "",
                    "after": f"{name}-after.png",
                    "part": split,
                }
            )
    write_csv(folder / "pets.csv", rows)


def _small_steps(image: Image.Image) -> Image.Image:
    """The picture in coarse blocks, which survive being made smaller."""
    small = image.resize((image.width // 6, image.height // 6), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def prepared(root: Path, data: dict[str, Any]) -> Params:
    """Write the rows and their buckets below ``root`` and return the parameters."""
    paths = Paths(root)
    write_rows(paths.raw / "pets")
    data["data"]["input"]["path"] = str(paths.raw / "pets/pets.csv")
    params = parse_params(data, "test")
    prepare.run(params, paths)
    return params
