"""Handwritten digits, brought as a table of pictures: the exact score is to read the digit."""

from collections.abc import Sequence

from torch import Tensor

from danceflow.digits.score import digit_reader
from danceflow.worlds.marks import SCORE
from danceflow.worlds.rows import Rows
from danceflow.worlds.world import Marks, Sample


class Digits(Rows):
    """Rows whose facts name the digit that a made picture must show; edits as of any rows."""

    name = "digits"

    def marks(
        self, samples: Sequence[Sample], images: Tensor, sources: Tensor | None, targets: Tensor
    ) -> Marks:
        """Return 1 where the digit that was asked for can be read, else 0; edits as ``Rows``."""
        if sources is not None:
            return super().marks(samples, images, sources, targets)
        read = digit_reader().read(images)
        asked = [item.facts["digit"] for item in samples]
        return {SCORE: [float(a == r) for a, r in zip(asked, read, strict=True)]}
