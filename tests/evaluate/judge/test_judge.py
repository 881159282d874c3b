"""A judge over HTTP: a real local server, with its moods, costs, kept answers and offline mode."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judge_server import Server, completion, settings, usual
from repository import ROOT

from danceflow.columns import COLUMN_PRESETS
from danceflow.data.intake.reader import words_of
from danceflow.errors import ConfigError, JudgeError, UsageError
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.judge.endpoint import Endpoint, Unusable
from danceflow.evaluate.judge.judge import QUESTIONS, Judge
from danceflow.evaluate.judge.questions import (
    Question,
    mark_of,
    overall,
    questions_about,
    read_answer,
)
from danceflow.evaluate.records import read_evaluation
from danceflow.params.read import load_params, parse_params
from danceflow.params.sections import JudgeParams
from danceflow.paths import Paths

QUESTION = Question("right", "Is it there?", (b"png",))


def endpoint(server: Server, folder: Path, **changes) -> tuple[Endpoint, list[float]]:
    waits: list[float] = []
    return Endpoint(settings(server.url, **changes), folder, waits.append), waits


def ask(found: Endpoint) -> float | Unusable:
    with found.client() as client:
        return found.ask(QUESTION, client)


def test_a_question_is_asked_once_and_its_cost_is_counted(server: Server, tmp_path: Path) -> None:
    found, waits = endpoint(server, tmp_path)
    assert [ask(found), ask(found)] == [1, 1]
    assert len(server.requests) == 1
    assert waits == []
    usage = found.usage
    assert (usage.num_requests, usage.num_kept, usage.tokens_in, usage.tokens_out) == (
        1,
        1,
        1000,
        20,
    )
    assert usage.cost(2.0, 10.0) == pytest.approx(0.0022)
    content = server.requests[0]["messages"][0]["content"]
    assert content[0] == {"type": "text", "text": "Is it there?"}
    assert content[1]["image_url"]["url"] == "data:image/png;base64,cG5n"
    other, _ = endpoint(server, tmp_path, model="eyes-2")
    ask(other)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "content", "header"),
    [
        (429, "slow down", {"Retry-After": "7"}),
        (503, "busy", {}),
        (200, completion("I cannot say"), {}),
        (200, completion('{"right": "perhaps"}'), {}),
        (200, {"choices": []}, {}),
        (200, "no json", {}),
    ],
)
def test_what_passes_is_tried_again(
    server: Server, tmp_path: Path, status: int, content, header: dict
) -> None:
    server.answer = lambda body, n: (status, content, header) if n < 3 else usual(body, n)
    found, waits = endpoint(server, tmp_path)
    assert ask(found) == 1
    assert len(server.requests) == 3
    assert waits == [7, 7] if header else waits[0] < waits[1] * 2


def test_what_does_not_pass_is_told(server: Server, tmp_path: Path) -> None:
    server.answer = lambda body, n: (503, "busy", {})
    found, _ = endpoint(server, tmp_path)
    with pytest.raises(JudgeError, match=r"answers 503: busy \(tried 3 times\)"):
        ask(found)
    assert not list(tmp_path.iterdir())
    server.answer = lambda body, n: (401, "no such key", {})
    with pytest.raises(JudgeError, match="answers 401: no such key"):
        ask(found)
    assert len(server.requests) == 4
    gone = Endpoint(settings("http://127.0.0.1:1/v1"), tmp_path, lambda _: None)
    with pytest.raises(JudgeError, match="cannot be reached"):
        ask(gone)


def test_a_slow_answer_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    release = threading.Event()

    def slow(body: dict, number: int):
        release.wait(10)
        return usual(body, number)

    server.answer = slow
    found, _ = endpoint(server, tmp_path, timeout_s=0.2, num_retries=0)
    with pytest.raises(JudgeError, match="cannot be reached"):
        ask(found)
    release.set()


def test_the_key_comes_from_the_environment(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("EYES_KEY", raising=False)
    with pytest.raises(UsageError, match="EYES_KEY is not set"):
        endpoint(server, tmp_path, key_variable="EYES_KEY")
    monkeypatch.setenv("EYES_KEY", "secret")
    found, _ = endpoint(server, tmp_path, key_variable="EYES_KEY")
    ask(found)
    assert server.keys == ["Bearer secret"]
    assert "secret" not in next(tmp_path.iterdir()).read_text()


def test_a_damaged_answer_is_told(server: Server, tmp_path: Path) -> None:
    found, _ = endpoint(server, tmp_path)
    ask(found)
    path = next(tmp_path.iterdir())
    path.write_text(path.read_text()[:-20])
    with pytest.raises(JudgeError, match="this kept answer is damaged"):
        ask(found)


@pytest.mark.parametrize(
    ("kind", "text", "mark"),
    [
        ("right", '{"right": false}', 0.0),
        ("right", 'Well.\n```json\n{"right": true}\n```', 1.0),
        ("sc", '{"marks": [9, 3]}', 3.0),
        ("pq", '{"marks": [7.5, 10], "reason": "fine"}', 7.5),
        ("sc", '{"marks": [9]}', None),
        ("sc", '{"marks": [9, 11]}', None),
        ("sc", '{"marks": [9, true]}', None),
        ("sc", "{nine}", None),
        ("right", "yes", None),
    ],
)
def test_answers(kind: str, text: str, mark: float | None) -> None:
    if mark is None:
        with pytest.raises(ValueError):
            read_answer(kind, text)
    else:
        assert mark_of(read_answer(kind, text)) == mark


def test_questions_follow_the_categories() -> None:
    (made,) = questions_about("two cats", "counting", (), b"x")
    assert made.kind == "right"
    assert '"two cats"' in made.text
    assert "number must be exact" in made.text
    sc, pq = questions_about("remove the cat", "subject_remove", [b"s"], b"x")
    assert (sc.kind, sc.pictures, pq.kind, pq.pictures) == ("sc", (b"s", b"x"), "pq", (b"x",))
    assert "filled in credibly" in sc.text
    assert "cat" not in pq.text
    assert overall({"sc": 4.0, "pq": 9.0}) == 6
    assert overall({"right": 1.0}) == 1


def test_a_question_shows_every_picture_of_an_edit() -> None:
    sc, pq = questions_about("put it on", "swap", [b"1", b"2", b"3"], b"x")
    assert (sc.pictures, pq.pictures) == ((b"1", b"2", b"3", b"x"), (b"x",))
    assert "You are shown 3 pictures and, as the last one" in sc.text
    assert "The first picture was to be changed" in sc.text
    assert "new one stand in its place" in sc.text
    # What was asked of one picture is asked as before: kept answers stay known.
    assert questions_about("put it on", "swap", [b"1"], b"x")[0].text.startswith(
        "You are shown a picture and its edited version."
    )


def test_a_judge_sees_the_pictures_that_a_row_has(tasks, server: Server, tmp_path: Path) -> None:
    task = tasks["local_edit"].select([0, 1])
    another = task.only.target[0]
    further = torch.stack([another, torch.full_like(another, torch.nan)])
    task = replace(task, parts=(replace(task.only, further=(further,)),))
    assert [len(pictures) for pictures in task.pictures] == [2, 1]
    assert torch.equal(task.pictures[0][1], another)
    found, _ = endpoint(server, tmp_path, num_samples=2)
    Judge(found.config, found, tmp_path).score("student", task, task.target)
    counts = [
        sum(part["type"] == "image_url" for part in request["messages"][0]["content"])
        for request in server.requests
    ]
    assert sorted(counts) == [1, 1, 2, 3]


EDITS = {
    "subject_add": "must be there, once",
    "subject_remove": "filled in credibly",
    "subject_replace": "new one stand in its place",
    "color_alter": "Only the colour",
    "material_alter": "Only the material",
    "motion_change": "move or pose as told",
    "ps_human": "the same person",
    "text_change": "read exactly as told",
    "background_change": "The background must change",
    "style_change": "The style of the whole picture",
    "tone_transfer": "Light, weather, season or tone",
    "attribute_modification": "Only the named attribute",
}
"""What the hint of each of GEditBench's eleven categories says, and of OmniEdit's own."""
OMNIEDIT = {
    "addition": "subject_add",
    "removal": "subject_remove",
    "swap": "subject_replace",
    "object_swap": "subject_replace",
    "attribute_modification": "attribute_modification",
    "background": "background_change",
    "background_swap": "background_change",
    "style": "style_change",
    "env": "tone_transfer",
    "environment": "tone_transfer",
}


def edit_question(category: str) -> str:
    return questions_about("do it", category, [b"s"], b"x")[0].text


def test_every_category_of_the_benchmark_has_a_hint_of_its_own() -> None:
    for category, words in EDITS.items():
        assert [name for name in EDITS if words in edit_question(name)] == [category]


@pytest.mark.parametrize("task", OMNIEDIT)
def test_omniedits_tasks_have_the_hint_of_their_kind(task: str) -> None:
    assert edit_question(task) == edit_question(OMNIEDIT[task])


def test_the_recipes_on_omniedit_have_a_hint_for_every_task() -> None:
    recipes = ROOT / "recipes"
    inputs = [load_params(path).data.input for path in sorted(recipes.glob("*.yaml"))]
    found = [item for item in inputs if item and item.columns == COLUMN_PRESETS["omniedit"]]
    assert len(found) == 3
    phrases = {phrase for item in found for part in item.tasks.values() for phrase in part}
    assert {"_".join(words_of(phrase)) for phrase in phrases} == OMNIEDIT.keys()


def judged_params(params, judge: JudgeParams):
    section = params.evaluate.model_copy(update={"judge": judge})
    return params.model_copy(update={"evaluate": section})


def test_a_judge_beside_the_score(prepared, server: Server, tmp_path: Path) -> None:
    import shutil

    params, paths = prepared
    shutil.copytree(paths.root, tmp_path / "copy")
    copy = Paths(tmp_path / "copy")
    evaluate.run(judged_params(params, settings(server.url)), copy, "local_edit")
    found = read_evaluation(copy.evaluation("local_edit"), "local_edit")
    for name in ("student", "start", "teacher:local"):
        metrics = found.fields[name].metrics
        assert metrics["judge_sc"] == 4
        assert metrics["judge_pq"] == 8
        assert metrics["judge_score"] == pytest.approx(32**0.5, abs=1e-4)
        assert found.fields[name].score != metrics["judge_score"]
    assert "judge_score" not in found.fields["teacher:base"].metrics
    assert len(server.requests) <= 3 * 4 * 2  # fields, categories, questions
    assert any(note.startswith("Judge eyes-1: ") and "cost 0.0" in note for note in found.notes)
    assert any(note.startswith("LPIPS: not measured") for note in found.notes)
    # Again: nothing is asked, as every answer is kept.
    asked = len(server.requests)
    evaluate.run(judged_params(params, settings(server.url)), copy, "local_edit")
    assert len(server.requests) == asked


def test_a_judge_that_gives_the_score(prepared, server: Server, tmp_path: Path) -> None:
    import shutil

    params, paths = prepared
    shutil.copytree(paths.root, tmp_path / "copy")
    copy = Paths(tmp_path / "copy")
    judge = settings(server.url, is_score=True, num_samples=2)
    evaluate.run(judged_params(params, judge), copy, "t2i")
    found = read_evaluation(copy.evaluation("t2i"), "t2i")
    assert {result.score for result in found.fields.values()} == {1}
    assert all(row.score == 1 for row in found.fields["student"].rows)
    offline = settings(server.url, is_score=True, num_samples=2, offline=True)
    evaluate.run(judged_params(params, offline), copy, "t2i")  # the answers are known
    with pytest.raises(JudgeError, match="answers are missing and the judge is offline"):
        evaluate.run(judged_params(params, offline), copy, "global_edit")


def test_an_offline_judge_only_exports(tasks, server: Server, tmp_path: Path) -> None:
    task = tasks["local_edit"]
    found, _ = endpoint(server, tmp_path / "answers", offline=True)
    judge = Judge(found.config, found, tmp_path / "questions")
    assert judge.score("student", task, task.target) == {}
    assert server.requests == []
    lines = (tmp_path / "questions" / QUESTIONS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == judge.num_open == 4 * 2
    assert {row["kind"] for row in rows} == {"sc", "pq"}
    for row in rows:
        assert len(row["pictures"]) == (2 if row["kind"] == "sc" else 1)
        for name in row["pictures"]:
            assert (tmp_path / "questions" / name).read_bytes().startswith(b"\x89PNG")
    assert "8 questions are exported" in judge.note()
    # Answers that somebody else found are taken up.
    for row in rows:
        content = {"text": '{"marks": [5, 6]}'}
        (tmp_path / "answers").mkdir(exist_ok=True)
        (tmp_path / "answers" / f"{row['key']}.json").write_text(json.dumps(content))
    again = Judge(found.config, found, tmp_path / "more")
    scores = again.score("student", task, task.target)
    assert len(scores) == 4
    assert {item.score for item in scores.values()} == {5}


def test_a_score_needs_every_row(prepared) -> None:
    from tiny_project import small_data

    data = small_data(("t2i",))
    data["evaluate"]["judge"] = settings("http://x/v1", is_score=True).model_dump()
    with pytest.raises(ConfigError, match=r"evaluate\.judge\.num_samples: 1 rows are judged"):
        parse_params(data, "test")
    data["evaluate"]["judge"] |= {"num_samples": 2}
    assert parse_params(data, "test").evaluate.judge is not None
    data["evaluate"]["further_steps"] = [4]
    with pytest.raises(ConfigError, match=r"evaluate\.further_steps: a judge .* would be paid"):
        parse_params(data, "test")
