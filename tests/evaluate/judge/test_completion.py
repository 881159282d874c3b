"""Answers that are no answer: what can be read is read, the rest is left out and named."""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from judge_server import RAW, Reply, Server, completion, listening, settings, usual

from danceflow.errors import DanceflowError, JudgeError
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.judge.completion import read_completion
from danceflow.evaluate.judge.endpoint import Endpoint, Unusable
from danceflow.evaluate.judge.judge import Judge
from danceflow.evaluate.judge.questions import Question, UnusableAnswerError, mark_of, read_answer
from danceflow.evaluate.records import STANDARD, read_evaluation
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.report import stage as report

RIGHT = Question("right", "Is it there?", (b"png",))
MARKS = Question("sc", "Give marks.", (b"png",))


def endpoint(server: Server, folder: Path, **changes) -> Endpoint:
    return Endpoint(settings(server.url, **changes), folder, lambda _: None)


def ask(found: Endpoint, question: Question = RIGHT) -> float | Unusable:
    with found.client() as client:
        return found.ask(question, client)


# What can be read


def marks(text: str) -> float | None:
    try:
        return mark_of(read_answer("sc", text))
    except UnusableAnswerError:
        return None


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('{"marks": [9, 4]}', 4),
        ('First {"marks": [1, 1]}, better: {"marks": [9, 4]}', 4),
        ('{"marks": [9, 4]} That is {all}.', 4),
        ('{"marks": [9, 4], "reason": "a {curly} cat"}', 4),
        ('{"answer": {"marks": [9, 4]}}', 4),
        ('{"draft": {"marks": [1, 1]}, "marks": [9, 4]}', 4),
        ('```json\n{"marks": [9, 4]}\n```', 4),
        ('{"marks": [9, 4]}{"note": "done"}', 4),
        ('<think>{"marks": [1, 1]}?</think>{"marks": [9, 4]}', 4),
        ('{"marks": [1, 1]}?</think>\n{"marks": [9, 4]}', 4),
        ('{"marks": [9, 4]}<think>or {"marks": [1, 1]}?', 4),
        ('<think>perhaps {"marks": [1, 1]}', None),
        ('<think>perhaps {"marks": [1, 1]}</think> I cannot.', None),
        ('{"marks": [9, 4]} or {"marks": [9, 40]}', None),  # the last one decides
        ('{"marks": ["9", " 4.5 "]}', 4.5),
        ('{"marks": ["9/10", "4 / 10"]}', 4),
        ('{"marks": ["9 out of 10", 10.0]}', 9),
        ('{"marks": ["90/100", 4]}', None),
        ('{"marks": ["nine", 4]}', None),
        ('{"marks": ["-1", 4]}', None),
        ('{"marks": [-0.5, 4]}', None),
        ('{"marks": [NaN, 4]}', None),
        ('{"marks": [Infinity, 4]}', None),
        ('{"marks": [1e400, 4]}', None),
        ('{"marks": [' + "9" * 400 + ", 4]}", None),
        ('{"marks": [' + "9" * 5000 + ", 4]}", None),
        ('{"marks": [true, 4]}', None),
        ('{"marks": [null, 4]}', None),
        ('{"marks": [[9], [4]]}', None),
        ('{"marks": [9, 4, 5]}', None),
        ('{"marks": "9, 4"}', None),
        ('{"marks": {"a": 9, "b": 4}}', None),
        ('{"marks": null}', None),
        ("{'marks': [9, 4]}", None),
        ('{"marks": [9, 4', None),
        ("[9, 4]", None),
        ("{" * 90_000, None),
        ('{"a":' * 19_000, None),
        ("[" * 90_000, None),
        ('{"marks": [9, 4]}' + " " * 100_000, None),
        ("", None),
    ],
)
def test_what_marks_are_read(text: str, mark: float | None) -> None:
    assert marks(text) == mark


