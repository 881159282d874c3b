"""Evaluators of the scenes world: GenEval's yes or no, and VIEScore's SC, PQ and O."""

from collections.abc import Iterator

from torch import Tensor

from danceflow.evaluate.evaluator import SCORE, Measurement, Task, by_rows, row_by_row
from danceflow.evaluate.records import REALISM
from danceflow.scenes.prompts import Sample
from danceflow.scenes.realism import score_realism
from danceflow.scenes.render import SHADED
from danceflow.scenes.score import score_edits, score_text_to_image

GENEVAL_SCALE = 1.0
VIESCORE_SCALE = 10.0


@row_by_row
def gen_eval(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yields ``score``: 1 where the image shows all that the prompt asks for, else 0."""
    right = score_text_to_image(images_B3HW, task.scenes)
    yield by_rows(task, SCORE, [float(value) for value in right])


@row_by_row
def vie_score(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yields ``score`` = sqrt(sc * pq), ``sc`` and ``pq``, each from 0 to 10."""
    scores = score_edits(images_B3HW, task.scenes)
    yield by_rows(task, SCORE, [item.overall for item in scores])
    yield by_rows(task, "sc", [item.sc for item in scores])
    yield by_rows(task, "pq", [item.pq for item in scores])


@row_by_row
def shading(task: Task, images_B3HW: Tensor) -> Iterator[Measurement]:
    """Yields ``realism``, each image's share of the exact shading, where shading is asked for."""
    if all(isinstance(item, Sample) and item.rendering == SHADED for item in task.samples):
        yield by_rows(task, REALISM, score_realism(images_B3HW))
