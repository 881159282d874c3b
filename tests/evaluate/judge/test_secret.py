"""The judge's key: whatever it is and whatever fails, nothing of it is shown or kept."""

import html
import json
import logging
import os
import re
import shutil
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from judge_server import RAW, REASON, Reply, Server, completion, listening, settings, usual
from tiny_project import small_data

from danceflow.errors import ConfigError, DanceflowError, JudgeError, UsageError
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.judge.endpoint import Endpoint
from danceflow.evaluate.judge.questions import Question
from danceflow.evaluate.judge.secret import Secret
from danceflow.params.read import parse_params
from danceflow.paths import Paths
from danceflow.report import stage as report

QUESTION = Question("right", "Is it there?", (b"png",))
PLAIN = "Zq7Xw9Kv2Jb8Yf4GzT5p"
GOOD = {
    "plain": PLAIN,
    "a newline at its end": PLAIN + "\n",
    "Windows lines around it": "\r\n" + PLAIN + "\r\n",
    "spaces around it": f" \t{PLAIN} ",
    "what must be escaped": "\"Zq7\\Xw9<Kv2&Jb8'Yf4%Gz/T5p+",
    "long": "Zq7Xw9Kv2Jb8Yf4G" * 500,
    "longer than any server takes": "Zq7Xw9Kv2Jb8Yf4G" * 10_000,
    "short": "Zq7",
}
BAD = {
    "a newline inside": "Zq7Xw9Kv\n2Jb8Yf4GzT5p",
    "a return inside": "Zq7Xw9Kv\r2Jb8Yf4GzT5p",
    "NUL": "Zq7Xw9Kv\x002Jb8Yf4GzT5p",
    "a control character": "Zq7Xw9Kv\x1b2Jb8Yf4GzT5p",
    "a space": "Zq7Xw9Kv 2Jb8Yf4GzT5p",
    "a non-breaking space": "Zq7Xw9Kv\xa02Jb8Yf4GzT5p",
    "not ASCII": "Zq7Xw9Kvüß2Jb8Yf4GzT5p",
    "a byte order mark": "\ufeffZq7Xw9Kv2Jb8Yf4GzT5p",
    "bytes that are no text": "Zq7Xw9Kv\udcff2Jb8Yf4GzT5p",
    "empty": "",
    "white space": " \r\n\t ",
}
SAYS: dict[str, Callable[[str], Reply]] = {
    "401": lambda key: (401, "no such key", {}),
    "401 with the key": lambda key: (401, f"Incorrect API key provided: {key}.", {}),
    "401 with the key as JSON": lambda key: (401, {"error": {"message": f"no {key}"}}, {}),
    "401 with the key for a page": lambda key: (401, f"<p>{html.escape(key)}</p>", {}),
    "401 with the key for an address": lambda key: (401, "/?k=" + quote(key, safe=""), {}),
    "401 with its ends": lambda key: (401, f"Incorrect: {key[:8]}***{key[-6:]}", {}),
    "401 with half at the cut": lambda key: (401, "x" * 190 + key, {}),
    "403": lambda key: (403, f"{key} is not allowed", {}),
    "400": lambda key: (400, {"error": f"filtered, {key}"}, {}),
    "429": lambda key: (429, key, {"Retry-After": "0"}),
    "500": lambda key: (500, f"Traceback: headers = {{'Authorization': 'Bearer {key}'}}", {}),
    "bad JSON": lambda key: (200, f"<html>{key}", {}),
    "no completion": lambda key: (200, {"error": key}, {}),
    "a refusal": lambda key: (200, completion(None, refusal=f"I do not answer {key}"), {}),
    "an unusable answer": lambda key: (200, completion(f"You sent {key}."), {}),
    "a usable answer": lambda key: (
        200,
        completion(json.dumps({"right": True, "reason": f"you sent {key}"})),
        {},
    ),
    "a redirect": lambda key: (302, key, {"Location": f"http://127.0.0.1:1/{key}"}),
    "a header": lambda key: (401, "", {"WWW-Authenticate": f"Bearer {key}", "Set-Cookie": key}),
    "a reason phrase": lambda key: (401, "", {REASON: f"No {key}"}),
    "no HTTP": lambda key: (RAW, f"{key} {key}\r\n\r\n".encode(), {}),
    "nothing": lambda key: (RAW, b"", {}),
    "a broken code": lambda key: (200, key, {"Content-Encoding": "gzip"}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with listening() as found:
        yield found


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Every logger tells everything, those of the HTTP library too."""
    caplog.set_level(logging.DEBUG)
    names = ("danceflow", "httpx", "httpcore", "httpcore.http11", "httpcore.connection")
    kept = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield caplog
    for name, level in kept.items():
        logging.getLogger(name).setLevel(level)


def parts_of(key: str) -> set[str]:
    """Whatever four characters of a key stand in a row, of a shorter one all."""
    size = min(4, len(key))
    return {key[place : place + size] for place in range(len(key) - size + 1)}


def require_hidden(key: str, *texts: str) -> None:
    for text in texts:
        shown = {part for part in parts_of(key.strip()) if part in text}
        assert not shown, text[:2000]


def told(error: BaseException) -> str:
    """An error as it is printed, and the local variables of the package's own frames with it."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    own = [frame.locals for frame in found.stack if "/danceflow/" in frame.filename]
    return "".join([*traceback.format_exception(error), repr(own)])


def outcome(found: Endpoint) -> str:
    """What asking comes to, in all the words that may be printed."""
    try:
        with found.client() as client:
            answer = found.ask(QUESTION, client)
            return " ".join(map(repr, (answer, client, client.headers, found, vars(found))))
    except DanceflowError as error:
        return told(error) + repr(error) + repr(vars(found))


@pytest.mark.parametrize("failure", SAYS)
@pytest.mark.parametrize("kind", GOOD)
def test_nothing_of_a_key_is_shown_or_kept(
    server: Server, tmp_path: Path, monkeypatch, everything_logged, capfd, kind: str, failure: str
) -> None:
    key = GOOD[kind]
    monkeypatch.setattr(os, "environ", {**os.environ, "JUDGE_KEY": key})
    server.answer = lambda body, number: SAYS[failure](key.strip())
    found = Endpoint(settings(server.url, key_variable="JUDGE_KEY"), tmp_path, lambda _: None)
    words = outcome(found)
    kept = "".join(path.read_text() for path in tmp_path.iterdir())
    assert server.keys[-1] == f"Bearer {key.strip()}" or len(key) > 65_000
    assert "httpcore" in {record.name.partition(".")[0] for record in everything_logged.records}
    require_hidden(key, words, kept, everything_logged.text, *capfd.readouterr())


@pytest.mark.parametrize("kind", GOOD)
def test_nothing_is_shown_of_a_key_that_finds_nobody(
    tmp_path: Path, monkeypatch, everything_logged, kind: str
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "JUDGE_KEY": GOOD[kind]})
    with socket.create_server(("127.0.0.1", 0)) as free:
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    for url in (gone, "http://no.such.host.invalid/v1", "https://127.0.0.1:1/v1"):
        found = Endpoint(settings(url, key_variable="JUDGE_KEY"), tmp_path, lambda _: None)
        words = outcome(found)
        assert "cannot be reached" in words
        require_hidden(GOOD[kind], words, everything_logged.text)


def test_nothing_is_shown_of_a_key_that_waits_in_vain(
    server: Server, tmp_path: Path, monkeypatch, everything_logged
) -> None:
    release = threading.Event()
    server.answer = lambda body, number: (release.wait(10), usual(body, number))[1]
    monkeypatch.setenv("JUDGE_KEY", PLAIN)
    config = settings(server.url, key_variable="JUDGE_KEY", timeout_s=0.2, num_retries=1)
    words = outcome(Endpoint(config, tmp_path, lambda _: None))
    release.set()
    assert "cannot be reached: timed out" in words
    require_hidden(PLAIN, words, everything_logged.text)


@pytest.mark.parametrize("kind", BAD)
def test_what_can_be_no_key_is_refused_before_anything_is_sent(
    server: Server, tmp_path: Path, monkeypatch, everything_logged, kind: str
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "JUDGE_KEY": BAD[kind]})
    num_requests = len(server.requests)
    with pytest.raises(UsageError, match=r"key_variable: .*JUDGE_KEY") as caught:
        Endpoint(settings(server.url, key_variable="JUDGE_KEY"), tmp_path)
    assert caught.value.exit_code == 2
    assert len(server.requests) == num_requests
    if BAD[kind].strip():
        require_hidden(BAD[kind], told(caught.value), everything_logged.text)