@pytest.mark.parametrize(
    ("value", "mark"),
    [
        ("true", 1),
        ("false", 0),
        ('"yes"', 1),
        ('" No "', 0),
        ('"True"', 1),
        ("1", 1),
        ("0", 0),
        ("0.5", None),
        ("2", None),
        ('"perhaps"', None),
        ("null", None),
        ("[]", None),
        ("{}", None),
    ],
)
def test_what_is_right(value: str, mark: float | None) -> None:
    text = f'{{"right": {value}}}'
    if mark is None:
        with pytest.raises(UnusableAnswerError):
            read_answer("right", text)
    else:
        assert mark_of(read_answer("right", text)) == mark


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ('{"marks": [9, 4], "reason": "x"} and then', 4),
        ('```json\n{"marks": [9, 4]}\n``` and then', 4),
        ('I think of {"marks": [9, 4]} and then', None),
        ('{"marks": [9, 4], "reason": "and th', None),
        ('{"note": 1} {"marks": [9, 4]} and', None),
    ],
)
def test_what_is_cut_off_counts_only_from_its_beginning(text: str, mark: float | None) -> None:
    if mark is None:
        with pytest.raises(UnusableAnswerError):
            read_answer("sc", text, is_cut=True)
    else:
        assert mark_of(read_answer("sc", text, is_cut=True)) == mark


JSON = '{"right": true}'
READABLE = {
    "parts": completion(
        [{"type": "text", "text": '{"right"'}, {"type": "text", "text": ": true}"}]
    ),
    "thinking beside it": completion(
        [{"type": "thinking", "text": '{"right": false}'}, {"type": "output_text", "text": JSON}]
    ),
    "strings": completion(['{"right":', "true}"]),
    "an object": completion({"right": True}),
    "an object with a text": completion({"type": "text", "text": JSON}),
    "a tool call": completion(None, "tool_calls", tool_calls=[{"function": {"arguments": JSON}}]),
    "an object for a tool": completion(
        "", "tool_calls", tool_calls=[{"function": {"arguments": {"right": True}}}]
    ),
    "a function call": completion(None, "function_call", function_call={"arguments": JSON}),
    "no usage": {"choices": [{"message": {"content": JSON}}]},
    "odd usage": completion(JSON) | {"usage": {"prompt_tokens": "many", "completion_tokens": -1}},
    "huge usage": completion(JSON) | {"usage": {"prompt_tokens": 10**400}},
    "usage of another kind": completion(JSON) | {"usage": [1]},
    "a lone surrogate": completion('{"right": true, "reason": "\ud800"}'),
    "a byte order mark": "\ufeff" + json.dumps(completion(JSON)),
    "cut off behind its object": completion(JSON + " as", "length"),
}


@pytest.mark.parametrize("kind", READABLE)
def test_an_answer_is_read_in_whatever_form_it_comes(
    server: Server, tmp_path: Path, kind: str
) -> None:
    server.answer = lambda body, number: (200, READABLE[kind], {})
    found = endpoint(server, tmp_path)
    assert [ask(found), ask(found)] == [1, 1]
    assert len(server.requests) == 1
    assert found.usage.cost(1.0, 1.0) < 1


