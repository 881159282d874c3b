"""Stage ``evaluate``: student, start student and every teacher on one capability's test rows."""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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
    Row,
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
from danceflow.evaluate.reuse import folder_digests, reused
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
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory, sha256
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
    survey = _Survey(task, fields, own, places, gap_task, config, metrics)
    total = sum(len(rows) for rows in places.values())
    with tqdm(total=total, desc=f"evaluate {capability}", unit="image", mininterval=2) as bar:
        if model is None:
            images, results = _answers(survey, params, paths, student.meta, bar)
        else:
            survey, images, results = _judged_answers(survey, model, bar)
    answers = {
        name: Answers(survey.places[name], images[name], [row.score for row in results[name].rows])
        for name in fields
    }
    with atomic_directory(paths.evaluation_images(capability)) as folder:
        draw_gallery(folder, survey.task, own, answers)
    evaluation = Evaluation(
        capability=capability,
        scale=main_evaluator(task)[1],
        teacher=own,
        num_steps=config.num_steps,
        extractor=EXTRACTOR,
        training=_training(student.meta),
        seconds=round(time.monotonic() - started, 1),
        notes=(*notes, *([] if model is None else [model.note()])),
        left_out=() if model is None else model.rows_left_out(),
        fields=results,
    )
    write_evaluation(paths.evaluation(capability), evaluation)
    _LOG.info("%s: %s", capability, _line(results))


@dataclass(frozen=True)
class _Survey:
    """What the fields of an evaluation are asked.

    Attributes:
        task: every row.
        fields: by name.
        own: name of the capability's own teacher.
        places: rows of the task that each field is asked.
        gap_task: rows that the field gap is measured on.
        config: the section ``evaluate``.
        metrics: evaluators beside the usual ones.
    """

    task: Task
    fields: Mapping[str, GuidedField]
    own: str
    places: Mapping[str, Sequence[int]]
    gap_task: Task
    config: "EvaluateParams"
    metrics: Sequence[Evaluator]

    def part(self, name: str) -> Task:
        """Returns what a field is asked."""
        return self.task.select(self.places[name])

    def images(self, name: str, on_batch: Callable[[int], object]) -> Sequence[Tensor]:
        """Returns a field's answers, all of them finite."""
        return _finite_images(self.part(name), self.fields[name], self.config, name, on_batch)

    def result(
        self,
        name: str,
        images: Sequence[Tensor],
        judged: Mapping[Row, Judged] | None = None,
        further: Mapping[str, float] | None = None,
    ) -> FieldResult:
        """Returns the scores of a field's answers.

        Args:
            name: of the field.
            images: its answers.
            judged: a judge's marks that take the place of the data's scores.
            further: metrics that were measured elsewhere.
        """
        found = judge(self.part(name), images, self.metrics, judged)
        gap = {}
        if name in (STUDENT, START):
            field, own = self.fields[name], self.fields[self.own]
            gap = field_gap(field, own, self.gap_task, self.config.num_steps)
        metrics = {**found.metrics, **(further or {})}
        return found.model_copy(update={"metrics": metrics, "field_gap": gap})

    def without(
        self, left_out: Collection[Row], images: Mapping[str, Sequence[Tensor]]
    ) -> "tuple[_Survey, dict[str, Sequence[Tensor]]]":
        """Returns the same without some rows, and the answers to the others."""
        kept = [place for place, row in enumerate(self.task.rows) if row not in left_out]
        moved = {place: number for number, place in enumerate(kept)}
        rest: dict[str, Sequence[Tensor]] = {
            name: [
                image
                for place, image in zip(self.places[name], found, strict=True)
                if place in moved
            ]
            for name, found in images.items()
        }
        places = {
            name: [moved[place] for place in found if place in moved]
            for name, found in self.places.items()
        }
        return replace(self, task=self.task.select(kept), places=places), rest


