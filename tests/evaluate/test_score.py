"""Exact answers have full marks and unchanged sources none, as measurements."""

from dataclasses import replace

import pytest

from danceflow.evaluate import score as marks
from danceflow.evaluate.quick import QuickBatch
from danceflow.evaluate.result import result_of
from danceflow.evaluate.task import Task
from danceflow.scenes.render import render


def measured(task: Task, images):
    return {item.name: item for item in marks.score(task, images)}, marks.best_score(task)


@pytest.mark.parametrize(("name", "best"), [("t2i", 1), ("local_edit", 10), ("global_edit", 10)])
def test_exact_answers_have_full_marks(tasks, name: str, best: float) -> None:
    found, scale = measured(tasks[name], tasks[name].target)
    assert scale == best
    assert found["score"].value == pytest.approx(best, abs=0.05)  # of 8-bit pixels
    assert found["score"].rows is not None
    assert len(found["score"].rows) == tasks[name].num_rows
    assert set(found) == ({"score"} if name == "t2i" else {"score", "sc", "pq"})


@pytest.mark.parametrize("name", ["local_edit", "global_edit"])
def test_unchanged_sources_have_none(tasks, name: str) -> None:
    found, _ = measured(tasks[name], tasks[name].source)
    assert found["score"].value == 0.0
    assert found["sc"].value == 0.0


@pytest.mark.parametrize("name", ["t2i", "local_edit", "global_edit"])
def test_another_prompts_answer_is_worse(tasks, name: str) -> None:
    found, scale = measured(tasks[name], tasks[name].target.roll(1, 0))
    assert found["score"].value < 0.5 * scale


def test_shading_is_measured_where_it_is_asked_for(tasks) -> None:
    flat = tasks["t2i"]
    scenes = [item.facts.target for item in flat.samples]
    lit = render(scenes, rendering="shaded")
    asked = replace(
        flat,
        samples=tuple(
            replace(item, facts=replace(item.facts, rendering="shaded")) for item in flat.samples
        ),
        parts=(replace(flat.only, target=lit),),
    )
    assert list(marks.further(flat, lit)) == []
    (found,) = marks.further(asked, lit)
    assert found.value == pytest.approx(1.0, abs=1e-3)
    assert next(iter(marks.further(asked, render(scenes)))).value == 0.0
    assert measured(asked, lit)[0]["score"].value == 1.0
    assert measured(asked, render(scenes))[0]["score"].value == 1.0
    assert result_of(asked, lit).metrics["realism"] == pytest.approx(1.0, abs=1e-3)
    assert "realism" not in result_of(flat, lit).metrics
    assert QuickBatch(asked).score(lit)["realism"] == pytest.approx(1.0, abs=1e-3)
    assert "realism" not in QuickBatch(flat).score(render(scenes))
