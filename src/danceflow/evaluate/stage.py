"""Stage ``evaluate``: student, start student and every teacher on one capability's test rows."""

import logging
import shutil
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from danceflow.capability import asked
from danceflow.data.buckets import read_bucket
from danceflow.data.sizes import shown, sizes_of
from danceflow.errors import DataError, WeightsError
from danceflow.evaluate import score as marks
from danceflow.evaluate.asked import (
    SPLIT,
    answers,
    as_stored,
    fields_of,
    judged_answers,
    survey_of,
)
from danceflow.evaluate.gallery import Answers, draw_gallery
from danceflow.evaluate.judge.endpoint import Endpoint
from danceflow.evaluate.judge.judge import Judge
from danceflow.evaluate.metrics.distribution import EXTRACTOR
from danceflow.evaluate.metrics.open import open_metrics
from danceflow.evaluate.records import (
    HELD_OUT_VARIANTS,
    STANDARD,
    Evaluation,
    FieldResult,
    Training,
    write_evaluation,
)
from danceflow.evaluate.task import Task, build_task
from danceflow.models.family import ModelFamily
from danceflow.models.memory import memory_of
from danceflow.models.package import Package, Teachers, load_package
from danceflow.ops.files import atomic_directory
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from pathlib import Path

    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)


def run(params: "Params", paths: "Paths", capability: str) -> None:
    """Write ``reports/evaluate/<capability>.json`` and the folder of its pictures.

    Raises:
        WeightsError: the student or a teacher is missing, damaged or of another shape.
        DataError: the bucket is damaged or has too few rows.
        JudgeError: a judge cannot be asked, or has not answered what the score goes by.
    """
    started = time.monotonic()
    metrics, notes = open_metrics(params.evaluate.weights, paths.root)
    judge = _judge(params, paths, capability)
    bucket = paths.bucket(params.capabilities[capability].bucket)
    dataset = read_bucket(bucket, SPLIT)
    memory = memory_of(params.run)
    teachers = Teachers(paths.teachers, params.family.name, asked(params).teachers, memory)
    student = load_package(paths.student, as_stored(params), teachers)
    _require_sizes(paths.student, student, dataset)
    task = _task(params, capability, dataset, student.family, bucket)
    survey = survey_of(params, task, fields_of(params, capability, student, teachers), metrics)
    with tqdm(
        total=survey.num_images, desc=f"evaluate {capability}", unit="image", mininterval=2
    ) as bar:
        if judge is None:
            images, results = answers(survey, params, paths, student.meta, bar)
        else:
            survey, images, results = judged_answers(survey, judge, bar)
            notes.append(judge.note())
    with atomic_directory(paths.evaluation_images(capability)) as folder:
        drawn = {
            name: Answers(survey.places[name], images[name], [row.score for row in result.rows])
            for name, result in results.items()
        }
        draw_gallery(folder, survey.task, survey.own, drawn)
    evaluation = Evaluation(
        capability=capability,
        scale=marks.best_score(task),
        teacher=survey.own,
        num_steps=params.evaluate.num_steps,
        extractor=EXTRACTOR,
        training=_training(student.meta),
        seconds=round(time.monotonic() - started, 1),
        notes=tuple(notes),
        left_out=() if judge is None else judge.rows_left_out(),
        fields=results,
    )
    write_evaluation(paths.evaluation(capability), evaluation)
    _LOG.info("%s: %s", capability, _line(results))


def _judge(params: "Params", paths: "Paths", capability: str) -> Judge | None:
    """Return the judge that the parameters name; questions of an earlier run are removed."""
    config = params.evaluate.judge
    if config is None:
        return None
    export = paths.judge_questions(capability)
    shutil.rmtree(export, ignore_errors=True)
    return Judge(config, Endpoint(config, paths.judge_answers), export)


def _require_sizes(place: "Path", student: Package, dataset: Any) -> None:
    for size in dict.fromkeys(sizes_of(dataset, range(len(dataset)))):
        if size not in student.image_sizes:
            raise WeightsError(
                f"{place}: the student makes images of "
                f"{', '.join(map(shown, student.image_sizes))} pixels, the data has {shown(size)}; "
                "run the stage distill"
            )


def _task(
    params: "Params", capability: str, dataset: Any, family: ModelFamily, bucket: "Path"
) -> Task:
    """Return the rows that are asked; at least one is a standard one."""
    config = params.evaluate
    counts = dict.fromkeys(HELD_OUT_VARIANTS, max(1, config.num_samples // 3))
    task = build_task(
        capability,
        dataset,
        open_world(params.data.world),
        family,
        {STANDARD: config.num_samples} | counts,
        config.seeds,
        device=params.run.device,
    )
    if not task.where(STANDARD):
        raise DataError(
            f"{bucket}: every test prompt has words that the text encoder does not know"
        )
    return task


def _training(student: Mapping[str, Any]) -> Training | None:
    """Return what the student's training took, ``None`` where its package does not tell."""
    if "field_evaluations" not in student:
        return None
    return Training(
        num_updates=student["num_updates"],
        field_evaluations=sum(student["field_evaluations"].values()),
    )


def _line(results: Mapping[str, FieldResult]) -> str:
    return ", ".join(f"{name} {result.score:.3g}" for name, result in results.items())
