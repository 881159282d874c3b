"""CLIPScore is about prompt and picture."""

from pathlib import Path

from danceflow.evaluate.metrics.clip import ClipScore


def test_clip_score_is_about_prompt_and_picture(tasks, clip: Path) -> None:
    task, score = tasks["t2i"].select([0, 1, 2, 3]), ClipScore(clip)
    (found,) = score(task, task.target)
    assert found.name == "clip_score"
    assert len(found.rows) == 4
    assert all(0 <= value <= 100 for value in found.rows)
    (other,) = score(task, 1 - task.target)
    assert other.rows != found.rows
