"""Prompts and edits: what is asked of a model and what exactly would satisfy it.

Categories follow GenEval (text-to-image) and GEditBench (edits). Each prompt has several wordings;
the ``reworded`` ones never occur in training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from types import MappingProxyType
from typing import Literal

from danceflow.scenes.render import FLAT, SHADED, Rendering
from danceflow.scenes.world import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    GRID_SIZE,
    MAX_OBJECTS,
    NUM_CELLS,
    SHAPES,
    STYLES,
    Object,
    Scene,
    Split,
    random_pair,
    random_scene,
    split_of,
)

Variant = Literal["standard", "reworded", "held_out_pair"]

_CREATE = (
    "single_object",
    "two_objects",
    "counting",
    "colors",
    "position",
    "color_attribution",
)
CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "t2i": _CREATE,
        "local_edit": ("subject_add", "subject_remove", "subject_replace", "color_alter"),
        "global_edit": ("background_change", "style_change"),
        "realism": _CREATE,
    }
)
"""Categories of each capability bucket of the scenes world that mixes several."""

_STYLE_NAMES = STYLES[1:]
_SAME_WORDS: Mapping[str, str] = {"corner_add": "subject_add", "beside_add": "subject_add"}
_EDITS_ALONE = (
    *CATEGORIES["local_edit"],
    *_SAME_WORDS,
    "background_change",
    *_STYLE_NAMES,
)
BUCKETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {**CATEGORIES, **{name: (name,) for name in _EDITS_ALONE}}
)
"""Categories of every bucket; one of a single kind of edit is called like its only category."""

BUCKET_RENDERINGS: Mapping[str, Rendering] = MappingProxyType({"realism": SHADED})
"""How the targets of a bucket are rendered, where that is not flat."""

NUMBERS = MappingProxyType({2: "two", 3: "three", 4: "four"})
RELATIONS = MappingProxyType({"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)})
CORNERS = MappingProxyType(
    {
        "top left": 0,
        "top right": GRID_SIZE - 1,
        "bottom left": NUM_CELLS - GRID_SIZE,
        "bottom right": NUM_CELLS - 1,
    }
)
_RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Request:
    """What a prompt asks for, in fields a score and a text encoder's training can read.

    ``first`` is the subject (for edits: the object that is added or changed), ``second`` the other
    object (for edits: the anchor or the result). ``None`` parts are not mentioned in the prompt.
    """

    operation: str
    first: tuple[str | None, str | None] = (None, None)
    second: tuple[str | None, str | None] = (None, None)
    count: int = 1
    relation: str | None = None
    corner: str | None = None
    background: str | None = None
    style: str | None = None


@dataclass(frozen=True)
class Sample:
    """One prompt with its exact scenes; ``source`` is ``None`` for text-to-image.

    ``rendering`` is that of the target.
    """

    category: str
    variant: Variant
    prompt: str
    request: Request
    source: Scene | None
    target: Scene
    rendering: Rendering = FLAT


@dataclass(frozen=True)
class _Draft:
    """A drawn request with its scenes, before it is put into words."""

    request: Request
    source: Scene | None
    target: Scene
    words: Mapping[str, str]


_WORDINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single_object": (
        ("a {s1}", "a photo of a {s1}", "an image of one {s1}"),
        ("one {s1}", "a picture with a {s1}"),
    ),
    "two_objects": (
        ("a {s1} and a {s2}", "a photo of a {s1} and a {s2}", "a {s1} together with a {s2}"),
        ("one {s1} and one {s2}", "an image with a {s1} and a {s2}"),
    ),
    "counting": (
        ("{n} {s1s}", "a photo of {n} {s1s}", "exactly {n} {s1s}"),
        ("an image of {n} {s1s}", "a picture with exactly {n} {s1s}"),
    ),
    "colors": (
        ("a {c1} {s1}", "a photo of a {c1} {s1}", "a {s1} that is {c1}"),
        ("one {c1} {s1}", "an image of a {s1} that is {c1}"),
    ),
    "position": (
        ("a {s1} {rel} a {s2}", "a photo of a {s1} {rel} a {s2}", "one {s1} {rel} the {s2}"),
        ("an image with a {s1} {rel} a {s2}", "one {s1} {rel} one {s2}"),
    ),
    "color_attribution": (
        (
            "a {c1} {s1} and a {c2} {s2}",
            "a photo of a {c1} {s1} and a {c2} {s2}",
            "a {c1} {s1} together with a {c2} {s2}",
        ),
        ("one {c1} {s1} and one {c2} {s2}", "an image with a {c1} {s1} and a {c2} {s2}"),
    ),
    "subject_add": (
        ("add a {c1} {s1} {where}", "put a {c1} {s1} {where}", "place a {c1} {s1} {where}"),
        ("{where} add a {c1} {s1}", "put one {c1} {s1} {where}"),
    ),
    "subject_remove": (
        ("remove the {c1} {s1}", "delete the {c1} {s1}", "take the {c1} {s1} away"),
        ("take away the {c1} {s1}", "remove the {s1} that is {c1}"),
    ),
    "subject_replace": (
        (
            "replace the {c1} {s1} with a {c2} {s2}",
            "change the {c1} {s1} into a {c2} {s2}",
            "swap the {c1} {s1} for a {c2} {s2}",
        ),
        (
            "turn the {c1} {s1} into a {c2} {s2}",
            "swap the {c1} {s1} with a {c2} {s2}",
        ),
    ),
    "color_alter": (
        (
            "make the {c1} {s1} {c2}",
            "change the color of the {c1} {s1} to {c2}",
            "paint the {c1} {s1} {c2}",
        ),
        ("turn the {c1} {s1} {c2}", "change the {c1} {s1} to {c2}"),
    ),
    "background_change": (
        ("change the background to {b}", "make the background {b}", "put a {b} background"),
        ("turn the background {b}", "change the color of the background to {b}"),
    ),
    "grayscale": (
        ("make it grayscale", "turn the picture into grayscale", "change it to grayscale"),
        ("make the picture grayscale", "turn it into grayscale"),
    ),
    "inverted": (
        ("invert the colors", "make it inverted", "turn the picture into inverted colors"),
        ("invert the picture", "make the colors inverted"),
    ),
    "sunset": (
        (
            "make it look like sunset",
            "turn the picture into a sunset",
            "change the light to sunset",
        ),
        ("turn it into a sunset", "make the picture look like sunset"),
    ),
    "night": (
        ("make it look like night", "turn the picture into night", "change the light to night"),
        ("turn it into night", "make the picture look like night"),
    ),
}


def vocabulary() -> tuple[str, ...]:
    """Return every word that a prompt can hold, sorted."""
    texts = [text for pair in _WORDINGS.values() for group in pair for text in group]
    texts += [phrase for group in _RELATION_WORDS.values() for phrase in group]
    texts += [f"in the {corner} corner" for corner in CORNERS]
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    words |= {*SHAPES, *(_plural(shape) for shape in SHAPES), *COLOR_NAMES, *BACKGROUND_NAMES}
    return tuple(sorted(words | {*NUMBERS.values()}))


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("ss") else "s")


def _two_shapes(rng: Random, *, held_out: bool) -> tuple[tuple[str, str], tuple[str, str]]:
    first = random_pair(rng, held_out=held_out)
    second = random_pair(rng, held_out=False)
    while second[1] == first[1]:
        second = random_pair(rng, held_out=False)
    return first, second


def _place(rng: Random, *pairs: tuple[str, str]) -> Scene:
    cells = rng.sample(range(NUM_CELLS), len(pairs))
    objects = tuple(Object(c, shape, color) for c, (color, shape) in zip(cells, pairs, strict=True))
    return Scene(rng.choice(BACKGROUND_NAMES), objects)


def _create_one(rng: Random, held_out: bool, *, with_color: bool) -> _Draft:
    color, shape = random_pair(rng, held_out=held_out)
    request = Request("create", (color if with_color else None, shape))
    return _Draft(request, None, _place(rng, (color, shape)), {"c1": color, "s1": shape})


def _create_two(rng: Random, held_out: bool, *, with_color: bool) -> _Draft:
    first, second = _two_shapes(rng, held_out=held_out)
    scene = _place(rng, first, second)
    words = {"c1": first[0], "s1": first[1], "c2": second[0], "s2": second[1]}
    if not with_color:
        return _Draft(Request("create", (None, first[1]), (None, second[1])), None, scene, words)
    return _Draft(Request("create", first, second), None, scene, words)


def _create_count(rng: Random, held_out: bool) -> _Draft:
    pair = random_pair(rng, held_out=held_out)
    count = rng.choice(tuple(NUMBERS))
    request = Request("create", (None, pair[1]), count=count)
    words = {"n": NUMBERS[count], "s1s": _plural(pair[1])}
    return _Draft(request, None, _place(rng, *[pair] * count), words)


def _create_position(rng: Random, held_out: bool) -> _Draft:
    first, second = _two_shapes(rng, held_out=held_out)
    while True:
        one, two = rng.sample(range(NUM_CELLS), 2)
        rows, columns = (
            divmod(one, GRID_SIZE)[0] - two // GRID_SIZE,
            one % GRID_SIZE - two % GRID_SIZE,
        )
        if abs(rows) != abs(columns):
            break
    vertical = abs(rows) > abs(columns)
    relation = (
        ("above" if rows < 0 else "below") if vertical else ("left" if columns < 0 else "right")
    )
    objects = (Object(one, first[1], first[0]), Object(two, second[1], second[0]))
    scene = Scene(rng.choice(BACKGROUND_NAMES), objects)
    request = Request("create", (None, first[1]), (None, second[1]), relation=relation)
    words = {"s1": first[1], "s2": second[1], "rel": rng.choice(_RELATION_WORDS[relation])}
    return _Draft(request, None, scene, words)


def _add(rng: Random, held_out: bool, in_corner: float = 0.5) -> _Draft:
    """Return an addition: in a free corner so often, else beside an object."""
    source = random_scene(rng, rng.randint(1, MAX_OBJECTS - 1), held_out=False)
    taken = {item.cell for item in source.objects}
    pair = random_pair(rng, held_out=held_out)
    while pair in {item.pair for item in source.objects}:
        pair = random_pair(rng, held_out=held_out)
    corners = [(name, cell) for name, cell in CORNERS.items() if cell not in taken]
    if corners and rng.random() < in_corner:
        corner, cell = rng.choice(corners)
        request = Request("add", pair, corner=corner)
        where = f"in the {corner} corner"
    else:
        anchor = rng.choice(source.objects)
        near = [
            (name, (anchor.row + dy) * GRID_SIZE + anchor.column + dx)
            for name, (dy, dx) in RELATIONS.items()
            if 0 <= anchor.row + dy < GRID_SIZE and 0 <= anchor.column + dx < GRID_SIZE
        ]
        near = [(name, cell) for name, cell in near if cell not in taken]
        if not near:
            return _add(rng, held_out, in_corner)
        relation, cell = rng.choice(near)
        request = Request("add", pair, anchor.pair, relation=relation)
        where = f"{rng.choice(_RELATION_WORDS[relation])} the {anchor.color} {anchor.shape}"
    target = source.with_object(Object(cell, pair[1], pair[0]))
    return _Draft(request, source, target, {"c1": pair[0], "s1": pair[1], "where": where})


def _remove(rng: Random, held_out: bool) -> _Draft:
    source = random_scene(rng, rng.randint(2, MAX_OBJECTS), held_out=held_out)
    item = _subject(rng, source, held_out)
    words = {"c1": item.color, "s1": item.shape}
    return _Draft(Request("remove", item.pair), source, source.without(item), words)


def _subject(rng: Random, scene: Scene, held_out: bool) -> Object:
    """Return the object an edit is about: with ``held_out`` the scene's held-out pair."""
    objects = [o for o in scene.objects if replace(scene, objects=(o,)).has_held_out_pair]
    return rng.choice(objects if held_out else scene.objects)


