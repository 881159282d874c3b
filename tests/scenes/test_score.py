"""Scores are exact at both ends and fall in between."""

from dataclasses import replace
from random import Random

import pytest
import torch

from danceflow.scenes.prompts import CATEGORIES, Request, Sample, draw_sample
from danceflow.scenes.render import render
from danceflow.scenes.score import (
    WORST_RMSE,
    EditScore,
    edited_cell,
    satisfies,
    score_edits,
    score_text_to_image,
)
from danceflow.scenes.world import STYLES, Object, Scene

EDITS = (*CATEGORIES["local_edit"], *CATEGORIES["global_edit"])
RED_CIRCLE, BLUE_SQUARE = Object(0, "circle", "red"), Object(5, "square", "blue")


def draw(category: str, count: int = 30, variant="standard") -> list[Sample]:
    return [draw_sample(Random(f"{category}/{i}"), category, "test", variant) for i in range(count)]


def mean(scores) -> float:
    return sum(score.overall for score in scores) / len(scores)


@pytest.mark.parametrize("variant", ["standard", "reworded", "held_out_pair"])
@pytest.mark.parametrize("category", EDITS)
def test_the_exact_target_has_full_marks(category: str, variant) -> None:
    samples = draw(category, variant=variant)
    for score in score_edits(render([s.target for s in samples]), samples):
        assert score == EditScore(10.0, 10.0)
        assert score.overall == 10.0


@pytest.mark.parametrize("category", EDITS)
def test_an_unchanged_source_scores_nothing(category: str) -> None:
    samples = draw(category)
    scores = score_edits(render([s.source for s in samples]), samples)
    assert {score.overall for score in scores} == {0.0}
    assert {score.sc for score in scores} == {0.0}


@pytest.mark.parametrize("category", EDITS)
def test_corruption_lowers_the_score(category: str) -> None:
    samples = draw(category)
    target = render([s.target for s in samples])
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    found = [
        mean(score_edits((target + level * noise).clamp(0, 1), samples))
        for level in (0.0, 0.03, 0.1, 0.3, 0.8)
    ]
    assert found[0] == 10.0
    assert found == sorted(found, reverse=True)
    assert found[-1] < 2.0


@pytest.mark.parametrize("category", CATEGORIES["local_edit"])
def test_damage_outside_the_edited_cell_costs_preservation_only(category: str) -> None:
    samples = draw(category)
    images = render([s.target for s in samples])
    for image, sample in zip(images, samples, strict=True):
        used = {item.cell for item in (*sample.source.objects, *sample.target.objects)}
        other = next(c for c in range(15, -1, -1) if c not in used)
        row, column = divmod(other, 4)
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.rand(3, 1, 1)
    scores = score_edits(images, samples)
    assert {score.sc for score in scores} == {10.0}
    assert all(0 < score.pq < 10 for score in scores)


def test_half_of_a_change_has_half_of_the_marks() -> None:
    source = Scene("white", (RED_CIRCLE,))
    wanted = Object(5, "square", "blue")
    sample = Sample(
        "subject_add",
        "standard",
        "add a blue square",
        Request("add", ("blue", "square"), relation="left"),
        source,
        source.with_object(wanted),
    )
    shown = [
        replace(wanted, color="green"),  # the right shape
        replace(wanted, shape="ring"),  # the right colour
        replace(wanted, shape="ring", color="red"),
        replace(wanted, cell=6),
    ]
    images = render([source.with_object(item) for item in shown])
    assert [s.sc for s in score_edits(images, [sample] * 4)] == [5.0, 5.0, 0.0, 0.0]


def test_a_replaced_object_keeps_no_mark_for_what_had_not_to_change() -> None:
    source = Scene("white", (RED_CIRCLE,))
    sample = Sample(
        "color_alter",
        "standard",
        "make the red circle blue",
        Request("recolor", ("red", "circle"), ("blue", None)),
        source,
        Scene("white", (replace(RED_CIRCLE, color="blue"),)),
    )
    wrong = Scene("white", (replace(RED_CIRCLE, color="green"),))
    (score,) = score_edits(render([wrong]), [sample])
    assert score.sc == 0.0


def test_what_is_removed_must_be_gone() -> None:
    source = Scene("white", (RED_CIRCLE, BLUE_SQUARE))
    target = source.without(RED_CIRCLE)
    sample = Sample("subject_remove", "standard", "", Request("remove"), source, target)
    other = Scene("white", (BLUE_SQUARE, Object(0, "ring", "cyan")))
    scores = score_edits(render([target, other]), [sample] * 2)
    assert [score.sc for score in scores] == [10.0, 0.0]