UNUSABLE: dict[str, tuple[Reply, str]] = {
    "a refusal": ((200, completion(None, refusal="I may not."), {}), "it refuses: I may not."),
    "a refusal in words": ((200, completion("I cannot say"), {}), "'I cannot say'"),
    "a refusal among parts": (
        (200, completion([{"type": "refusal", "refusal": "No."}]), {}),
        "it refuses: No.",
    ),
    "null": ((200, completion(None), {}), "it says nothing"),
    "nothing": ((200, completion(""), {}), "it says nothing"),
    "a number": ((200, completion(5), {}), "it says nothing"),
    "a filter": ((200, completion(None, "content_filter"), {}), r"stops \(content_filter\)"),
    "thinking to the end": ((200, completion("<think>a cat", "length"), {}), "is cut off"),
    "another object": ((200, completion('{"wrong": 1}'), {}), "no JSON object with 'right'"),
    "no choice": ((200, {"choices": []}, {}), "no chat completion"),
    "an error": ((200, {"error": {"message": "filtered"}}, {}), "filtered"),
    "a list": ((200, "[1]", {}), "no chat completion"),
    "no JSON": ((200, "<html>hello", {}), "no JSON: <html>hello"),
    "deep JSON": ((200, "[" * 100_000, {}), "no JSON"),
    "no text": ((200, b"\xff\xfe\x00", {}), "no JSON"),
    "no content": ((204, b"", {}), "no JSON"),
    "endless": ((200, completion("x" * 3_000_000), {}), "no JSON"),
}
REFUSED = {
    "a content filter": (400, {"error": {"code": "content_filter"}}, {}),
    "moderation": (403, "flagged", {}),
    "too large": (413, "too large", {}),
    "not understood": (422, "what?", {}),
    "not legal": (451, "no", {}),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_unusable_answer_is_asked_for_again_in_other_words(
    server: Server, tmp_path: Path, kind: str
) -> None:
    reply, says = UNUSABLE[kind]
    server.answer = lambda body, number: reply
    found = endpoint(server, tmp_path, num_retries=5)
    answer = ask(found)
    assert isinstance(answer, Unusable)
    assert re.search(says, answer.reason), answer.reason
    assert answer.reason.endswith("(asked 3 times)")
    texts = [body["messages"][0]["content"][0]["text"] for body in server.requests]
    assert len(set(texts)) == len(texts) == 3
    assert [body["max_tokens"] for body in server.requests] == [400, 1600, 6400]
    # It is not kept as an answer, and not asked for again in the same run.
    assert not list(tmp_path.iterdir())
    assert ask(found) == answer
    assert len(server.requests) == 3
    # The next run asks again.
    server.answer = usual
    assert ask(endpoint(server, tmp_path)) == 1


@pytest.mark.parametrize("num_retries", [0, 1, 2, 3])
def test_it_is_asked_again_twice_at_most(server: Server, tmp_path: Path, num_retries: int) -> None:
    server.answer = lambda body, number: (200, completion("no"), {})
    ask(endpoint(server, tmp_path, num_retries=num_retries))
    assert len(server.requests) == 1 + min(2, num_retries)


def test_outages_and_unusable_answers_are_counted_apart(server: Server, tmp_path: Path) -> None:
    moods = [(503, "busy", {}), (200, completion("no"), {})] * 2

    server.answer = lambda body, number: moods[number - 1] if number <= 4 else usual(body, number)
    assert ask(endpoint(server, tmp_path, num_retries=2)) == 1
    assert len(server.requests) == 5


@pytest.mark.parametrize("kind", REFUSED)
def test_a_question_that_is_refused_is_not_asked_again(
    server: Server, tmp_path: Path, kind: str
) -> None:
    server.answer = lambda body, number: REFUSED[kind]
    answer = ask(endpoint(server, tmp_path, num_retries=5))
    assert isinstance(answer, Unusable)
    assert f"answers {REFUSED[kind][0]}: " in answer.reason
    assert len(server.requests) == 1


def test_an_internal_error_that_stays_is_about_the_question(server: Server, tmp_path: Path) -> None:
    server.answer = lambda body, number: (500, "boom", {})
    answer = ask(endpoint(server, tmp_path))
    assert answer == Unusable("answers 500: boom (tried 3 times)")
    for status in (429, 502, 503, 504):
        server.answer = lambda body, number, status=status: (status, "later", {})
        with pytest.raises(JudgeError, match=f"answers {status}: later .tried 3 times."):
            ask(endpoint(server, tmp_path))


@pytest.mark.parametrize("text", ['{"text": "I cannot say"}', '{"text": ""}'])
def test_an_unusable_answer_that_somebody_wrote_names_its_file(
    server: Server, tmp_path: Path, text: str
) -> None:
    found = endpoint(server, tmp_path)
    path = tmp_path / f"{found.key(RIGHT)}.json"
    path.write_text(text)
    answer = ask(found)
    assert isinstance(answer, Unusable)
    assert str(path) in answer.reason


@pytest.mark.parametrize(
    "content", [b"[]", b"{}", b'{"text": 5}', b"\xff", b"", b'{"te', b"[" * 100_000]
)
def test_a_file_that_is_no_kept_answer_is_told(
    server: Server, tmp_path: Path, content: bytes
) -> None:
    found = endpoint(server, tmp_path)
    (tmp_path / f"{found.key(RIGHT)}.json").write_bytes(content)
    with pytest.raises(JudgeError, match="this kept answer is damaged"):
        ask(found)


# Whatever an endpoint sends

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        *("choices", "message", "content", "text", "type", "marks", "right", "refusal", "usage"),
        *("tool_calls", "function", "arguments", "finish_reason", "prompt_tokens"),
    ]
)
near = st.recursive(
    st.sampled_from([None, True, 0, 9, -1, 1e308, "7/10", "yes", "length", '{"marks": [9, 4]}'])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
said = st.lists(
    st.sampled_from(['{"marks": [', '"right": ', "9", "4", ", ", "]", "}", "{", '"', "true", "\\"])
    | st.sampled_from(["<think>", "</think>", "```json", "\ud800", "NaN", "1e999", " "])
    | st.text(max_size=4),
    max_size=12,
).map("".join)
bodies = (
    json_values.map(json.dumps).map(str.encode)
    | near.map(json.dumps).map(str.encode)
    | (near | said).map(lambda content: json.dumps(completion(content)).encode())
    | near.map(lambda choice: json.dumps({"choices": [choice]}).encode())
    | st.text().map(lambda text: text.encode(errors="replace"))
    | st.binary()
)
statuses = st.sampled_from([200] * 12 + [RAW, 201, 204, 302, 400, 401, 404, 429, 500])
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "Content-Encoding", "Content-Type", "Location"]),
    st.sampled_from(["nan", "inf", "-1", "gzip", "br", "text/html; charset=rot13", "http://["]),
    max_size=2,
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Server]:
    with listening() as found:
        yield found


