"""Which evaluator gives the score that retention is about: the data decides."""

from danceflow.evaluate.evaluator import Evaluator, Task
from danceflow.evaluate.plain import read_digits, target_edit, target_likeness
from danceflow.evaluate.scenes import GENEVAL_SCALE, VIESCORE_SCALE, gen_eval, vie_score


def main_evaluator(task: Task) -> tuple[Evaluator, float]:
    """Returns the evaluator that gives a task's ``score``, and the best possible score."""
    if task.are_scenes:
        if not task.is_edit:
            return gen_eval, GENEVAL_SCALE
        return vie_score, VIESCORE_SCALE
    if task.is_edit:
        return target_edit, VIESCORE_SCALE
    known = all(item.facts.get("kind") == "digit" for item in task.plain)
    return (read_digits if known else target_likeness), GENEVAL_SCALE
