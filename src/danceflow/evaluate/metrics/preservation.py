"""How well an edit leaves alone what must not change: PSNR and SSIM through torchmetrics."""

from collections.abc import Iterator

import torch
from torch import Tensor

from danceflow.evaluate.measurement import Measurement, by_rows, row_by_row
from danceflow.evaluate.task import Task
from danceflow.worlds.rows import similarity_maps

MAX_PSNR = 60.0
"""Decibels reported for an image that equals its target."""

_SSIM_WINDOW = 11


@row_by_row
def preservation(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yield ``psnr`` (dB, at most 60) and ``ssim`` over the pixels that an edit must preserve.

    Which those are its world says.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    if task.source is None:
        raise ValueError(f"{task.capability}: its rows are no edits")
    kept = task.world.preserved(task.samples, task.source, task.target)
    psnr = [
        float(peak_signal_noise_ratio(image[:, mask], target[:, mask], data_range=1.0))
        for image, target, mask in zip(images_B3HW, task.target, kept, strict=True)
    ]
    yield by_rows(task, "psnr", [min(value, MAX_PSNR) for value in psnr])
    if min(images_B3HW.shape[-2:]) < _SSIM_WINDOW:
        return
    # Outside the mask the target stands in, so that a window at its border sees no edit.
    composed = torch.where(kept[:, None], images_B3HW, task.target)
    maps = similarity_maps(composed, task.target)
    rows = [float(part[mask].mean()) for part, mask in zip(maps, kept, strict=True)]
    yield by_rows(task, "ssim", rows)
