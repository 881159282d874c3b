"""Further numbers of steps: scores as an evaluation in that number has them, asked for once."""

import shutil
from pathlib import Path

import pytest
from tiny_project import small_data
from training_record import CAPABILITIES

from danceflow.errors import DataError
from danceflow.evaluate import asked as asking
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.by_steps import read_by_steps
from danceflow.evaluate.records import STANDARD, read_evaluation
from danceflow.params.read import parse_params
from danceflow.paths import Paths

NAME = "local_edit"


@pytest.fixture
def copy(reported, tmp_path: Path) -> Paths:
    """A copy of the project, which was evaluated in 2 steps, and further in 4 and 1."""
    shutil.copytree(reported[1].root, tmp_path / "copy")
    return Paths(tmp_path / "copy")


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, int, int]]:
    """Who is asked how many rows in how many steps."""
    found: list[tuple[str, int, int]] = []
    images = asking.finite_images

    def noted(task, field, config, name, on_batch):
        steps = config.teacher_steps if name.startswith("teacher") else config.steps
        found.append((name, task.num_rows, steps(task.capability)))
        return images(task, field, config, name, on_batch)

    monkeypatch.setattr(asking, "finite_images", noted)
    return found


def run(paths: Paths, **changes) -> None:
    evaluate.run(parse_params(small_data(CAPABILITIES, **changes), "test"), paths, NAME)


def test_scores_are_those_of_an_evaluation_in_that_number_of_steps(reported, copy) -> None:
    found = read_by_steps(copy.evaluation_by_steps(NAME), NAME)
    assert list(found.student.scores) == list(found.teacher.scores) == [4, 2, 1]
    for number in (4, 2, 1):
        run(copy, evaluate__num_steps=number, evaluate__seeds=[0, 3])
        evaluation = read_evaluation(copy.evaluation(NAME), NAME)
        for name, field in (("student", found.student), (evaluation.teacher, found.teacher)):
            rows = [
                row
                for row in evaluation.fields[name].rows
                if (row.variant, row.seed) == (STANDARD, 0)
            ]
            assert [(row.category, row.uid) for row in rows] == list(found.rows)
            assert tuple(row.score for row in rows) == field.scores[number]
        alone = read_by_steps(copy.evaluation_by_steps(NAME), NAME)
        assert alone.student.scores == {number: found.student.scores[number]}


def test_what_was_asked_before_is_not_asked_again(copy, asked) -> None:
    further = {"evaluate__further_steps": [4, 1, 2, 4]}
    run(copy, **further)
    assert asked == [("student", 16, 2)]  # in its own number of steps, as ever
    before = copy.evaluation_by_steps(NAME).read_bytes()
    asked.clear()
    run(copy, **further)
    assert asked == [("student", 16, 2)]
    assert copy.evaluation_by_steps(NAME).read_bytes() == before
    asked.clear()
    run(copy, evaluate__further_steps=[3, 4], evaluate__num_bootstrap=30)
    assert asked[1:] == [("student", 8, 3), ("teacher:local", 8, 3)]
    asked.clear()
    run(copy, evaluate__further_steps=[4, 2], evaluate__num_teacher_steps=4)
    found = read_by_steps(copy.evaluation_by_steps(NAME), NAME)
    assert (found.student.own_steps, found.teacher.own_steps) == (2, 4)
    assert asked[-1] == ("teacher:local", 8, 2)
    asked.clear()
    run(copy, **further, evaluate__guidance=2.0)
    assert [x for x in asked if x[1] == 8 and x[0] != "start"] == [
        ("student", 8, 4),
        ("student", 8, 1),
    ]
    assert read_by_steps(copy.evaluation_by_steps(NAME), NAME).student.passes_per_step == 2


def test_damaged_scores_are_told(copy) -> None:
    path = copy.evaluation_by_steps(NAME)
    text = path.read_text()
    for damage, message in (
        ("{", "the file: Invalid JSON"),
        (text.replace(NAME, "t2i"), "is about 't2i', not 'local_edit'"),
        (text.replace('"own_steps":2', '"own_steps":7'), "student: there is no score in 7 steps"),
        (text.replace('"scores":{"4":[', '"scores":{"4":[0.5,'), "one score for every row"),
    ):
        path.write_text(damage)
        with pytest.raises(DataError, match=message) as caught:
            read_by_steps(path, NAME)
        assert str(caught.value).endswith("run the stage: dvc repro evaluate@local_edit")
    path.unlink()
    with pytest.raises(DataError, match="by-steps.json: cannot be read"):
        read_by_steps(path, NAME)
    for file in copy.work("any").parent.glob("evaluation-*/scores.json"):
        file.write_text("[")
    with pytest.raises(DataError, match="evaluation-.*is damaged .*; delete it to start over"):
        run(copy, evaluate__further_steps=[4])
