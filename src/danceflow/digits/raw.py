"""Writes the digits as a user would bring them: PNG files and a CSV table."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from danceflow.digits.world import Array, Digit, DigitSample, load_digits, questions
from danceflow.ops.files import atomic_directory

_LOG = logging.getLogger(__name__)
TABLE = "digits.csv"
COLUMNS = (
    "uid", "task", "category", "variant", "split", "prompt", "source", "target", "spec",
)  # fmt: skip


def write_digits(folder: Path, num_digits: int | None = None) -> int:
    """Write ``digits.csv`` and its pictures to ``folder`` and return the number of rows.

    Args:
        folder: replaced as a whole.
        num_digits: how many scans to take, from the first; None: all 1,797.
    """
    digits = load_digits()[:num_digits]
    count = 0
    with atomic_directory(folder, flush=False) as place:
        (place / "images").mkdir()
        scans: dict[int, str] = {}
        with (place / TABLE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for item in tqdm(list(questions(digits)), desc="digits", mininterval=2):
                writer.writerow(_row(item, place, scans))
                count += 1
    _LOG.info("wrote %d rows about %d digits to %s", count, len(digits), folder / TABLE)
    return count


def _row(item: DigitSample, folder: Path, scans: dict[int, str]) -> tuple[str, ...]:
    """Return the cells of a question whose pictures it writes."""
    digit, is_edit = item.digit, item.task != "make"
    if digit.index not in scans:
        scans[digit.index] = _save(digit.pixels, folder, f"scan-{digit.index:04d}")
    scan = scans[digit.index]
    uid = f"{item.category}-{digit.index:04d}" + ("-reworded" * (item.variant == "reworded"))
    target = _save(item.target, folder, uid) if is_edit else scan
    spec = "" if is_edit else _spec(digit)
    source = scan if is_edit else ""
    return (
        uid, item.task, item.category, item.variant, digit.split, item.prompt, source, target, spec,
    )  # fmt: skip


def _spec(digit: Digit) -> str:
    return json.dumps({"digit": digit.label})


def _save(pixels: Array, folder: Path, name: str) -> str:
    path = folder / "images" / f"{name}.png"
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG")
    return path.relative_to(folder).as_posix()
