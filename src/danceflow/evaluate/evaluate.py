"""Stage ``evaluate``: student, start student and every teacher on one capability's test rows."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from danceflow.data.buckets import read_bucket
from danceflow.errors import DataError, WeightsError
from danceflow.evaluate.evaluator import Task, build_task, category_means, mean_of_categories
from danceflow.evaluate.field_gap import field_gap
from danceflow.evaluate.gallery import Answers, draw_gallery
from danceflow.evaluate.images import EXTRACTOR, distribution, preservation
from danceflow.evaluate.records import (
    HELD_OUT_VARIANTS,
    STANDARD,
    START,
    STUDENT,
    TEACHER,
    UNKNOWN_WORDS,
    Answer,
    Evaluation,
    FieldResult,
    Training,
    write_evaluation,
)
from danceflow.evaluate.reuse import code_digest, folder_digests, reused
from danceflow.evaluate.scenes import SCORE, main_evaluator
from danceflow.fields import GuidedField, VelocityField
from danceflow.method import METHODS
from danceflow.models.package import (
    FROZEN_FOLDER,
    MANIFEST,
    Teachers,
    load_package,
    read_manifest,
)
from danceflow.ops.files import atomic_directory, fingerprint, sha256
from danceflow.train.start import start_backbone, trained_teachers

if TYPE_CHECKING:
    from danceflow.paths import Paths
    from danceflow.schema import EvaluateParams, Params

_LOG = logging.getLogger(__name__)
_SPLIT = "test"
_GAP_ROWS = 24


def run(params: "Params", paths: "Paths", capability: str) -> None:
    """Writes ``reports/evaluate/<capability>.json`` and the folder of its pictures.

    Raises:
        WeightsError: the student or a teacher is missing, damaged or of another shape.
        DataError: the bucket is damaged or has too few rows.
    """
    started = time.monotonic()
    config, own = params.evaluate, TEACHER + params.capabilities[capability].teacher
    dataset = read_bucket(paths.bucket(params.capabilities[capability].bucket), _SPLIT)
    student = load_package(paths.student, params.run.device)
    teachers = Teachers(
        paths.teachers,
        params.family.name,
        list(read_manifest(paths.teachers)["teachers"]),
        params.run.device,
    )
    if student.family.latent_shape != teachers.family.latent_shape:
        raise WeightsError(
            f"{paths.student}: the student's latents are {student.family.latent_shape}, its "
            f"teachers' are {teachers.family.latent_shape}; run the stage distill"
        )
    task = build_task(
        capability,
        dataset,
        student.family,
        {STANDARD: config.num_samples}
        | dict.fromkeys(HELD_OUT_VARIANTS, max(1, config.num_samples // 3)),
        config.seeds,
        device=params.run.device,
    )
    if not task.where(STANDARD):
        raise DataError(
            f"{paths.bucket(params.capabilities[capability].bucket)}: every test prompt has words "
            "that the text encoder does not know"
        )
    student_field = GuidedField(student.field, student.family.null, config.guidance)
    fields = {STUDENT: student_field, START: _start_field(params, teachers)}
    fields |= _teacher_fields(params, capability, teachers)
    places = {
        name: list(range(task.num_rows)) if name in (STUDENT, own) else task.where(STANDARD)
        for name in fields
    }
    gap_task = task.select(task.first_of_each(STANDARD, _GAP_ROWS))
    answers, results = {}, {}
    total = sum(len(rows) for rows in places.values())
    inputs = _inputs(params, paths, capability, student.meta)
    with tqdm(total=total, desc=f"evaluate {capability}", unit="image", mininterval=2) as bar:

        def answer(name: str) -> tuple[FieldResult, Tensor]:
            part = task.select(places[name])
            images = _finite_images(part, fields[name], config, name, bar.update)
            result = judge(part, images)
            if name in (STUDENT, START):
                gap = field_gap(fields[name], fields[own], gap_task, config.num_steps)
                result = result.model_copy(update={"field_gap": gap})
            return result, images

        for name, field in fields.items():
            before = bar.n
            if name == STUDENT:
                results[name], images = answer(name)
            else:
                start = _start(params) if name == START else {}
                key = fingerprint({**inputs, **start, "field": [name, field.scale]})
                results[name], images = reused(
                    paths.work(f"evaluation-{key}"), partial(answer, name)
                )
            bar.update(before + len(images) - bar.n)
            scores = [row.score for row in results[name].rows]
            answers[name] = Answers(places[name], images, scores)
    with atomic_directory(paths.evaluation_images(capability)) as folder:
        draw_gallery(folder, task, own, answers)
    evaluation = Evaluation(
        capability=capability,
        scale=main_evaluator(task)[1],
        teacher=own,
        num_steps=config.num_steps,
        extractor=EXTRACTOR,
        training=_training(student.meta),
        seconds=round(time.monotonic() - started, 1),
        fields=results,
    )
    write_evaluation(paths.evaluation(capability), evaluation)
    _LOG.info("%s: %s", capability, _line(results))


def judge(task: Task, images_B3HW: Tensor) -> FieldResult:
    """Returns the scores of a field's images; the field gap is left empty.

    Args:
        task: what the field was asked.
        images_B3HW: its answers, finite, in [0, 1].
    """
    evaluator, _ = main_evaluator(task)
    parts = {item.name: item.rows for item in evaluator(task, images_B3HW) if item.rows is not None}
    rows = tuple(
        Answer(
            uid=row.uid,
            category=row.category,
            variant=row.variant,
            seed=row.seed,
            **{name: round(values[place], 4) for name, values in parts.items()},
        )
        for place, row in enumerate(task.rows)
    )
    scores = list(zip((row.category for row in rows), parts[SCORE], strict=True))
    standard = task.where(STANDARD)
    variants = {
        name: mean_of_categories(scores[place] for place in task.where(name))
        for name in (STANDARD, *HELD_OUT_VARIANTS, UNKNOWN_WORDS)
        if task.where(name)
    }
    return FieldResult(
        score=variants[STANDARD],
        categories=category_means(scores[place] for place in standard),
        variants=variants,
        metrics=_metrics(task.select(standard), images_B3HW[torch.tensor(standard)]),
        field_gap={},
        rows=rows,
    )


def _metrics(task: Task, images: Tensor) -> dict[str, float]:
    """Returns the further metrics of the standard rows."""
    evaluators = [distribution] if task.source is None else [preservation, distribution]
    return {
        item.name: round(item.value, 5)
        for evaluator in evaluators
        for item in evaluator(task, images)
    }


def _finite_images(
    task: Task,
    field: VelocityField,
    config: "EvaluateParams",
    name: str,
    on_batch: Callable[[int], object],
) -> Tensor:
    images = task.images(field, config.num_steps, config.batch_size, on_batch)
    if not bool(images.isfinite().all()):
        raise WeightsError(f"{name}: its images of {task.capability} are not finite numbers")
    return images


def _start_field(params: "Params", teachers: Teachers) -> GuidedField:
    """Returns the student as it was before its first update, guided as the student is."""
    init = METHODS[params.distill.method].init
    backbone = start_backbone(params.distill, teachers, init, trained_teachers(params))
    field = teachers.family.field(backbone.eval().requires_grad_(False))
    return GuidedField(field, teachers.family.null, params.evaluate.guidance)


def _teacher_fields(
    params: "Params", capability: str, teachers: Teachers
) -> dict[str, GuidedField]:
    """Returns the teachers that capabilities use, each with the guidance it is used with.

    A teacher of several capabilities has the guidance of ``capability`` if it is one of them.
    """
    guidance: dict[str, float] = {}
    for config in (params.capabilities[capability], *params.capabilities.values()):
        guidance.setdefault(config.teacher, config.guidance)
    used = dict.fromkeys(config.teacher for config in params.capabilities.values())
    return {TEACHER + name: teachers.field(name, guidance[name]) for name in used}


def _inputs(
    params: "Params", paths: "Paths", capability: str, student: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns everything but the field itself that decides what a field answers."""
    config = params.capabilities[capability]
    return {
        "code": code_digest(),
        "rows": folder_digests(paths.bucket(config.bucket) / _SPLIT),
        "teachers": sha256(paths.teachers / MANIFEST),
        # The student's own frozen parts read the prompts.
        "frozen": {k: v for k, v in student["files"].items() if k.startswith(FROZEN_FOLDER)},
        "params": params.select(("run", "family")),
        "evaluate": params.evaluate.model_dump(mode="json", exclude={"guidance", "num_bootstrap"}),
        "capability": [capability, config.teacher, config.guidance],
    }


def _start(params: "Params") -> dict[str, Any]:
    """Returns what decides the weights that a student starts with."""
    names = ("distill.method", "distill.init", "distill.merge_weights")
    return {**params.select(names), "averaged": trained_teachers(params)}


def _training(student: Mapping[str, Any]) -> Training | None:
    """Returns what the student's training took, ``None`` where its package does not tell."""
    if "field_evaluations" not in student:
        return None
    return Training(
        num_updates=student["num_updates"],
        field_evaluations=sum(student["field_evaluations"].values()),
    )


def _line(results: Mapping[str, FieldResult]) -> str:
    return ", ".join(f"{name} {result.score:.3g}" for name, result in results.items())