@given(reply=st.tuples(statuses, bodies, headers), question=st.sampled_from([RIGHT, MARKS]))
@trials(max_examples=300, deadline=None)
def test_whatever_comes_is_a_mark_or_unusable_or_one_error(
    fuzzed: Server, reply: Reply, question: Question
) -> None:
    fuzzed.answer = lambda body, number: reply
    with tempfile.TemporaryDirectory() as folder:
        found = endpoint(fuzzed, Path(folder), num_retries=1)
        try:
            answer = ask(found, question)
        except DanceflowError as error:
            answer = Unusable(str(error))
        if isinstance(answer, Unusable):
            assert answer.reason.isprintable()
            assert not list(Path(folder).iterdir())
        else:
            assert 0 <= answer <= 10
            assert found.known(question) == answer


@given(body=bodies)
@trials(max_examples=500, deadline=None)
def test_reading_a_body_raises_nothing(body: bytes) -> None:
    found = read_completion(body)
    assert bool(found.trouble) != bool(found.text)
    assert found.tokens_in >= 0


@given(text=said, is_cut=st.booleans(), kind=st.sampled_from(["sc", "pq", "right"]))
@trials(max_examples=500, deadline=None)
def test_reading_a_text_gives_a_mark_or_none(text: str, is_cut: bool, kind: str) -> None:
    with contextlib.suppress(UnusableAnswerError):
        assert 0 <= mark_of(read_answer(kind, text, is_cut=is_cut)) <= 10


# Rows that are left out


def shown(body: dict) -> list[str]:
    """A question's text and its pictures."""
    content = body["messages"][0]["content"]
    return [part.get("text") or part["image_url"]["url"] for part in content]


class Moody:
    """Refuses the first pictures of some questions that it sees, each of them always."""

    def __init__(self, num_refused: int, asked: str) -> None:
        self.num_refused, self.asked = num_refused, asked
        self.refused: set[str] = set()

    def __call__(self, body: dict, number: int) -> Reply:
        text, *pictures = shown(body)
        if self.asked in text:
            if len(self.refused) < self.num_refused:
                self.refused.add(pictures[-1])
            if pictures[-1] in self.refused:
                return 200, completion(None, refusal="I may not look."), {}
        return usual(body, number)