def test_an_offline_judge_needs_no_key(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    Endpoint(settings(server.url, key_variable="JUDGE_KEY", offline=True), tmp_path)
    with pytest.raises(UsageError, match="JUDGE_KEY is not set"):
        Endpoint(settings(server.url, key_variable="JUDGE_KEY"), tmp_path)


def test_a_text_without_the_key_stays_as_it_is() -> None:
    text = "answers 404: no model eyes-1"
    for key in (None, PLAIN):
        assert Secret(key).hidden(text) == Secret(key).excerpt(text) == text
    assert Secret(PLAIN).hidden(f"a {PLAIN}, b {PLAIN[:7]}") == "a ***, b ***"
    assert Secret(PLAIN).excerpt("a\x1b[31m\n\ud800b" + " long" * 99).startswith("a [31m b long")
    assert repr(Secret(PLAIN)) == str(Secret(PLAIN)) == "Secret(***)"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("url", f"http://me:{PLAIN}@127.0.0.1/v1", "holds a user or password"),
        ("url", f"http://{PLAIN}@127.0.0.1/v1", "holds a user or password"),
        ("url", f"http://me:{PLAIN[:8]}/{PLAIN[8:]}@127.0.0.1/v1", "should be http"),
        ("url", f"ftp://me:{PLAIN}@127.0.0.1/v1", "should be http"),
        ("url", f"http://127.0.0.1/v1?key={PLAIN}", "should be http"),
        ("url", f"http://127.0.0.1/v1#{PLAIN}", "should be http"),
        ("url", f"http://127.0.0.1/{PLAIN} /v1", "should be http"),
        ("url", f"http://127.0.0.1/{PLAIN}\n/v1", "should be http"),
        ("url", f"http://[::1/{PLAIN}", "should be http"),
        ("url", f"http://127.0.0.1:{PLAIN}/v1", "should be http"),
        ("url", PLAIN, "should be http"),
        ("url", "http:///v1", "should be http"),
        ("url", 7, "should be http"),
        ("key_variable", PLAIN, "should be the name"),
        ("key_variable", f"sk-{PLAIN}", "should be the name"),
        ("key_variable", f"$JUDGE_{PLAIN}", "should be the name"),
        ("key_variable", 20261234567890, "should be the name"),
    ],
)
def test_a_key_among_the_parameters_is_refused_and_not_told(name: str, value, says: str) -> None:
    data = small_data(("t2i",))
    data["evaluate"]["judge"] = settings("http://x/v1", num_samples=2).model_dump() | {name: value}
    with pytest.raises(ConfigError, match=rf"evaluate\.judge\.{name}: {says}") as caught:
        parse_params(data, "test")
    require_hidden(PLAIN, *traceback.format_exception(caught.value))
    assert "20261234567890" not in str(caught.value)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy", ["http://me:{}@127.0.0.1:1", "http://me:{}@[", "odd://{}@h", "http://h:{}"]
)
def test_nothing_of_a_proxys_password_is_shown(
    tmp_path: Path, monkeypatch, everything_logged, name: str, proxy: str
) -> None:
    for other in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, proxy.format(PLAIN))
    found = Endpoint(settings("http://judge.invalid/v1"), tmp_path, lambda _: None)
    with pytest.raises(JudgeError) as caught, found.client() as client:
        found.ask(QUESTION, client)
    words = "".join(traceback.format_exception(caught.value))
    require_hidden(PLAIN, words, everything_logged.text)


