"""What a scene is: a background and one to four coloured shapes on a four by four grid.

A scene has an exact description, so prompts, edit targets and scores are exact. Which split a
scene belongs to is a function of the scene itself: train, validation and test cannot share one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Literal, get_args

GRID_SIZE = 4
NUM_CELLS = GRID_SIZE * GRID_SIZE
MAX_OBJECTS = 4

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
"""Names of the shapes; the position is the shape's code."""

Rgb = tuple[int, int, int]

# Luminances (Rec. 601) of all colours and backgrounds differ by at least ten levels, so that the
# grayscale style stays readable.
COLORS: Mapping[str, Rgb] = MappingProxyType(
    {
        "red": (215, 40, 40),
        "green": (60, 185, 80),
        "blue": (40, 60, 200),
        "yellow": (240, 205, 40),
        "purple": (165, 70, 190),
        "cyan": (80, 205, 220),
    }
)
BACKGROUNDS: Mapping[str, Rgb] = MappingProxyType(
    {
        "white": (248, 248, 248),
        "black": (10, 10, 10),
        "gray": (152, 152, 152),
        "navy": (20, 25, 75),
        "beige": (240, 225, 200),
        "pink": (250, 190, 205),
    }
)
STYLES = ("plain", "grayscale", "inverted", "sunset", "night")
"""Names of the styles; ``plain`` is the untouched rendering."""

COLOR_NAMES = tuple(COLORS)
BACKGROUND_NAMES = tuple(BACKGROUNDS)

HELD_OUT_PAIRS = frozenset(
    {("purple", "cross"), ("cyan", "triangle"), ("yellow", "ring"), ("green", "diamond")}
)
"""Colour and shape pairs that no training scene shows."""

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, order=True)
class Object:
    """One coloured shape in one cell; cells count row by row from the top left."""

    cell: int
    shape: str
    color: str

    @property
    def row(self) -> int:
        """Row of the cell, 0 at the top."""
        return self.cell // GRID_SIZE

    @property
    def column(self) -> int:
        """Column of the cell, 0 at the left."""
        return self.cell % GRID_SIZE

    @property
    def pair(self) -> tuple[str, str]:
        """The colour and the shape."""
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """A background, a style and objects in different cells, sorted by cell."""

    background: str
    objects: tuple[Object, ...]
    style: str = "plain"

    def __post_init__(self) -> None:
        """Sort the objects; raise ``ValueError`` for unknown names or a cell used twice."""
        object.__setattr__(self, "objects", tuple(sorted(self.objects)))
        cells = [item.cell for item in self.objects]
        if len(set(cells)) != len(cells):
            raise ValueError(f"two objects share a cell in {self}")
        if self.background not in BACKGROUNDS or self.style not in STYLES:
            raise ValueError(f"unknown background or style in {self}")
        for item in self.objects:
            if item.shape not in SHAPES or item.color not in COLORS:
                raise ValueError(f"unknown shape or colour in {item}")
            if not 0 <= item.cell < NUM_CELLS:
                raise ValueError(f"cell {item.cell} is outside the grid in {item}")

    @property
    def has_held_out_pair(self) -> bool:
        """Whether any object is a colour and shape pair that training never shows."""
        return any(item.pair in HELD_OUT_PAIRS for item in self.objects)

    def codes(self) -> list[int]:
        """Return background, style and 16 cell codes (0 empty, else 1 + 6 * shape + colour)."""
        cells = [0] * NUM_CELLS
        for item in self.objects:
            cells[item.cell] = (
                1 + SHAPES.index(item.shape) * len(COLORS) + COLOR_NAMES.index(item.color)
            )
        return [BACKGROUND_NAMES.index(self.background), STYLES.index(self.style), *cells]

    @staticmethod
    def from_codes(codes: list[int]) -> "Scene":
        """Return the scene of ``codes``, the inverse of :meth:`codes`."""
        background, style, *cells = codes
        objects = tuple(
            Object(cell, SHAPES[(code - 1) // len(COLORS)], COLOR_NAMES[(code - 1) % len(COLORS)])
            for cell, code in enumerate(cells)
            if code
        )
        return Scene(BACKGROUND_NAMES[background], objects, STYLES[style])

    def without(self, item: Object) -> "Scene":
        """Return the scene without ``item``."""
        return replace(self, objects=tuple(o for o in self.objects if o != item))

    def with_object(self, item: Object) -> "Scene":
        """Return the scene with ``item`` added."""
        return replace(self, objects=(*self.objects, item))


def split_of(scene: Scene) -> Split:
    """Return the split that ``scene`` belongs to: 5 % test, 5 % validation, the rest train.

    The plain scene decides, so a styled scene stays in its source's split.
    """
    codes = replace(scene, style="plain").codes()
    bucket = hashlib.blake2b(bytes(codes), digest_size=2).digest()[0] % 20
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def random_pair(rng: Random, *, held_out: bool) -> tuple[str, str]:
    """Return a random (colour, shape), from the held-out pairs or from the others."""
    if held_out:
        return rng.choice(sorted(HELD_OUT_PAIRS))
    while True:
        pair = rng.choice(COLOR_NAMES), rng.choice(SHAPES)
        if pair not in HELD_OUT_PAIRS:
            return pair


def random_scene(rng: Random, num_objects: int, *, held_out: bool) -> Scene:
    """Return a scene of ``num_objects`` objects of different colour and shape pairs.

    With ``held_out`` the first object drawn is a held-out pair; no other object is one.
    """
    pairs: list[tuple[str, str]] = []
    while len(pairs) < num_objects:
        pair = random_pair(rng, held_out=held_out and not pairs)
        if pair not in pairs:
            pairs.append(pair)
    cells = rng.sample(range(NUM_CELLS), num_objects)
    objects = tuple(Object(c, shape, color) for c, (color, shape) in zip(cells, pairs, strict=True))
    return Scene(rng.choice(BACKGROUND_NAMES), objects)
