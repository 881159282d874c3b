import multiprocessing
import socket
import time
from collections.abc import Iterator
from pathlib import Path

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
    with temporary_settings({PREFECT_API_URL: "http://somewhere/api"}):
        serve(tmp_path, "0 2 * * *")
    assert seen["cron"] == "0 2 * * *"
    assert seen["parameters"] == {"root": str(tmp_path)}
    assert seen["global_limit"].limit == 1
    assert seen["global_limit"].collision_strategy.value == "ENQUEUE"


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
