"""Who is asked what, and what they answer: student, start and teachers on one capability's rows."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from danceflow.capability import asked
from danceflow.data.sizes import shown, sizes_of
from danceflow.errors import DataError, WeightsError
from danceflow.evaluate.identity import SPLIT
from danceflow.evaluate.judge.endpoint import Endpoint
from danceflow.evaluate.judge.judge import Judge, Judged
from danceflow.evaluate.measurement import Evaluator
from danceflow.evaluate.metrics.field_gap import field_gap
from danceflow.evaluate.records import (
    HELD_OUT_VARIANTS,
    STANDARD,
    START,
    STUDENT,
    TEACHER,
    FieldResult,
)
from danceflow.evaluate.result import judged_means, once, result_of
from danceflow.evaluate.reuse import reused
from danceflow.evaluate.task import Row, Task, build_task
from danceflow.fields import GuidedField, VelocityField
from danceflow.models.family import ModelFamily
from danceflow.models.memory import DTYPES, exported_memory
from danceflow.models.package import FROZEN_FOLDER, Package
from danceflow.models.start import start_backbone
from danceflow.models.teachers import Teachers
from danceflow.ops import keys
from danceflow.ops.files import file_digests, sha256
from danceflow.ops.group import current
from danceflow.params.sections import RUN_KEYS
from danceflow.paths import MANIFEST
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.params.sections import EvaluateParams, Params
    from danceflow.paths import Paths

_GAP_ROWS = 24


def judge_of(params: "Params", paths: "Paths", capability: str) -> Judge | None:
    """Return the judge that the parameters name, None where they name none.

    Questions that an earlier run left are removed.
    """
    config = params.evaluate.judge
    if config is None:
        return None
    export = paths.judge_questions(capability)
    shutil.rmtree(export, ignore_errors=True)
    return Judge(config, Endpoint(config, paths.judge_answers), export)


def require_sizes(place: Path, student: Package, dataset: Any) -> None:
    """Check that a student makes images of every size of the data.

    Raises:
        WeightsError: it does not.
    """
    for size in dict.fromkeys(sizes_of(dataset, range(len(dataset)))):
        if size not in student.image_sizes:
            raise WeightsError(
                f"{place}: the student makes images of "
                f"{', '.join(map(shown, student.image_sizes))} pixels, the data has {shown(size)}; "
                "run the stage distill"
            )


def task_of(params: "Params", capability: str, dataset: Any, family: ModelFamily) -> Task:
    """Return the rows that are asked; at least one is a standard one.

    Raises:
        DataError: no test prompt can be read.
    """
    config = params.evaluate
    family.to(params.run.device, DTYPES[params.run.dtype])
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
    family.fixed_texts()
    family.release()  # what follows needs the networks and the decoder alone
    if not task.where(STANDARD):
        raise DataError(
            f"data.buckets.{params.capabilities[capability].bucket}: every test prompt has words "
            "that the text encoder does not know"
        )
    return task


def fields_of(
    params: "Params", capability: str, student: Package, teachers: Teachers
) -> dict[str, GuidedField]:
    """Return the fields that are asked, by name: the student, its start and every teacher."""
    guided = student.family.guided(student.field, params.evaluate.guidance)
    fields = {STUDENT: guided, START: start_field(params, teachers)}
    return fields | teacher_fields(params, capability, teachers)


def start_field(params: "Params", teachers: Teachers) -> GuidedField:
    """Return the student as it was before its first update, guided as the student is.

    A start that is a teacher, or an average of teachers on one base, is held as they are and takes
    no further network; any other one is a float32 network of its own.
    """
    shares, guidance = asked(params).start, params.evaluate.guidance
    if len(shares) == 1 or teachers.shares_base(shares):
        return teachers.average_field(shares, guidance)
    # Another dtype would round off what an average of networks is.
    memory = replace(exported_memory(params.run), dtype="float32")
    backbone = memory.place(start_backbone(teachers, shares), waits=True)
    field = memory.field(teachers.family.field(backbone), backbone, waits=True)
    return teachers.family.guided(field, guidance)


def teacher_fields(params: "Params", capability: str, teachers: Teachers) -> dict[str, GuidedField]:
    """Return the teachers that capabilities use, each with the guidance it is used with.

    A teacher of several capabilities has the guidance of ``capability`` if it is one of them.
    """
    guidance: dict[str, float] = {}
    for config in (params.capabilities[capability], *params.capabilities.values()):
        guidance.setdefault(config.teacher, config.guidance)
    used = dict.fromkeys(config.teacher for config in params.capabilities.values())
    return {TEACHER + name: teachers.field(name, guidance[name]) for name in used}


@dataclass(frozen=True)
class Survey:
    """What the fields of an evaluation are asked.

    Attributes:
        task: every row.
        fields: by name.
        own: name of the capability's own teacher.
        places: rows of the task that each field is asked.
        gap_task: rows that the field gap is measured on.
        config: the section ``evaluate``.
        metrics: evaluators beside what the world measures.
        num_steps: that all fields are asked in; None: each in its own.
    """

    task: Task
    fields: Mapping[str, GuidedField]
    own: str
    places: Mapping[str, Sequence[int]]
    gap_task: Task
    config: "EvaluateParams"
    metrics: Sequence[Evaluator]
    num_steps: int | None = None

    @property
    def num_images(self) -> int:
        """How many answers all fields give, those in further numbers of steps included."""
        further = sum(len(self.further_steps(name)) for name in (STUDENT, self.own))
        of_each = len(once(self.task, STANDARD))
        return sum(len(rows) for rows in self.places.values()) + further * of_each

    def own_steps(self, name: str) -> int:
        """Return the number of steps that a field answers in."""
        return _own_steps(self.config, self.task.capability, name)

    def further_steps(self, name: str) -> list[int]:
        """Return the other numbers of steps that student or own teacher is asked in, most first."""
        return sorted({*self.config.further_steps} - {self.own_steps(name)}, reverse=True)

    def in_steps(self, num_steps: int) -> "Survey":
        """Return what student and own teacher are asked in a further number of steps.

        These are the standard rows with the first noise seed.
        """
        fields = {name: self.fields[name] for name in (STUDENT, self.own)}
        same = {"num_steps": num_steps, "num_teacher_steps": num_steps}
        return replace(
            self,
            fields=fields,
            places=dict.fromkeys(fields, once(self.task, STANDARD)),
            config=self.config.model_copy(update=same),
            num_steps=num_steps,
        )

    def part(self, name: str) -> Task:
        """Return what a field is asked."""
        return self.task.select(self.places[name])

    def images(self, name: str, on_batch: Callable[[int], object]) -> Sequence[Tensor]:
        """Return a field's answers, all of them finite.

        Other processes, which ``help_with``, are told to give their share.
        """
        current().told((name, self.num_steps))
        return self.share_of(name, on_batch)

    def share_of(self, name: str, on_batch: Callable[[int], object] = int) -> Sequence[Tensor]:
        """Return a field's answers on the main process; every process gives its share of them."""
        return finite_images(self.part(name), self.fields[name], self.config, name, on_batch)

    def result(
        self,
        name: str,
        images: Sequence[Tensor],
        judged: Mapping[Row, Judged] | None = None,
        further: Mapping[str, float] | None = None,
    ) -> FieldResult:
        """Return the scores of a field's answers.

        Args:
            name: of the field.
            images: its answers.
            judged: a judge's marks that take the place of the data's scores.
            further: metrics that were measured elsewhere.
        """
        found = result_of(self.part(name), images, self.metrics, judged)
        gap = {}
        if name in (STUDENT, START):
            field, own = self.fields[name], self.fields[self.own]
            gap = field_gap(field, own, self.gap_task, self.config.steps(self.task.capability))
        metrics = {**found.metrics, **(further or {})}
        return found.model_copy(update={"metrics": metrics, "field_gap": gap})

    def without(
        self, left_out: Collection[Row], images: Mapping[str, Sequence[Tensor]]
    ) -> "tuple[Survey, dict[str, Sequence[Tensor]]]":
        """Return the same without some rows, and the answers to the others."""
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


