"""The 1,797 handwritten digits that scikit-learn brings along, and what is asked of them.

Real scans (UCI, Alpaydin and Kaynak 1998), 8 x 8 gray levels, shown at 16 x 16 as bright ink on a
black ground. Edits have exact targets, so that they can be scored without a second model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from danceflow.fields import seed_for

Split = Literal["train", "validation", "test"]
Array = NDArray[np.uint8]

SIZE = 16
"""Side of the pictures in pixels."""

SCAN_SIZE = 8
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TASKS = ("make", "local edit", "global edit")
CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "make": ("digit",),
        "local edit": ("erase", "stroke"),
        "global edit": ("invert", "thicken", "rotate"),
    }
)
_SEED = 1797
_SHARES: tuple[tuple[float, Split], ...] = ((0.72, "train"), (0.83, "validation"), (1.0, "test"))
_INK = 255
_HALF = SIZE // 2
_MIN_INK = 0.15
"""Share of the ink that an erased quarter holds at least: erasing nothing is no edit."""

_QUARTERS: Mapping[str, tuple[slice, slice]] = MappingProxyType(
    {
        "top left": (slice(0, _HALF), slice(0, _HALF)),
        "top right": (slice(0, _HALF), slice(_HALF, SIZE)),
        "bottom left": (slice(_HALF, SIZE), slice(0, _HALF)),
        "bottom right": (slice(_HALF, SIZE), slice(_HALF, SIZE)),
    }
)
_LINES: Mapping[str, tuple[slice, slice]] = MappingProxyType(
    {
        "at the top": (slice(0, 2), slice(0, SIZE)),
        "at the bottom": (slice(SIZE - 2, SIZE), slice(0, SIZE)),
        "on the left": (slice(0, SIZE), slice(0, 2)),
        "on the right": (slice(0, SIZE), slice(SIZE - 2, SIZE)),
    }
)
_TURNS: Mapping[str, int] = MappingProxyType(
    {"to the left": 1, "upside down": 2, "to the right": 3}
)

# Wordings of training and, after the bar, those that only tests have.
_WORDINGS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "digit": (("a {}", "the digit {}", "a picture of a {}"), "a picture of the digit {}"),
        "erase": (
            ("erase the {} quarter", "wipe the {} quarter away"),
            "wipe away the {} quarter",
        ),
        "stroke": (("draw a line {}", "add a line {}"), "{} draw a line"),
        "invert": (("invert the image", "swap black and white"), "invert black and white"),
        "thicken": (("make the digit thicker", "thicken the digit"), "thicken the image"),
        "rotate": (("turn the digit {}", "rotate the image {}"), "rotate the digit {}"),
    }
)


@dataclass(frozen=True)
class Digit:
    """One scan.

    Attributes:
        index: in scikit-learn's order.
        label: what it shows, 0 to 9.
        pixels: [16, 16] uint8.
        split: by chance, a function of the index.
    """

    index: int
    label: int
    pixels: Array
    split: Split


@dataclass(frozen=True)
class DigitSample:
    """What is asked, and the answer.

    Attributes:
        task: one of ``TASKS``.
        category: one of the task's ``CATEGORIES``.
        variant: ``standard`` or ``reworded``.
        prompt: the words.
        digit: the scan that it is about.
        target: [16, 16] uint8; of a digit to be made, the scan itself.
    """

    task: str
    category: str
    variant: str
    prompt: str
    digit: Digit
    target: Array


@lru_cache(maxsize=1)
def load_digits() -> tuple[Digit, ...]:
    """Return all scans."""
    from sklearn.datasets import load_digits as load

    bunch = load()
    return tuple(
        Digit(index, int(label), _enlarged(levels), _split(index))
        for index, (levels, label) in enumerate(zip(bunch.images, bunch.target, strict=True))
    )


def _enlarged(levels: NDArray[np.float64]) -> Array:
    scan = Image.fromarray(np.round(levels * (_INK / 16)).astype(np.uint8))
    return np.asarray(scan.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _split(index: int) -> Split:
    share = seed_for(_SEED, "split", 0, index) / (1 << 63)
    return next(name for bound, name in _SHARES if share < bound)


def questions(digits: tuple[Digit, ...]) -> Iterator[DigitSample]:
    """Yield what is asked about every scan: one digit to make, edits of every category.

    Scans of the test split are asked again in other words.
    """
    for digit in digits:
        variants = ("standard", "reworded") if digit.split == "test" else ("standard",)
        for task, categories in CATEGORIES.items():
            for category in categories:
                for variant in variants:
                    yield _question(digit, task, category, variant)


def _question(digit: Digit, task: str, category: str, variant: str) -> DigitSample:
    def draw(purpose: str, count: int) -> int:
        return seed_for(_SEED, f"{purpose}/{category}/{variant}", 0, digit.index) % count

    detail, target = _answer(digit, category, draw("detail", 1 << 30))
    usual, other = _WORDINGS[category]
    wording = usual[draw("wording", len(usual))] if variant == "standard" else other
    return DigitSample(task, category, variant, wording.format(detail), digit, target)


def _answer(digit: Digit, category: str, chance: int) -> tuple[str, Array]:
    """Return what the prompt names and the exact answer."""
    target = digit.pixels.copy()
    if category == "digit":
        return NUMBER_WORDS[digit.label], target
    if category == "invert":
        return "", _INK - target
    if category == "thicken":
        return "", _thickened(target)
    if category == "rotate":
        turn = list(_TURNS)[chance % len(_TURNS)]
        return turn, np.ascontiguousarray(np.rot90(target, _TURNS[turn]))
    if category == "stroke":
        place = list(_LINES)[chance % len(_LINES)]
        target[_LINES[place]] = _INK
        return place, target
    ink = {name: int(target[part].sum()) for name, part in _QUARTERS.items()}
    full = [name for name in _QUARTERS if ink[name] >= _MIN_INK * sum(ink.values())]
    place = full[chance % len(full)]
    target[_QUARTERS[place]] = 0
    return place, target


def _thickened(pixels: Array) -> Array:
    """Return the greatest level among every pixel and its four neighbours."""
    wide = np.pad(pixels, 1)
    around = [wide[1:-1, 1:-1], wide[:-2, 1:-1], wide[2:, 1:-1], wide[1:-1, :-2], wide[1:-1, 2:]]
    thick: Array = np.max(around, axis=0)
    return thick
