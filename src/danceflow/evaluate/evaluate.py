"""Stage ``evaluate``: student, start student and every teacher on one capability's test rows."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from danceflow.capability import asked
from danceflow.data.buckets import read_bucket
from danceflow.data.sizes import shown, sizes_of
from danceflow.errors import DataError, WeightsError
from danceflow.evaluate.endpoint import Endpoint
from danceflow.evaluate.evaluator import (
    SCORE,
    Evaluator,
    Task,
    build_task,
    category_means,
    mean_of_categories,
)
from danceflow.evaluate.field_gap import field_gap
from danceflow.evaluate.gallery import Answers, draw_gallery
from danceflow.evaluate.images import EXTRACTOR, distribution, preservation
from danceflow.evaluate.judge import JUDGE, Judge, Judged
from danceflow.evaluate.main_score import main_evaluator
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
from danceflow.evaluate.scenes import shading
from danceflow.evaluate.weighted import open_metrics
from danceflow.fields import GuidedField, VelocityField
from danceflow.models.memory import Memory, memory_of
from danceflow.models.package import (
    FROZEN_FOLDER,
    MANIFEST,
    Teachers,
    load_package,
)
from danceflow.ops.files import atomic_directory, fingerprint, sha256
from danceflow.train.start import start_backbone

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
        JudgeError: a judge cannot be asked, or has not answered what the score goes by.
    """
    started = time.monotonic()
    config, own = params.evaluate, TEACHER + params.capabilities[capability].teacher
    metrics, notes = open_metrics(config.weights, paths.root)
    model = _judge_model(params, paths, capability)
    dataset = read_bucket(paths.bucket(params.capabilities[capability].bucket), _SPLIT)
    teachers = Teachers(
        paths.teachers,
        params.family.name,
        asked(params).teachers,
        memory_of(params.run),
    )
    student = load_package(paths.student, _as_stored(params), teachers)
    for size in dict.fromkeys(sizes_of(dataset, range(len(dataset)))):
        if size not in student.image_sizes:
            raise WeightsError(
                f"{paths.student}: the student makes images of "
                f"{', '.join(map(shown, student.image_sizes))} pixels, the data has {shown(size)}; "
                "run the stage distill"
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
    student_field = student.family.guided(student.field, config.guidance)
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

        def answer(name: str) -> tuple[FieldResult, Sequence[Tensor]]:
            part = task.select(places[name])
            images = _finite_images(part, fields[name], config, name, bar.update)
            result = _judged(part, images, metrics, model, name, asked=(STUDENT, START, own))
            if name in (STUDENT, START):
                gap = field_gap(fields[name], fields[own], gap_task, config.num_steps)
                result = result.model_copy(update={"field_gap": gap})
            return result, images

        for name, field in fields.items():
            before = bar.n
            if name == STUDENT or model is not None:  # a judge keeps its own answers
                results[name], images = answer(name)
            else:
                start = {"start": asked(params).start} if name == START else {}
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
        notes=(*notes, *([] if model is None else [model.note()])),
        fields=results,
    )
    write_evaluation(paths.evaluation(capability), evaluation)
    _LOG.info("%s: %s", capability, _line(results))


def _judged(
    task: Task,
    images: Sequence[Tensor],
    metrics: Sequence[Evaluator],
    model: Judge | None,
    name: str,
    asked: Sequence[str],
) -> FieldResult:
    """Returns the scores of a field's images, with the answers of the judge if there is one.

    A judge that does not give the score is asked about the fields in ``asked`` alone.
    """
    judged = {}
    if model is not None and (model.config.is_score or name in asked):
        judged = model.score(name, task, images)
        model.require_all()
    result = judge(task, images, metrics, judged if _scores(model) else None)
    if judged and not _scores(model):
        further = {**result.metrics, **_judged_means(task, judged)}
        result = result.model_copy(update={"metrics": further})
    return result


