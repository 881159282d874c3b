"""Rows of a user: edits against their one target, digits read back, exact at both ends."""

import math
from dataclasses import replace

import pytest
import torch

from danceflow.digits.score import digit_images
from danceflow.digits.world import load_digits, questions
from danceflow.evaluate import score as marks
from danceflow.evaluate.metrics.preservation import preservation
from danceflow.evaluate.task import Part, Row, Task
from danceflow.fields import normal
from danceflow.worlds.rows import kept_pixels
from danceflow.worlds.world import Sample, open_world


def plain_task(items, *, edits: bool) -> Task:
    digits = [item.digit for item in items]
    target = torch.stack([torch.from_numpy(i.target.copy()).float() / 255 for i in items])
    facts = [{"digit": item.digit.label} for item in items]
    return Task(
        capability="x",
        world=open_world("digits"),
        rows=tuple(Row(str(n), i.category, i.variant, i.prompt, 0) for n, i in enumerate(items)),
        samples=tuple(
            Sample(i.category, i.variant, i.prompt, edits, {} if edits else fact)
            for i, fact in zip(items, facts, strict=True)
        ),
        parts=(
            Part(
                places=tuple(range(len(items))),
                family=None,
                tables={},
                asked=torch.arange(len(items)),
                noise=torch.zeros(len(items), 1),
                source=digit_images(digits) if edits else None,
                target=target[:, None].expand(-1, 3, -1, -1).contiguous(),
            ),
        ),
    )


@pytest.fixture(scope="module")
def asked():
    digits = [digit for digit in load_digits() if digit.split == "test"][:20]
    return [item for item in questions(tuple(digits)) if item.variant == "standard"]


@pytest.fixture(scope="module", params=["local edit", "global edit"])
def edits(request, asked) -> Task:
    return plain_task([item for item in asked if item.task == request.param], edits=True)


def scored(task: Task, images: torch.Tensor) -> dict[str, float]:
    return {item.name: item.value for item in marks.score(task, images)}


def test_the_target_is_perfect_and_the_source_is_nothing(edits: Task) -> None:
    assert marks.best_score(edits) == 10
    exact = scored(edits, edits.target)
    assert exact == pytest.approx({"score": 10, "sc": 10, "pq": 10}, abs=1e-4)
    nothing = scored(edits, edits.source)
    assert nothing["sc"] == pytest.approx(0, abs=1e-4)
    assert nothing["score"] == pytest.approx(0, abs=1e-2)


def test_half_the_way_is_worth_more_than_nothing(edits: Task) -> None:
    half = scored(edits, (edits.source + edits.target) / 2)
    assert half["sc"] == pytest.approx(7.5, abs=0.01)  # a quarter of the squared error is left


def test_damage_to_what_should_stay_costs(edits: Task) -> None:
    scores = []
    for level in (0.0, 0.05, 0.2, 0.6):
        noise = level * normal(edits.target.shape[1:], range(edits.num_rows))
        scores.append(scored(edits, (edits.target + noise).clamp(0, 1)))
    for name in ("score", "pq", "sc"):
        values = [score[name] for score in scores]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0] - 1


def test_what_an_edit_may_change_is_not_preserved(asked) -> None:
    task = plain_task([item for item in asked if item.category == "erase"], edits=True)
    images = task.target.clone()
    for image, source, target in zip(images, task.source, task.target, strict=True):
        image[:, ~kept_pixels(source, target)] = 0.5
    found = {item.name: item.value for item in preservation(task, images)}
    exact = {item.name: item.value for item in preservation(task, task.target)}
    assert found == exact
    assert exact["psnr"] == 60
    whole = plain_task([item for item in asked if item.category == "invert"], edits=True)
    for source, target in zip(whole.source, whole.target, strict=True):
        assert bool(kept_pixels(source, target).all())


REGION = (..., slice(48, 112), slice(80, 176))


@pytest.fixture(scope="module")
def photographs() -> Task:
    """Scikit-learn's two photographs with a region of each to be made plain gray."""
    from sklearn.datasets import load_sample_images

    images = [torch.from_numpy(image.copy()) for image in load_sample_images().images]
    source = torch.stack([image[64:256, 128:384].permute(2, 0, 1) for image in images]) / 255
    target = source.clone()
    target[REGION] = 0.5
    # A pixel that was nearly gray before counts as kept: now every erased one changes.
    source[REGION] = torch.where((source[REGION] - 0.5).abs() > 0.1, source[REGION], 0.9)
    samples = (Sample("erase", "standard", "erase it", True, {}),) * 2
    part = Part((0, 1), None, {}, torch.arange(2), torch.zeros(2, 1), source, target)
    rows = tuple(Row(str(n), "erase", "standard", "erase it", 0) for n in range(2))
    return Task("x", open_world("rows"), rows, samples, (part,))


def kept(task: Task, images: torch.Tensor) -> dict[str, tuple[float, ...]]:
    return {item.name: item.rows for item in preservation(task, images)}


def test_photographs_that_are_kept_reach_the_cap(photographs: Task) -> None:
    assert kept(photographs, photographs.target) == {"psnr": (60, 60), "ssim": (1, 1)}


def test_what_happens_to_the_erased_region_is_ignored(photographs: Task) -> None:
    images = photographs.target.clone()
    images[REGION] = normal(images[REGION].shape[1:], [1, 2]).sigmoid()
    assert kept(photographs, images) == {"psnr": (60, 60), "ssim": (1, 1)}
    images[1, :, :8, :8] += 0.25
    found = kept(photographs, images)
    assert found["psnr"][0] == 60
    assert found["psnr"][1] < 60


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_known_noise_outside_the_region_gives_the_known_psnr(
    photographs: Task, level: float
) -> None:
    signs = normal(photographs.target.shape[1:], [3, 4]).sign()
    found = kept(photographs, photographs.target + level * signs)
    assert found["psnr"] == pytest.approx((-20 * math.log10(level),) * 2, abs=1e-3)
    assert all(value < 1 for value in found["ssim"])
    only_inside = photographs.target.clone()
    only_inside[REGION] += level * signs[REGION]
    assert kept(photographs, only_inside)["psnr"] == (60, 60)


def test_digits_are_right_when_they_can_be_read(asked) -> None:
    task = plain_task([item for item in asked if item.category == "digit"], edits=False)
    assert marks.best_score(task) == 1
    assert scored(task, task.target)["score"] > 0.85
    assert scored(task, task.target.roll(1, 0))["score"] < 0.3
    assert scored(task, torch.rand(task.target.shape))["score"] == 0


def test_other_pictures_are_compared_with_their_target(asked) -> None:
    task = plain_task([item for item in asked if item.category == "digit"], edits=False)
    task = replace(task, world=open_world("rows"))
    assert scored(task, task.target)["score"] == pytest.approx(1)
    worse = scored(task, (task.target + 0.3).clamp(0, 1))["score"]
    assert 0 <= scored(task, 1 - task.target)["score"] < worse < 1
