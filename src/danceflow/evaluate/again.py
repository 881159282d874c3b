"""A student evaluated again: a package from anywhere, by this checkout's evaluation.

What the stage ``evaluate`` does with the student of the checkout, without its start and teachers,
and without leaving anything in the checkout. The same package gets the same scores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.data.buckets import read_bucket
from danceflow.evaluate import score as marks
from danceflow.evaluate.asked import (
    finite_images,
    judge_of,
    require_sizes,
    task_of,
)
from danceflow.evaluate.identity import SPLIT
from danceflow.evaluate.records import STANDARD, STUDENT, Answer
from danceflow.evaluate.result import result_of
from danceflow.models.memory import exported_memory
from danceflow.models.package import Package, load_package

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.paths import Paths


@dataclass(frozen=True)
class ScoredAgain:
    """What a student scores on the standard rows of a capability.

    Attributes:
        scale: the best possible score.
        rows: every answer.
    """

    scale: float
    rows: tuple[Answer, ...]


def open_again(params: "Params", package: Path) -> Package:
    """Return a student as the stage ``evaluate`` holds it, once for all capabilities.

    Args:
        params: all sections.
        package: folder of the student.

    Raises:
        WeightsError: the student is damaged, or its base is not here.
    """
    return load_package(package, exported_memory(params.run))


def score_again(
    params: "Params", paths: "Paths", capability: str, place: Path, student: Package
) -> ScoredAgain:
    """Return what a student scores on the standard rows of a capability.

    Args:
        params: all sections.
        paths: the checkout, in which the data are prepared.
        capability: its name.
        place: folder of the student, for messages.
        student: as ``open_again`` gives it.

    Raises:
        WeightsError: the student makes no images of the data's size.
        DataError: the bucket is missing, damaged or has too few rows.
        JudgeError: a judge that gives the score cannot be asked.
    """
    bucket = paths.bucket(params.capabilities[capability].bucket)
    dataset = read_bucket(bucket, SPLIT)
    require_sizes(place, student, dataset)
    task = task_of(params, capability, dataset, student.family)
    task = task.select(task.where(STANDARD))
    field = student.family.guided(student.field, params.evaluate.guidance)
    images = finite_images(task, field, params.evaluate, STUDENT)
    judge = judge_of(params, paths, capability)
    if judge is None or not judge.config.is_score:
        return ScoredAgain(marks.best_score(task), result_of(task, images).rows)
    judged = judge.score(STUDENT, task, images)
    judge.require_all(task)
    kept = [place for place, row in enumerate(task.rows) if row not in judge.left_out]
    found = result_of(task.select(kept), [images[place] for place in kept], judged=judged)
    return ScoredAgain(marks.best_score(task), found.rows)