def judge(
    task: Task,
    images: Sequence[Tensor],
    further: Sequence[Evaluator] = (),
    judged: Mapping[int, Judged] | None = None,
) -> FieldResult:
    """Returns the scores of a field's images; the field gap is left empty.

    Args:
        task: what the field was asked.
        images: its answers, finite, in [0, 1].
        further: evaluators of the standard rows beside the usual ones.
        judged: a judge's marks of every row, in place of the scores that the data gives.
    """
    evaluator, _ = main_evaluator(task)
    if judged is None:
        found = evaluator(task, images)
        parts = {item.name: item.rows for item in found if item.rows is not None}
    else:
        parts = _judged_rows(task, judged)
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
        metrics=_metrics(task.select(standard), [images[place] for place in standard], further),
        field_gap={},
        rows=rows,
    )


def _metrics(
    task: Task, images: Sequence[Tensor], further: Sequence[Evaluator]
) -> dict[str, float]:
    """Returns the further metrics of the standard rows."""
    evaluators = [preservation if task.is_edit else shading, distribution]
    return {
        item.name: round(item.value, 5)
        for evaluator in (*evaluators, *further)
        for item in evaluator(task, images)
    }


def _scores(model: Judge | None) -> bool:
    """Returns whether the score goes by a judge."""
    return model is not None and model.config.is_score


def _judge_model(params: "Params", paths: "Paths", capability: str) -> Judge | None:
    """Returns the judge that the parameters name; questions of an earlier run are removed."""
    config = params.evaluate.judge
    if config is None:
        return None
    export = paths.judge_questions(capability)
    shutil.rmtree(export, ignore_errors=True)
    return Judge(config, Endpoint(config, paths.judge_answers), export)


def _judged_rows(task: Task, judged: Mapping[int, Judged]) -> dict[str, tuple[float, ...]]:
    """Returns a judge's scores as an evaluator would give them."""
    places = range(task.num_rows)
    rows = {SCORE: tuple(judged[place].score for place in places)}
    if task.is_edit:
        for kind in ("sc", "pq"):
            rows[kind] = tuple(judged[place].marks[kind] for place in places)
    return rows


def _judged_means(task: Task, judged: Mapping[int, Judged]) -> dict[str, float]:
    """Returns the means over categories of a judge's marks, as further metrics."""
    names = {mark for item in judged.values() for mark in item.marks} - {"right"}
    values = {SCORE: {place: item.score for place, item in judged.items()}}
    values |= {
        name: {place: item.marks[name] for place, item in judged.items()} for name in sorted(names)
    }
    return {
        JUDGE + name: round(
            mean_of_categories((task.rows[place].category, value) for place, value in rows.items()),
            5,
        )
        for name, rows in values.items()
    }


def _finite_images(
    task: Task,
    field: VelocityField,
    config: "EvaluateParams",
    name: str,
    on_batch: Callable[[int], object],
) -> Sequence[Tensor]:
    images = task.images(field, config.num_steps, config.batch_size, on_batch)
    if not all(bool(image.isfinite().all()) for image in images):
        raise WeightsError(f"{name}: its images of {task.capability} are not finite numbers")
    return images


def _start_field(params: "Params", teachers: Teachers) -> GuidedField:
    """Returns the student as it was before its first update, guided as the student is.

    A start that is a teacher, or an average of teachers on one base, is held as they are and takes
    no further network; any other one is a float32 network of its own.
    """
    shares, guidance = asked(params).start, params.evaluate.guidance
    if len(shares) == 1 or teachers.shares_base(shares):
        return teachers.average_field(shares, guidance)
    memory = _as_stored(params)
    backbone = memory.place(start_backbone(teachers, shares), waits=True)
    field = memory.field(teachers.family.field(backbone), backbone, waits=True)
    return teachers.family.guided(field, guidance)


def _as_stored(params: "Params") -> Memory:
    """Returns how networks of their own are held: bfloat16 would round off what was learned."""
    return replace(memory_of(params.run), dtype="float32")


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
