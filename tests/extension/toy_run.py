"""Runs in a checkout that the toys were added to: from rows in a table to scores."""

import csv
import json
import random
from pathlib import Path

from params_files import dump_yaml
from PIL import Image
from tiny_project import small_data, write_teachers

from danceflow.params.read import parse_params
from danceflow.paths import Paths
from danceflow.stages import run_stage

CAPABILITIES = ("paint", "tint")
NUM_ROWS, SIDE = 40, 16


def write_rows(folder: Path) -> None:
    """Write sheets of colours that no other row has; every second row edits a gray one."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    with (folder / "sheets.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["task", "prompt", "source", "target", "facts"])
        for row in range(NUM_ROWS):
            rgb = tuple(draw.randrange(256) for _ in range(3))
            Image.new("RGB", (SIDE, SIDE), rgb).save(folder / f"{row}.png")
            if row % 2 == 0:
                words = f"paint it {rgb[0]} {rgb[1]} {rgb[2]}"
                table.writerow(["paint", words, "", f"{row}.png", json.dumps({"rgb": rgb})])
                continue
            gray = Image.new("RGB", (SIDE, SIDE), (row, row, row))
            gray.save(folder / f"{row}-before.png")
            table.writerow(["tint", "tint it", f"{row}-before.png", f"{row}.png", ""])


def params_of(root: Path) -> None:
    """Write ``params.yaml``: two capabilities of one's own, on rows of one's own."""
    data = small_data(
        ("t2i", "local_edit"),
        family__name="toy",
        distill__method="toy",
        distill__num_updates=2,
        distill__capabilities_per_update="all",
    )
    data["family"]["transformer"] |= {"sample_size": SIDE, "patch_size": 1}
    data["data"] |= {
        "world": "sheets",
        "source": "table",
        "image_size": SIDE,
        "input": {
            "path": "data/raw/sheets/sheets.csv",
            "config": None,
            "revision": None,
            "subset": None,
            "columns": {
                "task": "task",
                "prompt": "prompt",
                "source": "source",
                "target": "target",
                "spec": "facts",
            },
            "tasks": {name: [name] for name in CAPABILITIES},
            "min_score": None,
            "fit": "crop",
            "aspect_ratios": ["1:1"],
            "size_multiple": 1,
            "min_side": SIDE,
            "paper": "#ffffff",
            "max_bad": 0.0,
            "num_shards": 1,
        },
        "buckets": {
            name: {"num_train": 8, "num_validation": 4, "num_test": 4} for name in CAPABILITIES
        },
    }
    data["capabilities"] = {
        name: given | {"bucket": name}
        for name, given in zip(CAPABILITIES, data["capabilities"].values(), strict=True)
    }
    for name, teacher in zip(CAPABILITIES, data["teachers"].values(), strict=True):
        teacher["bucket"] = name
    data["gate"]["min_retention"] = dict.fromkeys(CAPABILITIES, 0.9)
    (root / "params.yaml").write_text(dump_yaml(data))
    write_teachers(parse_params(data, "toy"), Paths(root))


if __name__ == "__main__":
    here = Path.cwd()
    write_rows(here / "data" / "raw" / "sheets")
    params_of(here)
    run_stage("prepare")
    for capability in CAPABILITIES:
        run_stage("cache", capability)
    run_stage("distill")
    for capability in CAPABILITIES:
        run_stage("evaluate", capability)
