"""Prompts ask for exactly what their scenes show, and held-out wordings and pairs stay held out."""

from random import Random

import pytest

from danceflow.scenes.parse import parse
from danceflow.scenes.prompts import (
    BUCKETS,
    CATEGORIES,
    CORNERS,
    RELATIONS,
    draw_sample,
    vocabulary,
)
from danceflow.scenes.render import render
from danceflow.scenes.score import edited_cell, found_objects, satisfies
from danceflow.scenes.world import HELD_OUT_PAIRS, SPLITS, STYLES, split_of

ALL = [category for categories in CATEGORIES.values() for category in categories]
EDITS = (*CATEGORIES["local_edit"], *CATEGORIES["global_edit"])


def draw(category: str, count: int, split="train", variant="standard"):
    return [
        draw_sample(Random(f"{category}/{split}/{variant}/{i}"), category, split, variant)
        for i in range(count)
    ]


def mentioned(sample) -> set[tuple[str, str]]:
    """Every full (colour, shape) pair that a sample shows or asks for."""
    scenes = [scene for scene in (sample.source, sample.target) if scene is not None]
    asked = {pair for pair in (sample.request.first, sample.request.second) if None not in pair}
    return asked | {item.pair for scene in scenes for item in scene.objects}


@pytest.mark.parametrize("category", ALL)
def test_a_sample_is_a_function_of_the_generator(category: str) -> None:
    assert draw(category, 5) == draw(category, 5)
    assert len({sample.prompt for sample in draw(category, 40)}) > 5 or category == "style_change"


@pytest.mark.parametrize("category", ALL)
def test_scenes_belong_to_their_split(category: str) -> None:
    found = {split: {(s.source or s.target) for s in draw(category, 60, split)} for split in SPLITS}
    for split, scenes in found.items():
        assert {split_of(scene) for scene in scenes} == {split}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


@pytest.mark.parametrize("category", ALL)
def test_training_shows_no_held_out_pair(category: str) -> None:
    for sample in draw(category, 300):
        assert not mentioned(sample) & HELD_OUT_PAIRS


@pytest.mark.parametrize("category", ALL)
def test_the_held_out_variant_is_about_a_held_out_pair(category: str) -> None:
    for sample in draw(category, 30, "test", "held_out_pair"):
        assert mentioned(sample) & HELD_OUT_PAIRS


@pytest.mark.parametrize("category", ["subject_remove", "subject_replace", "color_alter"])
def test_held_out_edits_change_a_held_out_pair(category: str) -> None:
    for sample in draw(category, 30, "test", "held_out_pair"):
        changed = {o.pair for o in {*sample.source.objects} ^ {*sample.target.objects}}
        assert changed & HELD_OUT_PAIRS


@pytest.mark.parametrize("category", ALL)
def test_held_out_wordings_never_occur_in_training(category: str) -> None:
    train = {sample.prompt for sample in draw(category, 2000)}
    validation = {sample.prompt for sample in draw(category, 300, "validation")}
    reworded = {sample.prompt for sample in draw(category, 300, "test", "reworded")}
    assert reworded
    assert not reworded & (train | validation)


@pytest.mark.parametrize("category", ALL)
def test_every_word_is_in_the_vocabulary(category: str) -> None:
    words = set(vocabulary())
    for variant in ("standard", "reworded", "held_out_pair"):
        for sample in draw(category, 200, "test", variant):
            assert not {*sample.prompt.split()} - words, sample.prompt


def test_the_vocabulary_is_sorted_and_has_no_templates() -> None:
    words = vocabulary()
    assert list(words) == sorted(set(words))
    assert {"crosses", "circles", "left", "corner", "two", "pink"} <= set(words)
    assert not any("{" in word or "}" in word for word in words)


