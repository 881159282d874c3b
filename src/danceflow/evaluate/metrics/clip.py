"""How well a picture fits its prompt: CLIPScore, with a network by path."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from danceflow.evaluate.measurement import Measurement, by_rows
from danceflow.evaluate.task import Task
from danceflow.models.frozen.clip import load_clip


class ClipScore:
    """How well a picture fits its prompt: 100 times the cosine of their CLIP features, at least 0.

    Hessel et al. 2021, "CLIPScore". For edits it says how well the result fits the instruction.
    """

    def __init__(self, folder: Path) -> None:
        """Load the model and its processor from a folder."""
        from torchmetrics.multimodal import CLIPScore

        # Of several processes one has all answers: the others do not come to add theirs.
        self.metric = CLIPScore(model_name_or_path=lambda: load_clip(folder), sync_on_compute=False)

    def __call__(self, task: Task, images: Sequence[Tensor], /) -> Iterator[Measurement]:
        """Yield ``clip_score``, from 0 to 100."""
        scores = []
        for row, image in zip(task.rows, images, strict=True):
            self.metric.reset()
            self.metric.update((image * 255).round().to(torch.uint8), row.prompt)
            scores.append(float(self.metric.compute()))
        yield by_rows(task, "clip_score", scores)
