"""The pages: started together, ended together."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from danceflow.errors import DanceflowError
from danceflow.schema import TrackingParams
from flows import pages

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that is started."""
    processes: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        processes.append(popen(*args, **kwargs))  # type: ignore[call-overload]
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def test_when_one_ends_so_does_the_other(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(DanceflowError, match="B ended with exit code 3"):
        pages.keep_running({"A": SLEEP, "B": [sys.executable, "-c", "raise SystemExit(3)"]}, 0.01)
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGTERM, 3]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where the tests were started in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_both_quietly(started: list[subprocess.Popen[bytes]]) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while len(started) < 2:
            pass
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    pages.keep_running({"A": SLEEP, "B": SLEEP}, 0.01)
    thread.join()
    assert [process.wait(timeout=60) for process in started] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize(
    ("uri", "names"), [("sqlite:////tmp/x.db", {"MLflow", "Prefect"}), ("http://a.b", {"Prefect"})]
)
def test_a_server_elsewhere_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, names: set[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    found: dict[str, list[str]] = {}
    monkeypatch.setattr(pages, "keep_running", found.update)
    tracking = TrackingParams(enabled=True, uri=uri, experiment="e", registered_model="m")
    pages.serve_pages(tmp_path, tracking, 5001, 4201)
    assert set(found) == names
    assert found["Prefect"][-1] == "4201"
    if "MLflow" in names:
        assert [uri, "--port", "5001"] == found["MLflow"][-3:]
