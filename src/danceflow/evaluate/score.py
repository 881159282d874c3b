"""What the world says of a field's answers, as measurements."""

from collections.abc import Iterator

from torch import Tensor

from danceflow.evaluate.measurement import Measurement, by_rows, row_by_row
from danceflow.evaluate.task import Task


@row_by_row
def score(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yield ``score`` and what it is made of, such as ``sc`` and ``pq`` of edits."""
    found = task.world.marks(task.samples, images_B3HW, task.source, task.target)
    for name, values in found.items():
        yield by_rows(task, name, values)


@row_by_row
def further(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yield what the world measures beside the score, such as ``realism``."""
    for name, values in task.world.further(task.samples, images_B3HW).items():
        yield by_rows(task, name, values)


def best_score(task: Task) -> float:
    """Return the best possible score of a task."""
    return task.world.scale(is_edit=task.is_edit)
