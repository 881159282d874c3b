"""A metric of one line: how bright an answer is."""

from collections.abc import Iterator

from torch import Tensor

from danceflow.evaluate.measurement import Measurement, by_rows, row_by_row
from danceflow.evaluate.task import Task


@row_by_row
def brightness(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yield ``brightness``, the mean over all pixels and colours."""
    yield by_rows(task, "brightness", images_B3HW.flatten(1).mean(1).tolist())