def judged(params: Params, server: Server, **changes) -> Params:
    config = settings(server.url, **changes)
    further = () if config.is_score else params.evaluate.further_steps
    section = params.evaluate.model_copy(update={"judge": config, "further_steps": further})
    return params.model_copy(update={"evaluate": section})


@pytest.fixture
def copy(reported, tmp_path: Path) -> Paths:
    shutil.copytree(reported[1].root, tmp_path / "copy")
    return Paths(tmp_path / "copy")


def rows_of(result) -> list[tuple]:
    return [(row.uid, row.seed) for row in result.rows if row.variant == STANDARD]


@pytest.mark.parametrize("capability", ["local_edit", "t2i"])
def test_a_row_is_left_out_of_every_field_and_named(
    reported, copy: Paths, server: Server, caplog, capability: str
) -> None:
    server.answer = Moody(1, "edited version" if capability == "local_edit" else "exactly this")
    params = judged(reported[0], server, is_score=True, num_samples=2, max_unusable=0.2)
    whole = read_evaluation(copy.evaluation(capability), capability)
    with caplog.at_level("WARNING"):
        evaluate.run(params, copy, capability)
    found = read_evaluation(copy.evaluation(capability), capability)
    (left,) = found.left_out
    for name, result in found.fields.items():
        assert (left.uid, left.seed) not in [(row.uid, row.seed) for row in result.rows]
        gone = 1 if (left.uid, left.seed) in rows_of(whole.fields[name]) else 0
        assert len(rows_of(result)) == len(rows_of(whole.fields[name])) - gone
    assert len({tuple(rows_of(result)) for result in found.fields.values()}) == 1
    assert len(found.fields["student"].rows) == len(whole.fields["student"].rows) - 1
    kind = "sc" if capability == "local_edit" else "right"
    (reason,) = left.reasons
    assert reason.startswith(f"student, {kind}, key ")
    assert reason.endswith("it refuses: I may not look. (asked 3 times)")
    assert f"row {left.uid}, noise seed {left.seed}, is left out of every field" in caplog.text
    # The page names it, and the interval is over the rows that are left.
    report.run(reported[0], copy)
    page = copy.report_page.read_text()
    assert f"{capability}: the judge left out row {left.uid}" in page
    summary = json.loads(copy.summary.read_text())
    assert summary["capabilities"][capability]["num_samples"] == len(
        {u for u, _ in rows_of(found.fields["student"])}
    )
    # Nothing is asked again but the row that is still open.
    asked = len(server.requests)
    evaluate.run(params, copy, capability)
    assert len(server.requests) == asked + 3


def test_a_judge_beside_the_score_takes_its_means_over_the_same_rows(
    reported, copy: Paths, server: Server
) -> None:
    """The student's answer to one row gets other marks; the start's answer to it is refused."""
    first: list[str] = []

    def answer(body: dict, number: int) -> Reply:
        text, *pictures = shown(body)
        if "edited version" not in text:
            return usual(body, number)
        first.extend(pictures if not first else [])
        if pictures == first:
            return 200, completion('{"marks": [0, 0]}'), {}
        if pictures[0] == first[0]:
            return 200, completion(None, refusal="I may not look."), {}
        return usual(body, number)

    server.answer = answer
    whole = read_evaluation(copy.evaluation("local_edit"), "local_edit")
    params = judged(reported[0], server, num_samples=2, max_unusable=0.2)
    evaluate.run(params, copy, "local_edit")
    found = read_evaluation(copy.evaluation("local_edit"), "local_edit")
    assert len(found.left_out) == 1
    assert found.left_out[0].reasons[0].startswith("start, sc, key ")
    for name in ("student", "start", "teacher:local"):
        assert found.fields[name].metrics["judge_sc"] == 4
        assert found.fields[name].rows == whole.fields[name].rows  # the score is the data's