def _replace(rng: Random, held_out: bool) -> _Draft:
    source = random_scene(rng, rng.randint(1, MAX_OBJECTS), held_out=False)
    item = rng.choice(source.objects)
    pair = random_pair(rng, held_out=held_out)
    while pair in {o.pair for o in source.objects} or pair[1] == item.shape:
        pair = random_pair(rng, held_out=held_out)
    target = source.without(item).with_object(Object(item.cell, pair[1], pair[0]))
    words = {"c1": item.color, "s1": item.shape, "c2": pair[0], "s2": pair[1]}
    return _Draft(Request("replace", item.pair, pair), source, target, words)


def _color_alter(rng: Random, held_out: bool) -> _Draft:
    source = random_scene(rng, rng.randint(1, MAX_OBJECTS), held_out=False)
    choices = [
        (item, color)
        for item in source.objects
        for color in COLOR_NAMES
        if (color, item.shape) not in {o.pair for o in source.objects}
        and replace(source, objects=(replace(item, color=color),)).has_held_out_pair == held_out
    ]
    if not choices:
        return _color_alter(rng, held_out)
    item, color = rng.choice(choices)
    target = source.without(item).with_object(replace(item, color=color))
    words = {"c1": item.color, "s1": item.shape, "c2": color}
    return _Draft(Request("recolor", item.pair, (color, None)), source, target, words)