def test_preservation_of_a_background_is_about_the_objects() -> None:
    source = Scene("white", (RED_CIRCLE,))
    target = replace(source, background="navy")
    sample = Sample(
        "background_change",
        "standard",
        "make the background navy",
        Request("background", background="navy"),
        source,
        target,
    )
    lost = Scene("navy", ())
    (score,) = score_edits(render([lost]), [sample])
    assert score.sc == 10.0
    assert score.pq < 3.0


@pytest.mark.parametrize("style", STYLES[1:])
def test_an_edit_that_loses_the_objects_preserves_little(style: str) -> None:
    source = Scene("gray", (RED_CIRCLE, BLUE_SQUARE))
    target = replace(source, style=style)
    sample = Sample("style_change", "standard", "", Request("style", style=style), source, target)
    empty = render([replace(target, objects=())])
    (kept,) = score_edits(render([target]), [sample])
    (lost,) = score_edits(empty, [sample])
    assert kept.pq == pytest.approx(10.0, abs=1e-4)
    over_all = float((empty - render([target])).square().mean().sqrt())
    assert lost.pq < 10 * (1 - over_all / WORST_RMSE) - 1  # the wide background does not hide it


def test_text_to_image_samples_are_no_edits() -> None:
    sample = draw("colors", 1)[0]
    with pytest.raises(ValueError, match="is no edit"):
        score_edits(render([sample.target]), [sample])


def test_scenes_that_differ_in_more_than_a_cell_are_no_local_edit() -> None:
    with pytest.raises(ValueError, match=r"differ in cells \[0, 5\]"):
        edited_cell(Scene("white", (RED_CIRCLE,)), Scene("white", (BLUE_SQUARE,)))


@pytest.mark.parametrize(
    ("request_", "objects", "right"),
    [
        # One object of a kind is enough, and others do no harm.
        (Request("create", (None, "circle")), (RED_CIRCLE, BLUE_SQUARE), True),
        (Request("create", (None, "ring")), (RED_CIRCLE, BLUE_SQUARE), False),
        (Request("create", ("red", "circle")), (RED_CIRCLE,), True),
        (Request("create", ("blue", "circle")), (RED_CIRCLE, BLUE_SQUARE), False),
        # Counts are exact.
        (
            Request("create", (None, "circle"), count=2),
            (RED_CIRCLE, Object(3, "circle", "cyan")),
            True,
        ),
        (Request("create", (None, "circle"), count=2), (RED_CIRCLE,), False),
        (
            Request("create", (None, "circle"), count=2),
            (RED_CIRCLE, Object(3, "circle", "red"), Object(4, "circle", "red")),
            False,
        ),
        # Two objects are two: one cannot stand for both.
        (Request("create", (None, "circle"), (None, "square")), (RED_CIRCLE, BLUE_SQUARE), True),
        (Request("create", (None, "circle"), (None, "circle")), (RED_CIRCLE,), False),
        (
            Request("create", ("red", "circle"), ("blue", "square")),
            (RED_CIRCLE, replace(BLUE_SQUARE, color="red")),
            False,
        ),
        (
            Request("create", ("blue", "circle"), ("red", "square")),  # the colours are swapped
            (RED_CIRCLE, BLUE_SQUARE),
            False,
        ),
        # Relations compare rows or columns.
        (
            Request("create", (None, "circle"), (None, "square"), relation="left"),
            (RED_CIRCLE, BLUE_SQUARE),
            True,
        ),
        (
            Request("create", (None, "circle"), (None, "square"), relation="above"),
            (RED_CIRCLE, BLUE_SQUARE),
            True,
        ),
        (
            Request("create", (None, "circle"), (None, "square"), relation="right"),
            (RED_CIRCLE, BLUE_SQUARE),
            False,
        ),
        (
            Request("create", (None, "circle"), (None, "square"), relation="below"),
            (RED_CIRCLE, replace(BLUE_SQUARE, cell=1)),  # beside it, in the same row
            False,
        ),
        (Request("create", (None, "circle")), (), False),
    ],
)
def test_rules_of_text_to_image(request_, objects, right: bool) -> None:
    assert satisfies(objects, request_) is right


@pytest.mark.parametrize("category", CATEGORIES["t2i"])
def test_text_to_image_scores_fall_with_noise(category: str) -> None:
    samples = draw(category, 40)
    target = render([s.target for s in samples])
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    found = [
        sum(score_text_to_image((target + level * noise).clamp(0, 1), samples))
        for level in (0.0, 0.15, 0.7)
    ]
    assert found[0] == 40
    assert found[0] > found[1] > found[2] or (found[0] > found[2] and found[1] >= found[2])
    assert found[2] <= 4


def test_another_prompts_image_is_wrong() -> None:
    samples = draw("color_attribution", 40)
    images = render([s.target for s in samples])
    assert sum(score_text_to_image(images.roll(1, 0), samples)) <= 2
