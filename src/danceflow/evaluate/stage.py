"""Stage ``evaluate``: student, start student and every teacher on one capability's test rows."""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from danceflow.capability import asked
from danceflow.data.buckets import read_bucket
from danceflow.evaluate import score as marks
from danceflow.evaluate.asked import (
    ask,
    ask_and_judge,
    fields_of,
    help_with,
    judge_of,
    require_sizes,
    survey_of,
    task_of,
)
from danceflow.evaluate.by_steps import write_by_steps
from danceflow.evaluate.further_steps import score_by_steps
from danceflow.evaluate.gallery import Answers, draw_gallery
from danceflow.evaluate.identity import SPLIT, identity_of
from danceflow.evaluate.metrics.distribution import EXTRACTOR
from danceflow.evaluate.metrics.open import open_metrics
from danceflow.evaluate.records import (
    Evaluation,
    FieldResult,
    Training,
    write_evaluation,
)
from danceflow.models.memory import exported_memory
from danceflow.models.package import load_package
from danceflow.models.teachers import Teachers
from danceflow.ops.files import atomic_directory, sha256, write_json
from danceflow.ops.group import current
from danceflow.paths import MANIFEST

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LOG = logging.getLogger(__name__)


def run(params: "Params", paths: "Paths", capability: str) -> None:
    """Write ``reports/evaluate/<capability>.json`` and a folder beside it.

    The folder holds its pictures, its identity and the scores by the number of steps.

    Raises:
        WeightsError: the student or a teacher is missing, damaged or of another shape.
        DataError: the bucket is damaged or has too few rows.
        JudgeError: a judge cannot be asked, or has not answered what the score goes by.
    """
    started = time.monotonic()
    metrics, notes = open_metrics(params.evaluate.weights, paths.root)
    judge = judge_of(params, paths, capability) if current().is_main else None
    bucket = paths.bucket(params.capabilities[capability].bucket)
    dataset = read_bucket(bucket, SPLIT)
    memory = exported_memory(params.run)
    teachers = Teachers(paths.teachers, params.family.name, asked(params).teachers, memory)
    student = load_package(paths.student, memory, teachers)
    require_sizes(paths.student, student, dataset)
    task = task_of(params, capability, dataset, student.family)
    survey = survey_of(params, task, fields_of(params, capability, student, teachers), metrics)
    if not current().is_main:
        help_with(survey)
        return
    with tqdm(
        total=survey.num_images, desc=f"evaluate {capability}", unit="image", mininterval=2
    ) as bar:
        if judge is None:
            images, results = ask(survey, params, paths, student.meta, bar)
        else:
            survey, images, results = ask_and_judge(survey, judge, bar)
            notes.append(judge.note())
        by_steps = score_by_steps(survey, params, paths, student.meta, results, bar)
    current().told(None)  # no more is asked
    with atomic_directory(paths.evaluation_images(capability)) as folder:
        drawn = {
            name: Answers(survey.places[name], images[name], [row.score for row in result.rows])
            for name, result in results.items()
        }
        draw_gallery(folder, survey.task, survey.own, drawn)
        identity = identity_of(params, paths, capability)
        write_json(folder / paths.evaluation_identity(capability).name, identity)
        write_by_steps(folder / paths.evaluation_by_steps(capability).name, by_steps)
    evaluation = Evaluation(
        capability=capability,
        scale=marks.best_score(task),
        teacher=survey.own,
        num_steps=params.evaluate.steps(capability),
        extractor=EXTRACTOR,
        training=_training(student.meta),
        student=sha256(paths.student / MANIFEST),
        seconds=round(time.monotonic() - started, 1),
        notes=(*notes, *_of_steps(params, capability), *_of_grid(student.meta)),
        left_out=() if judge is None else judge.rows_left_out(),
        fields=results,
    )
    write_evaluation(paths.evaluation(capability), evaluation)
    _LOG.info("%s: %s", capability, _line(results))


def _training(student: Mapping[str, Any]) -> Training | None:
    """Return what the student's training took, ``None`` where its package does not tell."""
    if "field_evaluations" not in student:
        return None
    return Training(
        num_updates=student["num_updates"],
        field_evaluations=sum(student["field_evaluations"].values()),
    )


def _of_steps(params: "Params", capability: str) -> tuple[str, ...]:
    """Return a note where teachers answer in other steps than the student."""
    steps, others = params.evaluate.steps(capability), params.evaluate.teacher_steps(capability)
    if steps == others:
        return ()
    return (f"student and start answer in {steps} steps, the teachers in {others}",)


def _of_grid(student: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note where the student's grid is not its teachers'."""
    if student.get("shift") is None:
        return ()
    return (f"all fields answer on the student's own sigma grid, of shift {student['shift']:g}",)


def _line(results: Mapping[str, FieldResult]) -> str:
    return ", ".join(f"{name} {result.score:.3g}" for name, result in results.items())