def survey_of(
    params: "Params",
    task: Task,
    fields: Mapping[str, GuidedField],
    metrics: Sequence[Evaluator],
) -> Survey:
    """Return what each field is asked.

    The student and the capability's own teacher, whom the gate compares, are asked the standard
    rows with every noise seed, and the others with the first one. The others are asked the
    standard rows with the first seed: more noise would cost most where it decides nothing.
    """
    own = TEACHER + params.capabilities[task.capability].teacher
    every = sorted({*task.where(STANDARD), *once(task)})
    places = {name: every if name in (STUDENT, own) else once(task, STANDARD) for name in fields}
    gap_task = task.select(task.first_of_each(STANDARD, _GAP_ROWS))
    return Survey(task, fields, own, places, gap_task, params.evaluate, metrics)


def help_with(survey: Survey) -> None:
    """Give a process's share of the answers that the main one asks for, until it has all."""
    while (asked_for := current().told(None)) is not None:
        name, num_steps = asked_for
        (survey if num_steps is None else survey.in_steps(num_steps)).share_of(name)


def ask(
    survey: Survey,
    params: "Params",
    paths: "Paths",
    student: Mapping[str, Any],
    bar: "tqdm[Any]",
) -> tuple[dict[str, Sequence[Tensor]], dict[str, FieldResult]]:
    """Return the images and score of every field; those that were found before are taken up."""
    images: dict[str, Sequence[Tensor]] = {}
    results: dict[str, FieldResult] = {}
    inputs = inputs_of(params, paths, survey.task.capability, student)

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