def _background_change(rng: Random, held_out: bool) -> _Draft:
    source = random_scene(rng, rng.randint(1, MAX_OBJECTS), held_out=held_out)
    name = rng.choice([b for b in BACKGROUND_NAMES if b != source.background])
    target = replace(source, background=name)
    return _Draft(Request("background", background=name), source, target, {"b": name})


def _style_change(rng: Random, held_out: bool, styles: Sequence[str] = _STYLE_NAMES) -> _Draft:
    source = random_scene(rng, rng.randint(1, MAX_OBJECTS), held_out=held_out)
    style = rng.choice(styles)
    return _Draft(Request("style", style=style), source, replace(source, style=style), {})


_DRAFTS: Mapping[str, Callable[[Random, bool], _Draft]] = {
    "single_object": lambda rng, held_out: _create_one(rng, held_out, with_color=False),
    "two_objects": lambda rng, held_out: _create_two(rng, held_out, with_color=False),
    "counting": _create_count,
    "colors": lambda rng, held_out: _create_one(rng, held_out, with_color=True),
    "position": _create_position,
    "color_attribution": lambda rng, held_out: _create_two(rng, held_out, with_color=True),
    "subject_add": _add,
    "corner_add": partial(_add, in_corner=1),
    "beside_add": partial(_add, in_corner=0),
    "subject_remove": _remove,
    "subject_replace": _replace,
    "color_alter": _color_alter,
    "background_change": _background_change,
    "style_change": _style_change,
    **{name: partial(_style_change, styles=(name,)) for name in _STYLE_NAMES},
}


def draw_sample(rng: Random, category: str, split: Split, variant: Variant = "standard") -> Sample:
    """Return a random sample of ``category`` whose scene belongs to ``split``.

    Args:
        rng: source of every choice; the same state gives the same sample.
        category: one of :data:`BUCKETS`' values.
        split: the split of the source scene (of the target for text-to-image).
        variant: ``standard``; ``reworded`` uses wordings that training never shows;
            ``held_out_pair`` asks for, or about, a colour and shape pair that training never shows.

    Raises:
        ValueError: for an unknown category, or for a held-out variant of the train split.
    """
    if category not in _DRAFTS:
        raise ValueError(f"unknown category {category!r}; known: {', '.join(_DRAFTS)}")
    if split == "train" and variant != "standard":
        raise ValueError(f"variant {variant!r} is held out and has no train split")
    while True:
        draft = _DRAFTS[category](rng, variant == "held_out_pair")
        if split_of(draft.source or draft.target) == split:
            break
    usual, held_out = _WORDINGS[draft.request.style or _SAME_WORDS.get(category, category)]
    wording = rng.choice(held_out if variant == "reworded" else usual)
    prompt = wording.format_map(draft.words)
    return Sample(category, variant, prompt, draft.request, draft.source, draft.target)
