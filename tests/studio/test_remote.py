"""A model service in place of weights: the same pictures, and reasons where there are none."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from model_service import running, wait_for, write_student
from PIL import Image

from danceflow.errors import UsageError
from danceflow.pictures import png_bytes
from danceflow.registry.open import open_folder
from danceflow.service.app import Service
from danceflow.service.limits import Limits, RequestError
from danceflow.service.live import FolderSource
from danceflow.service.served import ServedLog
from danceflow.service.token import VARIABLE, Token
from danceflow.studio.models import Progress, Wish
from danceflow.studio.remote import RemoteModels

SECRET = "a-token-of-the-service-0123456789"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("far") / "student")


@pytest.fixture(scope="module")
def far(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    log = ServedLog(tmp_path_factory.mktemp("log"), 0.0)
    service = Service(
        FolderSource(folder, "cpu"), Limits(queue=4, steps=2000), log, token=Token(SECRET)
    )
    service.live.look()
    with running(service) as found:
        yield found


def asked(url: str, ask: Callable[[RemoteModels], Awaitable[Any]]) -> Any:
    async def work() -> Any:
        models = RemoteModels(url)
        try:
            return await ask(models)
        finally:
            await models.close()

    return asyncio.run(work())


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)


def test_pictures_are_those_of_the_student(far, folder, token) -> None:
    student = open_folder(folder, None, "cpu")
    photo = Image.effect_noise((40, 30), 80).convert("RGB")
    progress = Progress()

    async def ask(models: RemoteModels) -> Any:
        made = await models.make("", Wish("a red circle", None, (3, 4)), progress)
        edit = await models.make("", Wish("a ring", photo, (5,), 3, 1.5), Progress())
        return made, edit

    made, edit = asked(far.address, ask)
    expected = [student.generate(["a red circle"], seed=seed)[0] for seed in (3, 4)]
    assert [png_bytes(picture) for picture in made.pictures] == list(map(png_bytes, expected))
    changed = student.edit([photo], ["a ring"], seed=5, num_steps=3, guidance=1.5)[0]
    assert png_bytes(edit.pictures[0]) == png_bytes(changed)
    assert png_bytes(edit.seen) == png_bytes(student.framed(photo))
    assert (made.about.name, made.steps, progress.num_done) == ("student", 2, 2)
    assert made.seconds > 0


def test_it_says_what_it_is_and_what_it_does_not_know(far, token) -> None:
    choices, problem = asked(far.address, lambda models: models.choices())
    assert [choice.label for choice in choices] == [f"student at {far.address}"]
    assert problem == ""
    notes = asked(far.address, lambda models: models.notes("", "a red unicorn", is_edit=True))
    assert notes == ("has words that the model does not know: 'unicorn'",)


def test_what_is_given_up_is_not_made(far, token) -> None:
    async def ask(models: RemoteModels) -> None:
        wish = Wish("a red circle", None, (1,), 2000)
        work = asyncio.create_task(models.make("", wish, Progress()))
        await asyncio.sleep(0.05)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asked(far.address, ask)
    wait_for(lambda: len(far.service.batcher) == 0)


def test_its_steps_are_told(far, token) -> None:
    async def ask(models: RemoteModels) -> set[tuple[int, int]]:
        progress, seen = Progress(), set()
        work = asyncio.create_task(models.make("", Wish("a ring", None, (1, 2), 600), progress))
        while not work.done():
            seen.add(progress.step)
            await asyncio.sleep(0.02)
        await work
        return seen

    seen = asked(far.address, ask) - {(0, 0)}
    assert len(seen) > 1
    assert all(0 <= begun <= total == 1200 for begun, total in seen)


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        (Wish("a ring", None, (1,), 3000), "steps: 3000 are asked for, at most 2000"),
        (Wish("a ring", None, (1,), None, 1.0, "64x64"), "makes no images of 64x64"),
    ],
)
def test_what_it_refuses_is_passed_on(far, token, wish, told) -> None:
    with pytest.raises(RequestError) as raised:
        asked(far.address, lambda models: models.make("", wish, Progress()))
    assert raised.value.status == 422
    assert told in raised.value.reason


def test_a_missing_token_is_told_by_its_variable(far, monkeypatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    choices, problem = asked(far.address, lambda models: models.choices())
    assert len(choices) == 1
    assert VARIABLE in problem


class _Other(BaseHTTPRequestHandler):
    """Some other server: JSON without what is looked for, and text."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.text)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("text", [b"<html>hello", b'{"name": 1}', b"[1]"])
def test_another_server_is_told(text: bytes) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Other)
    server.text = text  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(RequestError) as raised:
            asked(f"http://127.0.0.1:{server.server_port}", lambda models: models.about(""))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert raised.value.status == 502


def test_nobody_there_is_told() -> None:
    with pytest.raises(RequestError) as raised:
        asked("http://127.0.0.1:9", lambda models: models.about(""))
    assert "http://127.0.0.1:9 does not answer" in raised.value.reason


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("127.0.0.1:8080", "write it as http://"),
        ("ftp://here", "write it as http://"),
        ("http://", "write it as http://"),
        ("http://me:secret-of-mine@here:80", "leave the login out"),
    ],
)
def test_what_is_no_address_is_told(url: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as raised:
        RemoteModels(url)
    assert "secret-of-mine" not in str(raised.value)
