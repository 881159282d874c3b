"""The pages: started together, ended together."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from listening import listening
from repository import ROOT

from danceflow.errors import DanceflowError
from danceflow.params.read import load_params
from flows import pages
from flows.ports import free_ports, is_free
from flows.servers import Server, prefect_server

SLEEP = Server((sys.executable, "-c", "import time; time.sleep(600)"))
ENDS = Server((sys.executable, "-c", "raise SystemExit(3)"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every server that is started."""
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = popen(*args, **kwargs)  # type: ignore[call-overload]
        if args[0] in (SLEEP.command, ENDS.command):
            processes.append(process)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def test_when_one_ends_so_does_the_other(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(DanceflowError, match="B ended with exit code 3"):
        pages.keep_running({"A": SLEEP, "B": ENDS}, {}, 0.01)
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGTERM, 3]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_however_it_ends_no_server_is_left(number: signal.Signals) -> None:
    """Ctrl-C ends it as SIGTERM does, a terminal that closes as SIGKILL does: see below."""
    code = (
        "from flows.pages import keep_running; from flows.servers import Server; "
        f"sleep = Server({SLEEP.command!r}); keep_running({{'A': sleep, 'B': sleep}}, {{}})"
    )
    page = psutil.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def servers() -> list[psutil.Process]:
        return [child for child in page.children() if child.cmdline() == list(SLEEP.command)]

    until(lambda: len(servers()) == 2 or page.poll() is not None)
    started = page.children(recursive=True)
    page.send_signal(number)
    page.wait(60)
    assert len(started) >= 2
    assert not psutil.wait_procs(started, timeout=60)[1]


def team() -> AbstractContextManager[object]:
    """A Prefect server is configured; that it is away hides no other page."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    return temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})


def test_when_one_that_ran_already_ends_so_do_the_others(
    started: list[subprocess.Popen[bytes]],
) -> None:
    with pytest.raises(DanceflowError, match="C ended"):
        pages.keep_running({"A": SLEEP}, {"C": lambda: not started}, 0.01)
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGTERM]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_both_quietly(
    started: list[subprocess.Popen[bytes]],
    tmp_path: Path,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main = threading.main_thread().ident
    assert main is not None
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(pages, "mlflow_server", lambda port, uri: SLEEP)

    def interrupt() -> None:
        while not started:
            pass
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with team():
        pages.serve_pages(tmp_path, load_params(ROOT / "params.yaml"), 5001, 4201)
    thread.join()
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGTERM]


@pytest.mark.parametrize(
    ("uri", "names"), [("sqlite:///x.db", ["MLflow"]), ("http://127.0.0.1:9", [])]
)
def test_a_server_elsewhere_is_not_started(
    tmp_path: Path,
    mlflow_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    uri: str,
    names: list[str],
) -> None:
    """The project's own page is told as the address of its runs, with the columns that matter."""
    caplog.set_level("INFO")
    shutil.copyfile(mlflow_template, tmp_path / "x.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found: dict[str, Server] = {}
    monkeypatch.setattr(pages, "keep_running", lambda servers, others: found.update(servers))
    params = load_params(ROOT / "params.yaml")
    tracking = params.tracking.model_copy(update={"uri": uri, "experiment": "e"})
    with team():
        pages.serve_pages(tmp_path, params.model_copy(update={"tracking": tracking}), 5001, 4201)
    assert list(found) == names
    assert "Prefect: http://127.0.0.1:9" in caplog.messages
    assert "Prefect at http://127.0.0.1:9/api does not answer" in caplog.text
    if names:
        place = f"sqlite:///{tmp_path}/x.db"
        assert found["MLflow"].environment["MLFLOW_BACKEND_STORE_URI"] == place
        assert found["MLflow"].command[-4:-2] == ("--port", "5001")
        page = "http://127.0.0.1:5001/#/experiments/1/runs?workflowType=machine_learning"
        assert f"MLflow: {page}&viewStateShareKey=danceflow" in caplog.messages
    else:
        assert "MLflow at http://127.0.0.1:9 does not answer" in caplog.text


def test_an_address_that_the_user_has_given_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a proxy."""
    assert prefect_server(4255).environment["PREFECT_UI_API_URL"] == "http://127.0.0.1:4255/api"
    for name in ("PREFECT_UI_API_URL", "PREFECT_SERVER_UI_API_URL"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "https://team/api")
            assert "PREFECT_UI_API_URL" not in prefect_server(4255).environment


# ----------------------------------------------------------------------------- the real servers


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def fetched(url: str) -> bytes | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return None


@pytest.mark.pipeline
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_however_the_command_ends_nothing_of_the_servers_is_left(
    tmp_path: Path,
    mlflow_template: Path,
    prefect_template: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    shutil.copyfile(mlflow_template, tmp_path / "mlflow.db")
    (tmp_path / ".prefect").mkdir()
    shutil.copy(prefect_template, tmp_path / ".prefect")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    for name in ("PREFECT_API_URL", "PREFECT_UI_API_URL", "PREFECT_SERVER_UI_API_URL"):
        monkeypatch.delenv(name, raising=False)
    mlflow, prefect = free_ports(2)
    command = [sys.executable, "-m", "danceflow.cli", "ui"]
    ports = ["--mlflow-port", str(mlflow), "--prefect-port", str(prefect)]
    with (tmp_path / "output").open("wb") as output:
        page = psutil.Popen([*command, *ports], cwd=tmp_path, stdout=output, stderr=output)
    started: list[psutil.Process] = []
    try:
        until(lambda: fetched(f"http://127.0.0.1:{prefect}/api/health") or page.poll() is not None)
        until(lambda: fetched(f"http://127.0.0.1:{mlflow}/health") or page.poll() is not None)
        settings: Any = json.loads(fetched(f"http://127.0.0.1:{prefect}/ui-settings") or b"")
        assert settings["api_url"] == f"http://127.0.0.1:{prefect}/api"
        started = page.children(recursive=True)
        commands = [" ".join(process.cmdline()) for process in started]
        assert not [line for line in commands if "huey" in line or "job" in line]
        assert len([line for line in commands if str(mlflow) in line]) <= 2
        is_own = listening(page)
        assert set(is_own) >= {mlflow, prefect}
        assert all(is_own.values()), is_own
    finally:
        page.send_signal(number)
        page.wait(60)
    assert len(started) >= 3
    assert not psutil.wait_procs(started, timeout=60)[1]
    assert is_free(mlflow)
    assert is_free(prefect)
