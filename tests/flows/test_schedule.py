import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from danceflow.errors import StageError, UsageError
from flows import schedule
from flows.schedule import check_cron


@pytest.fixture
def no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No Prefect server is configured, and none of the user's files is used."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that nobody answers on, in place of Prefect's usual one."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        monkeypatch.setattr(schedule, "_PORT", place.getsockname()[1])
        yield place


@pytest.mark.parametrize("cron", ["", "every night", "0 25 * * *"])
def test_a_schedule_that_is_none_is_refused(cron):
    with pytest.raises(UsageError, match="is no cron schedule"):
        check_cron(cron)


def test_a_schedule_is_accepted():
    check_cron("0 2 * * *")


def test_a_flow_is_served_once_at_a_time_with_its_checkout(monkeypatch, tmp_path):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.pipeline import run_pipeline, serve

    seen: dict = {}
    monkeypatch.setattr(type(run_pipeline), "serve", lambda self, *a, **k: seen.update(k, args=a))
    monkeypatch.setattr(schedule, "_end_dead_runs", lambda name: None)
    with temporary_settings({PREFECT_API_URL: "http://somewhere/api"}):
        serve(tmp_path, "0 2 * * *")
    assert seen["args"] == (schedule.deployment_name(tmp_path),)
    assert seen["cron"] == "0 2 * * *"
    assert seen["parameters"] == {"root": str(tmp_path)}
    assert seen["global_limit"].limit == 1
    assert seen["global_limit"].collision_strategy.value == "ENQUEUE"


def test_a_checkout_has_a_deployment_of_its_own_and_one_schedule(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert schedule.deployment_name(first) == schedule.deployment_name(first / ".." / "first")
    assert schedule.deployment_name(first) != schedule.deployment_name(second)
    with schedule._only_one(first), schedule._only_one(second):
        who = f"has a schedule already: process {os.getpid()} runs"
        with pytest.raises(UsageError, match=who), schedule._only_one(first):
            pass
    with schedule._only_one(first):
        pass


def test_ending_the_schedule_ends_its_runs():
    run = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(300,))
    with pytest.raises(SystemExit), schedule._ending_runs():
        run.start()
        raise SystemExit
    assert run.exitcode is not None


@pytest.mark.pipeline
def test_a_schedule_makes_runs(no_server, port):
    """Prefect's scheduler works with the installed database library (SQLAlchemy 2.1 broke it)."""
    from prefect import flow
    from prefect.client.orchestration import get_client

    @flow
    def nightly() -> None:
        """Does nothing."""

    port.close()
    with schedule._server():
        nightly.to_deployment("nightly", cron="0 2 * * *").apply()
        deadline = time.monotonic() + 60
        with get_client(sync_client=True) as client:
            while not (runs := client.read_flow_runs()):
                assert time.monotonic() < deadline, "no scheduled run appeared"
                time.sleep(0.5)
    assert {run.state.name for run in runs} == {"Scheduled"}
    assert not schedule._answers(f"http://127.0.0.1:{schedule._PORT}/api")


@pytest.mark.pipeline
def test_a_server_that_does_not_start_is_an_error(no_server, port):
    port.listen(0)
    with pytest.raises(StageError, match="Prefect's server does not start"), schedule._server():
        pass


SERVED = """
import os, sys, time
from pathlib import Path
from prefect import flow
from flows import schedule
from flows.pipeline import begin

@flow(name="served", persist_result=False)
def served(root: str):
    begin(Path(root))
    Path(root, f"ran-{os.getpid()}").touch()
    while Path(root, "block").exists():
        time.sleep(0.1)

if __name__ == "__main__":
    import served as module
    schedule._PORT = int(sys.argv[2])
    schedule.serve_flow(module.served, Path(sys.argv[1]), "0 2 1 1 *")
"""


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.pipeline
@pytest.mark.parametrize("moment", ["PENDING", "RUNNING"])
def test_after_schedule_and_server_were_killed_the_next_run_runs(
    tmp_path, no_server, port, monkeypatch, moment
):
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings

    number = port.getsockname()[1]
    port.close()
    (tmp_path / "served.py").write_text(SERVED)
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    name = f"served/{schedule.deployment_name(tmp_path)}"

    def serve() -> psutil.Process:
        command = [sys.executable, str(tmp_path / "served.py"), str(tmp_path), str(number)]
        return psutil.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)

    with (
        temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{number}/api"}),
        get_client(sync_client=True) as client,
    ):

        def served() -> bool:
            with contextlib.suppress(ObjectNotFound):
                return not client.read_deployment_by_name(name).paused
            return False

        def start_run() -> Callable[[], str]:
            made = client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id)
            return lambda: client.read_flow_run(made.id).state.type.value

        def answers() -> bool:
            return schedule._answers(f"http://127.0.0.1:{number}/api")

        first = serve()
        try:
            until(answers, "no server")
            until(served, "no deployment")
            (tmp_path / "block").touch()
            state = start_run()
            until(lambda: state() == moment, f"the run is never {moment}")
            if moment == "RUNNING":
                until(lambda: list(tmp_path.glob("ran-*")), "the run does nothing")
            started = first.children(recursive=True)
            servers = [child for child in started if "server" in child.cmdline()]
            assert servers
        finally:
            first.kill()
        for process in servers:
            process.kill()
        first.wait()
        assert not psutil.wait_procs(started, timeout=90)[1], "something outlives the schedule"
        (tmp_path / "block").unlink()

        second = serve()
        try:
            until(answers, "no server")
            until(lambda: state() == "CRASHED", "the killed run counts as alive")
            later = start_run()
            until(lambda: later() == "COMPLETED", "the next run waits for the dead one's slot")
            started = second.children(recursive=True)
        finally:
            second.send_signal(signal.SIGTERM)
            second.wait(120)
        assert not psutil.wait_procs(started, timeout=60)[1]
        assert not answers()
