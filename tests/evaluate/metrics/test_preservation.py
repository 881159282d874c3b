"""What must not change: exact at the ends, blind to what may change, falling with damage."""

from dataclasses import replace

import pytest
import torch

from danceflow.evaluate.metrics.preservation import MAX_PSNR, preservation
from danceflow.fields import normal
from danceflow.scenes.score import edited_cell
from danceflow.worlds.scenes import preserved_pixels


def metrics(evaluator, task, images) -> dict[str, float]:
    return {item.name: item.value for item in evaluator(task, images)}


def noisy(images: torch.Tensor, level: float) -> torch.Tensor:
    return (images + level * normal(images.shape[1:], range(len(images)))).clamp(0, 1)


@pytest.mark.parametrize("name", ["local_edit", "global_edit"])
def test_exact_targets_are_preserved_and_damage_tells(tasks, name: str) -> None:
    task = tasks[name]
    exact = metrics(preservation, task, task.target)
    assert exact["psnr"] == MAX_PSNR
    assert exact["ssim"] == pytest.approx(1.0, abs=1e-5)
    found = [metrics(preservation, task, noisy(task.target, x)) for x in (0.02, 0.1, 0.4)]
    assert MAX_PSNR > found[0]["psnr"] > found[1]["psnr"] > found[2]["psnr"]
    assert 1 > found[0]["ssim"] > found[1]["ssim"] > found[2]["ssim"]


def test_known_noise_has_its_psnr(tasks) -> None:
    task = tasks["global_edit"]
    gray = task.target * 0.5 + 0.25  # so that nothing is clipped
    damaged = gray + 0.05 * torch.sign(normal(gray.shape[1:], range(len(gray))))
    task = replace(task, parts=(replace(task.only, target=gray),))
    # 10 log10(1 / 0.05^2)
    assert metrics(preservation, task, damaged)["psnr"] == pytest.approx(26.02, abs=0.02)


def test_the_edited_cell_does_not_count(tasks) -> None:
    task = tasks["local_edit"]
    images = task.target.clone()
    for image, item in zip(images, task.samples, strict=True):
        row, column = divmod(edited_cell(item.facts.source, item.facts.target), 4)
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0.5
    assert metrics(preservation, task, images) == metrics(preservation, task, task.target)


def test_the_new_background_does_not_count(tasks) -> None:
    task = tasks["global_edit"]
    rows = [i for i, row in enumerate(task.rows) if row.category == "background_change"]
    part = task.select(rows)
    kept = torch.stack([preserved_pixels(item.facts, 32) for item in part.samples])
    images = torch.where(kept[:, None], part.target, 0.5)
    assert metrics(preservation, part, images)["psnr"] == MAX_PSNR