def test_more_than_the_share_is_one_error_that_names_rows_and_keys(
    reported, copy: Paths, server: Server
) -> None:
    server.answer = Moody(99, "exactly this")
    before = copy.evaluation("t2i").read_bytes()
    params = judged(
        reported[0], server, is_score=True, num_samples=2, num_retries=0, max_unusable=0.1
    )
    with pytest.raises(JudgeError) as caught:
        evaluate.run(params, copy, "t2i")
    first, *rows = str(caught.value).splitlines()
    assert first.startswith("evaluate.judge.max_unusable: eyes-1 gives no usable answer about 2 of")
    assert "rows of t2i so far, more than 0.1 of them" in first
    assert len(rows) == 2
    for row in rows:
        assert "noise seed 0: student, right, key " in row
        assert row.endswith("it refuses: I may not look.")
    assert copy.evaluation("t2i").read_bytes() == before
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("limit", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_share_is_of_the_judged_rows(
    tasks, server: Server, tmp_path: Path, limit: float
) -> None:
    task = tasks["local_edit"]
    for num_refused in range(5):
        server.answer = Moody(num_refused, "edited version")
        found = endpoint(server, tmp_path / f"{num_refused}", max_unusable=limit, num_retries=0)
        judge = Judge(found.config, found, tmp_path / "questions")
        if num_refused / 4 > limit:  # four categories, a row of each
            with pytest.raises(JudgeError, match="max_unusable"):
                judge.score("student", task, task.target)
            continue
        first = judge.score("student", task, task.target)
        asked = len(server.requests)
        second = judge.score("start", task, task.target)
        assert first.keys() == second.keys()
        assert len(first) == 4 - num_refused == 4 - len(judge.left_out)
        assert len(server.requests) == asked


def test_a_category_without_any_row_is_an_error(reported, copy: Paths, server: Server) -> None:
    server.answer = Moody(99, "exactly this")
    params = judged(
        reported[0], server, is_score=True, num_samples=2, num_retries=0, max_unusable=1.0
    )
    with pytest.raises(JudgeError, match=r"no row of .* in t2i has usable answers:\n  row "):
        evaluate.run(params, copy, "t2i")


def test_a_judge_beside_the_score_may_know_nothing(reported, copy: Paths, server: Server) -> None:
    server.answer = Moody(99, "exactly this")
    params = judged(reported[0], server, num_samples=2, num_retries=0, max_unusable=1.0)
    evaluate.run(params, copy, "t2i")
    found = read_evaluation(copy.evaluation("t2i"), "t2i")
    assert "judge_score" not in found.fields["student"].metrics
    assert len(found.left_out) == len(rows_of(found.fields["student"]))


def test_offline_answers_are_left_out_alike(tasks, server: Server, tmp_path: Path) -> None:
    task = tasks["local_edit"]
    found = endpoint(server, tmp_path / "answers", offline=True, max_unusable=0.5)
    judge = Judge(found.config, found, tmp_path / "questions")
    judge.score("student", task, task.target)
    lines = (tmp_path / "questions" / "questions.jsonl").read_text().splitlines()
    (tmp_path / "answers").mkdir()
    for number, line in enumerate(map(json.loads, lines)):
        text = "I may not look." if number == 0 else '{"marks": [5, 6]}'
        (tmp_path / "answers" / f"{line['key']}.json").write_text(json.dumps({"text": text}))
    again = Judge(found.config, found, tmp_path / "more")
    assert len(again.score("student", task, task.target)) == 3
    assert again.num_open == 0
    (left,) = again.rows_left_out()
    assert left.uid == json.loads(lines[0])["uid"]
    assert "I may not look." in left.reasons[0]
    none = endpoint(server, tmp_path / "answers", offline=True)
    with pytest.raises(JudgeError, match=f"row {left.uid}, noise seed 0: student, sc, key "):
        Judge(none.config, none, tmp_path / "more").score("student", task, task.target)
    assert server.requests == []