def test_an_evaluation_and_its_report_hold_nothing_of_the_key(
    reported, server: Server, tmp_path: Path, monkeypatch, everything_logged, capfd
) -> None:
    """The endpoint repeats the key in what it says, and refuses one picture with it."""
    params, paths = reported
    shutil.copytree(paths.root, tmp_path / "copy")
    copy = Paths(tmp_path / "copy")
    monkeypatch.setenv("JUDGE_KEY", PLAIN + "\n")
    refused: set[str] = set()

    def echo(body: dict, number: int) -> Reply:
        picture = body["messages"][0]["content"][1]["image_url"]["url"]
        if not refused or picture in refused:
            refused.add(picture)
            return 400, f"content filter: {PLAIN}", {}
        return 200, completion(json.dumps({"right": True, "reason": f"I know {PLAIN}"})), {}

    server.answer = echo
    judge = settings(
        server.url, key_variable="JUDGE_KEY", is_score=True, num_samples=2, max_unusable=0.5
    )
    section = params.evaluate.model_copy(update={"judge": judge, "further_steps": ()})
    judged = params.model_copy(update={"evaluate": section})
    evaluate.run(judged, copy, "t2i")
    report.run(judged, copy)
    page = copy.report_page.read_text()
    assert "content filter: ***" in page
    answers = list(copy.judge_answers.iterdir())
    assert len(answers) > 5
    assert all("I know ***" in path.read_text() for path in answers)
    require_hidden(PLAIN, everything_logged.text, *capfd.readouterr())
    for path in copy.root.rglob("*"):
        if path.is_file():
            assert not re.search(b"|".join(p.encode() for p in parts_of(PLAIN)), _text(path)), path


def _text(path: Path) -> bytes:
    """A file's text; none of pictures and weights, where four such bytes stand by chance."""
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return b""
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", text).encode()
