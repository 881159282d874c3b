"""The tutorial and the how-tos followed word by word, in a clone in which ``make run`` ended.

The clone has small parameters, so that its student takes a moment and not ten minutes: its pictures
show nothing. What the pages call version 7 or 3 is its first.
"""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from checkout import Checkout
from doc_commands import PAGES, TUTORIAL, Command, blocks, executed_by
from one_process import one_process
from PIL import Image

from danceflow.ops.tracking import open_store
from danceflow.registry.promotion import CHAMPION, PREVIOUS

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

COMMANDS = [
    command for page in PAGES for command in blocks(page) if executed_by(command) == TUTORIAL
]
VERSION = re.compile(r"^7$|(?<=danceflow-scenes/)3$")


@pytest.fixture(scope="module")
def clone(first_run, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A clone of one's own, whose student is the champion although it is too small to pass.

    A second version, of the same student, is the champion before it.
    """
    first_run.checkout.restore()
    clone = first_run.checkout.twin(tmp_path_factory.mktemp("tutorial"))
    name = clone.params.tracking.registered_model
    store = open_store(clone.tracking)
    first = store.client.get_model_version(name, "1")
    with store.as_current():
        second = store.client.create_model_version(
            name, first.source, run_id=first.run_id, tags=first.tags
        )
    store.client.set_registered_model_alias(name, CHAMPION, "1")
    store.client.set_registered_model_alias(name, PREVIOUS, second.version)
    return clone


def words(command: Command) -> list[str]:
    return [VERSION.sub("1", word) for word in command.words]


def of(program: str) -> list[Command]:
    """The commands of a program, page by page, those of the tutorial first."""
    found = [command for command in COMMANDS if command.words[0] == program]
    return sorted(found, key=lambda command: command.page != "docs/tutorial.md")


def test_the_tutorial_is_followed_from_its_first_to_its_last_page(clone: Checkout) -> None:
    said = clone.run(*one_process([words(command)[1:] for command in of("danceflow")]))
    spoken = dict(re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", said, re.MULTILINE))
    size = clone.params.data.image_size
    for place in ("first", "second", "third", "live"):
        with Image.open(clone.root / place / "000.png") as picture:
            assert picture.size == (size, size)
    assert "meaning" in spoken["danceflow explain distill.num_steps"]
    assert "distill: " in spoken["danceflow run --dry-run -S distill.num_steps=4"]
    assert "danceflow history" in spoken
    assert clone.json(clone.root / "rows.json")


def test_dvc_shows_what_the_pages_say(clone: Checkout) -> None:
    for command in of("dvc"):
        commits = {"main": "HEAD", "exp": "HEAD"} if "diff" in command.words else {}
        clone.run(*[commits.get(word, word) for word in command.words])


def test_the_programs_are_on_the_path_after_the_set_up(clone: Checkout) -> None:
    (command,) = of("source")
    plain = "env -u ARGS -u MAKEFLAGS make -s -n run"  # whatever `make test` was given
    said = clone.run("bash", "-c", f"{command.text} && command -v danceflow && {plain}")
    assert said.splitlines()[0].endswith("/bin/danceflow")
    assert said.splitlines()[1].strip() == "danceflow run"


@pytest.fixture
def service(clone: Checkout) -> Iterator[int]:
    """The port of a service that was started as the page says, but for the port."""
    log = clone.root / "service.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["danceflow", "serve-model", "--from", "models/student", "--port", "0"],
            cwd=clone.root,
            env={**clone.environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            yield port_in(log, process)
        finally:
            process.terminate()
            process.wait()


def port_in(log: Path, process: subprocess.Popen[bytes]) -> int:
    """Wait until a service answers, and return its port."""
    for _ in range(600):
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert process.poll() is None, log.read_text()
        if found:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{found[1]}/v1/model").is_success:
                    return int(found[1])
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_a_service_is_asked_as_the_page_says(clone: Checkout, service: int) -> None:
    for command in of("curl"):
        call = [word.replace(":8080", f":{service}") for word in command.words]
        said = clone.run(*call, "--fail-with-body", "--silent")
        assert "-o" in call or json.loads(said)["images"]
    with Image.open(clone.root / "circle.png") as picture:
        assert picture.format == "PNG"
