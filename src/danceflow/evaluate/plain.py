"""Evaluators of what users bring: rows that have a target picture, and perhaps a known digit.

An edit is scored on VIEScore's scale against its one target. Of a picture that was made from a
prompt the target is one right answer of many, so its likeness is a weak score: a judge
(``evaluate.judge``) or facts about the answer say more.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from danceflow.evaluate.evaluator import SCORE, Measurement, Task, by_rows, row_by_row
from danceflow.evaluate.images import changed_pixels, kept_pixels, similarity_maps

_BEST = 10.0


@row_by_row
def read_digits(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yields ``score``: 1 where the digit that was asked for can be read, else 0."""
    from danceflow.digits.score import digit_reader

    asked = [item.facts["digit"] for item in task.plain]
    read = digit_reader().read(images_B3HW)
    yield by_rows(task, SCORE, [float(a == r) for a, r in zip(asked, read, strict=True)])


@row_by_row
def target_likeness(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yields ``score``: the structural similarity to the target, from 0 to 1."""
    maps = similarity_maps(images_B3HW, task.target)
    yield by_rows(task, SCORE, [float(part.mean().clamp(0, 1)) for part in maps])


@row_by_row
def target_edit(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yields ``score`` = sqrt(sc * pq), ``sc`` and ``pq``, each from 0 to 10.

    ``sc`` is the share of the way from source to target that the image went, in mean squared error
    over the pixels that change; ``pq`` the structural similarity over the pixels that stay, of an
    edit that leaves hardly any over the whole picture.
    """
    if task.source is None:
        raise ValueError(f"{task.capability}: its rows are no edits")
    maps = similarity_maps(images_B3HW, task.target)
    done, kept = [], []
    for source, target, image, part in zip(
        task.source, task.target, images_B3HW, maps, strict=True
    ):
        changed = changed_pixels(source, target)
        done.append(_done(source, target, image, changed))
        kept.append(float(part[kept_pixels(source, target)].mean().clamp(0, 1)))
    sc, pq = torch.tensor(done) * _BEST, torch.tensor(kept) * _BEST
    yield by_rows(task, SCORE, (sc * pq).sqrt().tolist())
    yield by_rows(task, "sc", sc.tolist())
    yield by_rows(task, "pq", pq.tolist())


def _done(source: Tensor, target: Tensor, image: Tensor, changed: Tensor) -> float:
    """Returns how much of the change was made, from 0 to 1."""
    if not bool(changed.any()):
        return 1.0
    whole = (source - target)[:, changed].square().mean()
    left = (image - target)[:, changed].square().mean()
    return float((1 - left / whole).clamp(0, 1))
