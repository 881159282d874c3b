"""The command: it says where the page is, and ends when it is told to."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from model_service import running, wait_for, write_student
from repository import ROOT

from danceflow.errors import UsageError
from danceflow.service.app import Service
from danceflow.service.limits import Limits
from danceflow.service.live import FolderSource
from danceflow.service.served import ServedLog
from danceflow.studio.serve import Place, Registered, serve_studio, tree_folder


def test_the_command_shows_a_page_over_a_service_and_ends_on_sigterm(tmp_path: Path) -> None:
    student = write_student(tmp_path / "student")
    service = Service(FolderSource(student, "cpu"), Limits(), ServedLog(tmp_path / "log", 0.0))
    service.live.look()
    log = tmp_path / "log.txt"
    with running(service) as far, log.open("w") as said:
        command = [sys.executable, "-m", "danceflow.cli", "studio", "--url", far.address]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=said)
        try:
            at = r"the studio is at (http://127\.0\.0\.1:\d+)"
            wait_for(lambda: process.poll() is not None or "startup complete" in log.read_text())
            found = re.search(at, log.read_text())
            assert found is not None, log.read_text()
            page = httpx.get(found[1], verify=False).text
            assert far.address in page
            assert "16x16" in page
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
    assert (tmp_path / "studio" / "studio.db").is_file()
    assert "Traceback" not in log.read_text()


def test_an_open_address_needs_the_token(tmp_path: Path) -> None:
    place = Place("0.0.0.0", 0, tmp_path / "tree")
    with pytest.raises(UsageError, match="DANCEFLOW_SERVICE_TOKEN"):
        serve_studio(place, ["models/student"], None, None, "cpu")
    assert not place.folder.exists()


def test_a_student_of_a_store_needs_one(tmp_path: Path) -> None:
    place = Place("127.0.0.1", 0, tmp_path / "tree")
    with pytest.raises(UsageError, match="tracking is off"):
        serve_studio(place, ["champion"], None, None, "cpu")


def test_the_tree_lies_in_the_checkout_or_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    assert tree_folder(None) == tmp_path / "studio"
    assert tree_folder(Path("mine")) == Path("mine")


def test_the_student_that_was_made_can_be_chosen_without_a_store(tmp_path: Path) -> None:
    assert Registered(None, "cpu", tmp_path)() == []
    (tmp_path / "models" / "student").mkdir(parents=True)
    assert [choice.key for choice, _ in Registered(None, "cpu", tmp_path)()] == ["models/student"]