@pytest.mark.parametrize("category", CATEGORIES["t2i"])
def test_targets_satisfy_their_prompts(category: str) -> None:
    samples = draw(category, 100) + draw(category, 30, "test", "held_out_pair")
    reading = parse(render([sample.target for sample in samples]), style="plain")
    for row, sample in enumerate(samples):
        assert sample.source is None
        assert satisfies(found_objects(reading, row), sample.request), sample.prompt


@pytest.mark.parametrize("category", CATEGORIES["local_edit"])
def test_local_edits_change_one_cell_as_asked(category: str) -> None:
    for sample in draw(category, 200):
        source, target, request = sample.source, sample.target, sample.request
        assert (source.background, source.style) == (target.background, target.style)
        cell = edited_cell(source, target)
        before = [o for o in source.objects if o.cell == cell]
        after = [o for o in target.objects if o.cell == cell]
        if category == "subject_add":
            assert (before, after[0].pair) == ([], request.first)
            check_place(sample, cell)
        elif category == "subject_remove":
            assert (before[0].pair, after) == (request.first, [])
        elif category == "subject_replace":
            assert (before[0].pair, after[0].pair) == (request.first, request.second)
            assert before[0].shape != after[0].shape
        else:
            assert (before[0].pair, after[0].color) == (request.first, request.second[0])
            assert before[0].shape == after[0].shape
        # The object that is meant is the only one of its kind.
        pairs = [item.pair for item in source.objects]
        assert len(set(pairs)) == len(pairs)
        target_pairs = [item.pair for item in target.objects]
        assert len(set(target_pairs)) == len(target_pairs)


def check_place(sample, cell: int) -> None:
    request = sample.request
    if request.corner is not None:
        assert cell == CORNERS[request.corner]
        assert request.corner in sample.prompt
        return
    (anchor,) = [o for o in sample.source.objects if o.pair == request.second]
    rows, columns = RELATIONS[request.relation]
    assert (cell // 4, cell % 4) == (anchor.row + rows, anchor.column + columns)


def test_global_edits_change_everything_else() -> None:
    for sample in draw("background_change", 100):
        assert sample.source.objects == sample.target.objects
        assert sample.source.background != sample.target.background == sample.request.background
    for sample in draw("style_change", 100):
        assert sample.source.style == "plain" != sample.target.style == sample.request.style
        assert sample.source.objects == sample.target.objects
    assert {s.request.style for s in draw("style_change", 100)} == {*STYLES[1:]}


def test_a_bucket_of_one_kind_of_edit_asks_for_nothing_else() -> None:
    kinds = {name: found for name, found in BUCKETS.items() if name not in CATEGORIES}
    assert all(found == (name,) for name, found in kinds.items())
    assert {*EDITS} - {"style_change"} | {*STYLES[1:], "corner_add", "beside_add"} == {*kinds}
    for style in STYLES[1:]:
        assert {sample.request.style for sample in draw(style, 20)} == {style}
    for category, in_corner in (("corner_add", True), ("beside_add", False)):
        for sample in draw(category, 100) + draw(category, 20, "test", "reworded"):
            assert (sample.request.corner is not None) == in_corner
            (added,) = {*sample.target.objects} - {*sample.source.objects}
            assert added.pair == sample.request.first
            check_place(sample, added.cell)


@pytest.mark.parametrize("category", EDITS)
def test_edits_start_from_a_plain_scene_and_change_it(category: str) -> None:
    for sample in draw(category, 50):
        assert sample.source.style == "plain"
        assert sample.source != sample.target


def test_positions_are_never_ambiguous() -> None:
    for sample in draw("position", 200):
        first, second = (
            next(o for o in sample.target.objects if o.shape == pair[1])
            for pair in (sample.request.first, sample.request.second)
        )
        rows, columns = first.row - second.row, first.column - second.column
        assert abs(rows) != abs(columns)
        down, right = RELATIONS[sample.request.relation]
        assert rows * down + columns * right > 0


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown category 'circles'"):
        draw_sample(Random(0), "circles", "train")
    with pytest.raises(ValueError, match="held out and has no train split"):
        draw_sample(Random(0), "colors", "train", "reworded")
