"""FID and KID: equal sets have none, and it grows with damage."""

from pathlib import Path

import pytest
import torch

from danceflow.evaluate.metrics.distribution import Conv64, InceptionDistances, distribution
from danceflow.fields import normal


def metrics(evaluator, task, images) -> dict[str, float]:
    return {item.name: item.value for item in evaluator(task, images)}


def noisy(images: torch.Tensor, level: float) -> torch.Tensor:
    return (images + level * normal(images.shape[1:], range(len(images)))).clamp(0, 1)


@pytest.mark.parametrize("name", ["t2i", "local_edit", "global_edit"])
def test_distributions_are_equal_or_further_apart(tasks, name: str) -> None:
    task = tasks[name]
    same = metrics(distribution, task, task.target)
    assert same["fid_conv64"] == pytest.approx(0.0, abs=1e-3)
    assert same["kid_conv64"] <= 1e-6  # unbiased: below zero for one and the same sample
    near, far = (metrics(distribution, task, noisy(task.target, x)) for x in (0.05, 0.5))
    assert 0 < near["fid_conv64"] < far["fid_conv64"]
    assert near["kid_conv64"] < far["kid_conv64"]


def test_one_image_is_no_distribution(tasks) -> None:
    part = tasks["t2i"].select([0])
    assert metrics(distribution, part, part.target) == {}


def test_the_extractor_is_the_same_everywhere() -> None:
    ramp = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    features = Conv64()(ramp)[0]
    assert features.shape == (64,)
    assert torch.equal(Conv64()(ramp)[0], features)
    assert not any(True for _ in Conv64().parameters())
    assert torch.equal(Conv64().get_buffer("weight_0"), Conv64().get_buffer("weight_0"))


def test_inception_distances_are_zero_for_equal_sets_and_grow(tasks, inception: Path) -> None:
    task, distances = tasks["global_edit"], InceptionDistances(inception)
    same = metrics(distances, task, task.target)
    assert same["fid_inception"] == pytest.approx(0, abs=1e-3)
    noise = normal(task.target.shape[1:], range(task.num_rows))
    near, far = (
        metrics(distances, task, (task.target + level * noise).clamp(0, 1)) for level in (0.1, 0.6)
    )
    assert same["fid_inception"] < near["fid_inception"] < far["fid_inception"]
    assert near["kid_inception"] < far["kid_inception"]
    assert metrics(distances, task.select([0]), task.target[:1]) == {}
