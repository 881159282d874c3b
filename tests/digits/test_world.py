"""Real scans: exact edits, splits by scan, a reader that knows digits from what is none."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from danceflow.digits.raw import COLUMNS, TABLE, write_digits
from danceflow.digits.score import digit_images, digit_reader
from danceflow.digits.world import (
    CATEGORIES,
    NUMBER_WORDS,
    SIZE,
    DigitSample,
    load_digits,
    questions,
)
from danceflow.fields import normal


@pytest.fixture(scope="module")
def digits():
    return load_digits()


@pytest.fixture(scope="module")
def asked(digits) -> list[DigitSample]:
    return list(questions(digits[:300]))


def test_all_scans_are_there(digits) -> None:
    assert len(digits) == 1797
    counts = {split: sum(d.split == split for d in digits) for split in ("train", "validation")}
    assert counts["train"] == pytest.approx(0.72 * 1797, rel=0.05)
    assert counts["validation"] == pytest.approx(0.11 * 1797, rel=0.15)
    for split in ("train", "validation", "test"):
        assert {d.label for d in digits if d.split == split} == set(range(10))
    assert all(digit.pixels.shape == (SIZE, SIZE) for digit in digits)


def test_every_scan_is_asked_about_in_every_category(asked) -> None:
    for index in range(300):
        mine = [item for item in asked if item.digit.index == index and item.variant == "standard"]
        assert [item.category for item in mine] == [c for g in CATEGORIES.values() for c in g]
    tests = {item.digit.index for item in asked if item.variant == "reworded"}
    assert tests == {item.digit.index for item in asked if item.digit.split == "test"}
    usual = {item.prompt for item in asked if item.variant == "standard"}
    other = {item.prompt for item in asked if item.variant == "reworded"}
    assert not usual & other
    words = {word for prompt in usual for word in prompt.split()}
    assert {word for prompt in other for word in prompt.split()} <= words


def test_prompts_name_the_digit(asked) -> None:
    for item in asked:
        if item.category == "digit":
            assert item.prompt.split()[-1] == NUMBER_WORDS[item.digit.label]
            assert np.array_equal(item.target, item.digit.pixels)


def test_edits_do_what_they_say_and_nothing_else(asked) -> None:
    for item in asked:
        before, after = item.digit.pixels.astype(int), item.target.astype(int)
        changed = before != after
        if item.category == "erase":
            top, left = "top" in item.prompt, "left" in item.prompt
            rows = slice(0, 8) if top else slice(8, 16)
            columns = slice(0, 8) if left else slice(8, 16)
            assert not after[rows, columns].any()
            assert before[rows, columns].sum() >= 0.15 * before.sum()
            changed[rows, columns] = False
            assert not changed.any()
        elif item.category == "stroke":
            assert changed.sum() <= 2 * SIZE
            assert (after[changed] == 255).all()
        elif item.category == "invert":
            assert np.array_equal(after, 255 - before)
        elif item.category == "thicken":
            assert (after >= before).all()
            assert changed.any()
        elif item.category == "rotate":
            turns = 2 if "upside" in item.prompt else 1 if "left" in item.prompt else 3
            assert np.array_equal(after, np.rot90(before, turns))


def test_the_reader_reads_digits_and_nothing_else(digits) -> None:
    reader = digit_reader()
    unseen = [digit for digit in digits if digit.split != "train"]
    images = digit_images(unseen)
    read = reader.read(images)
    right = sum(found == digit.label for found, digit in zip(read, unseen, strict=True))
    assert right / len(unseen) > 0.9
    assert sum(f not in (None, d.label) for f, d in zip(read, unseen, strict=True)) < 10
    noise = normal((3, SIZE, SIZE), range(100)).mul(0.3).add(0.5).clamp(0, 1)
    assert set(reader.read(noise)) == {None}
    assert set(reader.read(torch.zeros(2, 3, SIZE, SIZE))) == {None}
    assert sum(found is not None for found in reader.read(1 - images)) == 0
    # Light noise does not matter, heavy noise does.
    for level, least, most in ((0.05, 0.85, 1.0), (0.5, 0.0, 0.1)):
        noisy = (images + level * normal(images.shape[1:], range(len(images)))).clamp(0, 1)
        found = reader.read(noisy)
        share = sum(f == d.label for f, d in zip(found, unseen, strict=True)) / len(unseen)
        assert least <= share <= most


def test_the_files_hold_what_was_asked(tmp_path: Path) -> None:
    count = write_digits(tmp_path / "digits", num_digits=5)
    with (tmp_path / "digits" / TABLE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = list(questions(load_digits()[:5]))
    assert len(rows) == count == len(expected)
    assert tuple(rows[0]) == COLUMNS
    assert len({row["uid"] for row in rows}) == count
    for row, item in zip(rows, expected, strict=True):
        assert (row["task"], row["prompt"], row["split"]) == (
            item.task,
            item.prompt,
            item.digit.split,
        )
        with Image.open(tmp_path / "digits" / row["target"]) as image:
            assert np.array_equal(np.asarray(image), item.target)
        if item.task == "make":
            assert json.loads(row["spec"]) == {"digit": item.digit.label}
            assert row["source"] == ""
        else:
            with Image.open(tmp_path / "digits" / row["source"]) as image:
                assert np.array_equal(np.asarray(image), item.digit.pixels)