def ask_and_judge(
    survey: Survey, judge: Judge, bar: "tqdm[Any]"
) -> tuple[Survey, dict[str, Sequence[Tensor]], dict[str, FieldResult]]:
    """Return what was asked, images and score, all without the rows that cannot be judged.

    A judge that does not give the score is asked about the student, its start and the own teacher
    alone, and only its own means lack those rows.
    """
    images: dict[str, Sequence[Tensor]] = {}
    marks: dict[str, dict[Row, Judged]] = {}
    for name in survey.fields:
        images[name] = survey.images(name, bar.update)
        if judge.config.is_score or name in (STUDENT, START, survey.own):
            marks[name] = judge.score(name, survey.part(name), images[name])
    judge.require_all(survey.task)
    if judge.config.is_score:
        survey, images = survey.without(judge.left_out, images)
        results = {name: survey.result(name, images[name], marks[name]) for name in survey.fields}
        return survey, images, results
    common = set.intersection(*(set(found) for found in marks.values()))
    means = {
        name: judged_means({row: item for row, item in found.items() if row in common})
        for name, found in marks.items()
    }
    results = {
        name: survey.result(name, images[name], further=means.get(name)) for name in survey.fields
    }
    return survey, images, results


def finite_images(
    task: Task,
    field: VelocityField,
    config: "EvaluateParams",
    name: str,
    on_batch: Callable[[int], object] = int,
) -> Sequence[Tensor]:
    """Return a field's answers to a task.

    Raises:
        WeightsError: they are not finite.
    """
    steps = _own_steps(config, task.capability, name)
    images = task.images(field, steps, config.batch_size, on_batch)
    if not all(bool(image.isfinite().all()) for image in images):
        raise WeightsError(f"{name}: its images of {task.capability} are not finite numbers")
    return images


def _own_steps(config: "EvaluateParams", capability: str, name: str) -> int:
    of_teacher = name.startswith(TEACHER)
    return (config.teacher_steps if of_teacher else config.steps)(capability)


def inputs_of(
    params: "Params", paths: "Paths", capability: str, student: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything but the field itself, and the code, that decides what a field answers."""
    config = params.capabilities[capability]
    return {
        "rows": file_digests(paths.bucket(config.bucket) / SPLIT),
        "teachers": sha256(paths.teachers / MANIFEST),
        # The student's own frozen parts read the prompts.
        "frozen": {k: v for k, v in student["files"].items() if k.startswith(FROZEN_FOLDER)},
        "base": student.get("base", {}).get("frozen"),
        "shift": student.get("shift"),  # of the grid, on which all fields answer
        "params": params.select((*RUN_KEYS, "family", "data.world")),
        "evaluate": {
            **params.evaluate.model_dump(
                mode="json", exclude={"guidance", "num_bootstrap", "further_steps"}
            ),
            "num_steps": params.evaluate.steps(capability),
        },
        "capability": [capability, config.teacher, config.guidance],
    }
