"""The student and its own teacher asked in further numbers of steps, and what they score there."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from danceflow.evaluate import score as marks
from danceflow.evaluate.asked import Survey, inputs_of
from danceflow.evaluate.by_steps import BySteps, FieldBySteps
from danceflow.evaluate.records import STANDARD, STUDENT, FieldResult
from danceflow.evaluate.result import once
from danceflow.evaluate.reuse import reused_scores
from danceflow.ops import keys
from danceflow.worlds.marks import SCORE

if TYPE_CHECKING:
    from tqdm import tqdm

    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_DIGITS = 4  # as of every answer's score


def score_by_steps(
    survey: Survey,
    params: "Params",
    paths: "Paths",
    student: Mapping[str, Any],
    results: Mapping[str, FieldResult],
    bar: "tqdm[Any]",
) -> BySteps:
    """Return what the student and its own teacher score by the number of steps.

    A field's own number is not asked again: its scores are those of the evaluation with the first
    seed. Scores that were found before, of the same student or teacher, are taken up.

    Args:
        survey: of the evaluation.
        params: all sections.
        paths: the checkout.
        student: manifest of the student.
        results: of the evaluation, by field.
        bar: counts answers.
    """
    rows = [survey.task.rows[place] for place in once(survey.task, STANDARD)]
    inputs = inputs_of(params, paths, survey.task.capability, student)

    def of_field(name: str) -> FieldBySteps:
        own, field = survey.own_steps(name), survey.fields[name]
        seed = rows[0].seed
        answers = results[name].rows
        scores = {own: tuple(a.score for a in answers if (a.variant, a.seed) == (STANDARD, seed))}
        for num_steps in survey.further_steps(name):
            decides = {**inputs, "evaluate": _decides(survey, num_steps)}
            if name == STUDENT:
                decides["student"] = [student["files"], student.get("base")]
            key = keys.answered({**decides, "by_steps": [name, field.scale]})
            before = bar.n
            asked = partial(_scores, survey.in_steps(num_steps), name, bar)
            scores[num_steps] = reused_scores(key.folder(paths), asked)
            bar.update(before + len(rows) - bar.n)
        return FieldBySteps(
            own_steps=own,
            passes_per_step=field.cost,
            scores={number: scores[number] for number in sorted(scores, reverse=True)},
        )

    return BySteps(
        capability=survey.task.capability,
        seed=rows[0].seed,
        rows=tuple((row.category, row.uid) for row in rows),
        student=of_field(STUDENT),
        teacher=of_field(survey.own),
    )


def _scores(survey: Survey, name: str, bar: "tqdm[Any]") -> tuple[float, ...]:
    """Return the score of every answer of a field, as its world gives it, and no other metric."""
    images = survey.images(name, bar.update)
    found = {item.name: item.rows for item in marks.score(survey.part(name), images)}[SCORE]
    return tuple(round(score, _DIGITS) for score in found or ())


def _decides(survey: Survey, num_steps: int) -> dict[str, Any]:
    """Return what the section ``evaluate`` says of answers in a number of steps."""
    config = survey.config.model_dump(mode="json", include={"num_samples", "batch_size"})
    return {**config, "seed": survey.config.seeds[0], "num_steps": num_steps}
