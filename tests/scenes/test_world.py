"""A scene is exact: its codes say everything, and it belongs to one split whatever its style."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from danceflow.scenes.world import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    HELD_OUT_PAIRS,
    SHAPES,
    SPLITS,
    STYLES,
    Object,
    Scene,
    random_pair,
    random_scene,
    split_of,
)

CIRCLE = Object(0, "circle", "red")
SQUARE = Object(5, "square", "blue")


def scenes(count: int, *, held_out: bool = False) -> list[Scene]:
    rng = Random(7)
    return [random_scene(rng, 1 + i % 4, held_out=held_out) for i in range(count)]


def test_codes_say_everything() -> None:
    for number, scene in enumerate(scenes(200)):
        styled = replace(scene, style=STYLES[number % len(STYLES)])
        assert Scene.from_codes(styled.codes()) == styled


def test_objects_are_sorted_so_that_equal_scenes_are_equal() -> None:
    one, other = Scene("white", (SQUARE, CIRCLE)), Scene("white", (CIRCLE, SQUARE))
    assert one == other
    assert one.objects == (CIRCLE, SQUARE)
    assert (SQUARE.row, SQUARE.column) == (1, 1)


def test_objects_come_and_go() -> None:
    scene = Scene("white", (CIRCLE,))
    assert scene.with_object(SQUARE).without(CIRCLE) == Scene("white", (SQUARE,))


@pytest.mark.parametrize(
    ("background", "objects", "style", "message"),
    [
        ("white", (CIRCLE, Object(0, "ring", "cyan")), "plain", "share a cell"),
        ("mauve", (CIRCLE,), "plain", "unknown background or style"),
        ("white", (CIRCLE,), "cubist", "unknown background or style"),
        ("white", (Object(0, "star", "red"),), "plain", "unknown shape or colour"),
        ("white", (Object(0, "ring", "teal"),), "plain", "unknown shape or colour"),
        ("white", (Object(16, "ring", "red"),), "plain", "outside the grid"),
        ("white", (Object(-1, "ring", "red"),), "plain", "outside the grid"),
    ],
)
def test_scenes_that_cannot_be_are_refused(background, objects, style, message) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(background, objects, style)


def test_the_style_does_not_change_the_split() -> None:
    for scene in scenes(100):
        assert len({split_of(replace(scene, style=style)) for style in STYLES}) == 1


def test_splits_have_their_shares_and_no_common_scene() -> None:
    found = {split: set() for split in SPLITS}
    for scene in scenes(4000):
        found[split_of(scene)].add(scene)
    total = sum(len(part) for part in found.values())
    assert 0.03 < len(found["test"]) / total < 0.07
    assert 0.03 < len(found["validation"]) / total < 0.07
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_random_scenes_hold_what_was_asked() -> None:
    assert not any(scene.has_held_out_pair for scene in scenes(400))
    for number, scene in enumerate(scenes(400, held_out=True)):
        pairs = [item.pair for item in scene.objects]
        assert len(pairs) == 1 + number % 4
        assert len(set(pairs)) == len(pairs)
        assert sum(pair in HELD_OUT_PAIRS for pair in pairs) == 1


def test_every_other_pair_is_drawn() -> None:
    rng = Random(0)
    drawn = Counter(random_pair(rng, held_out=False) for _ in range(3000))
    assert len(drawn) == len(COLOR_NAMES) * len(SHAPES) - len(HELD_OUT_PAIRS)
    assert not drawn.keys() & HELD_OUT_PAIRS
    assert {random_pair(rng, held_out=True) for _ in range(100)} == HELD_OUT_PAIRS


def test_backgrounds_and_colours_have_different_names() -> None:
    assert not {*BACKGROUND_NAMES} & {*COLOR_NAMES}