def _answers(
    survey: _Survey,
    params: "Params",
    paths: "Paths",
    student: Mapping[str, Any],
    bar: "tqdm[Any]",
) -> tuple[dict[str, Sequence[Tensor]], dict[str, FieldResult]]:
    """Returns the images and scores of every field; those that were found before are taken up."""
    images: dict[str, Sequence[Tensor]] = {}
    results: dict[str, FieldResult] = {}
    inputs = _inputs(params, paths, survey.task.capability, student)

    def answer(name: str) -> tuple[FieldResult, Sequence[Tensor]]:
        found = survey.images(name, bar.update)
        return survey.result(name, found), found

    for name, field in survey.fields.items():
        before = bar.n
        if name == STUDENT:
            results[name], images[name] = answer(name)
        else:
            start = {"start": asked(params).start} if name == START else {}
            key = keys.answered({**inputs, **start, "field": [name, field.scale]})
            results[name], images[name] = reused(key.folder(paths), partial(answer, name))
        bar.update(before + len(images[name]) - bar.n)
    return images, results


def _judged_answers(
    survey: _Survey, model: Judge, bar: "tqdm[Any]"
) -> tuple[_Survey, dict[str, Sequence[Tensor]], dict[str, FieldResult]]:
    """Returns what was asked, images and scores, all without the rows that cannot be judged.

    A judge that does not give the score is asked about the student, its start and the own teacher
    alone, and only its own means lack those rows.
    """
    images: dict[str, Sequence[Tensor]] = {}
    marks: dict[str, dict[Row, Judged]] = {}
    for name in survey.fields:
        images[name] = survey.images(name, bar.update)
        if model.config.is_score or name in (STUDENT, START, survey.own):
            marks[name] = model.score(name, survey.part(name), images[name])
    model.require_all(survey.task)
    if model.config.is_score:
        survey, images = survey.without(model.left_out, images)
        results = {name: survey.result(name, images[name], marks[name]) for name in survey.fields}
        return survey, images, results
    common = set.intersection(*(set(found) for found in marks.values()))
    means = {
        name: _judged_means({row: item for row, item in found.items() if row in common})
        for name, found in marks.items()
    }
    results = {
        name: survey.result(name, images[name], further=means.get(name)) for name in survey.fields
    }
    return survey, images, results


def judge(
    task: Task,
    images: Sequence[Tensor],
    further: Sequence[Evaluator] = (),
    judged: Mapping[Row, Judged] | None = None,
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


def _judge_model(params: "Params", paths: "Paths", capability: str) -> Judge | None:
    """Returns the judge that the parameters name; questions of an earlier run are removed."""
    config = params.evaluate.judge
    if config is None:
        return None
    export = paths.judge_questions(capability)
    shutil.rmtree(export, ignore_errors=True)
    return Judge(config, Endpoint(config, paths.judge_answers), export)


def _judged_rows(task: Task, judged: Mapping[Row, Judged]) -> dict[str, tuple[float, ...]]:
    """Returns a judge's scores as an evaluator would give them."""
    rows = {SCORE: tuple(judged[row].score for row in task.rows)}
    if task.is_edit:
        for kind in ("sc", "pq"):
            rows[kind] = tuple(judged[row].marks[kind] for row in task.rows)
    return rows


def _judged_means(judged: Mapping[Row, Judged]) -> dict[str, float]:
    """Returns the means over categories of a judge's marks, as further metrics."""
    names = {mark for item in judged.values() for mark in item.marks} - {"right"}
    values = {SCORE: {row: item.score for row, item in judged.items()}} if judged else {}
    values |= {
        name: {row: item.marks[name] for row, item in judged.items()} for name in sorted(names)
    }
    return {
        JUDGE + name: round(
            mean_of_categories((row.category, value) for row, value in marks.items()), 5
        )
        for name, marks in values.items()
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
    """Returns everything but the field itself, and the code, that decides what a field answers."""
    config = params.capabilities[capability]
    return {
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
