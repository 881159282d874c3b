"""A world of one's own rows: a sheet of paper in one colour, and how near an answer comes to it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from danceflow.worlds.marks import SCORE
from danceflow.worlds.rows import Rows
from danceflow.worlds.world import Marks, Sample


class Sheets(Rows):
    """Rows whose facts name the colour that a made sheet must have; edits as of any rows."""

    name = "sheets"

    def marks(
        self, samples: Sequence[Sample], images: Tensor, sources: Tensor | None, targets: Tensor
    ) -> Marks:
        """Return 1 where every pixel has the colour that was asked for, less by what it is off."""
        if sources is not None:
            return super().marks(samples, images, sources, targets)
        asked = torch.tensor([item.facts["rgb"] for item in samples]) / 255
        off = (images - asked[:, :, None, None]).abs().flatten(1).mean(1)
        return {SCORE: (1 - off).tolist()}
