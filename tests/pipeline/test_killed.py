"""A schedule and its runs that are killed: told by Prefect, nothing held, and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows import schedule
from flows.home import at_home

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

CRASHED_WITHIN_S = 90.0


@pytest.fixture
def checkout(project, prefect_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project without tracking and without a server that is configured."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    path = project.root / "params.yaml"
    path.write_text(path.read_text().replace("enabled: true", "enabled: false"))
    with (project.root / ".gitignore").open("a") as file:
        file.write("/.prefect/\n")
    project.commit()
    (project.root / ".prefect").mkdir()
    shutil.copy(prefect_template, project.root / ".prefect")
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield project.root


def until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def serve(root: Path) -> psutil.Process:
    output = (root.parent / "serve.log").open("ab")
    command = [sys.executable, "-m", "danceflow.cli", "serve", "--cron", "0 2 1 1 *"]
    return psutil.Popen(command, cwd=root, stdout=output, stderr=subprocess.STDOUT)


def flows_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if "spawn_main" in " ".join(child.cmdline())]


def test_what_is_killed_counts_as_crashed_and_the_next_run_goes_on(project, checkout) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

    sleeping = project.calls_file.with_name("sleeping")
    project.trouble("distill", "sleep always")

    with at_home(checkout), get_client(sync_client=True) as client:

        def deployment(name: str):
            return client.read_deployment_by_name(
                f"danceflow/{schedule.deployment_name(name, checkout)}"
            )

        def is_served() -> bool:
            try:
                return not deployment("on-demand").paused
            except ObjectNotFound:
                return False

        def start(name: str):
            return client.create_flow_run_from_deployment(deployment(name).id).id

        def states(run) -> list[str]:
            return [state.type.value for state in client.read_flow_run_states(run)]

        # Everything that danceflow has started is killed but the server, as by a lack of memory.
        first = serve(checkout)
        until(is_served, "no deployment")
        with pytest.raises(PrefectHTTPStatusError, match="409") as error:
            client.create_flow_run_from_deployment(
                deployment("on-demand").id, parameters={"recipie": "recipes/smoke.yaml"}
            )
        assert "'recipie' was unexpected" in error.value.response.text
        killed, waiting = start("on-demand"), start("scheduled")
        until(sleeping.exists, "the run does nothing")
        assert set(states(waiting)) == {"SCHEDULED"}
        (flow,) = flows_of(first)
        for process in (first, flow):
            process.kill()
        first.wait()
        began = time.monotonic()
        until(lambda: "CRASHED" in states(killed), "it counts as alive", CRASHED_WITHIN_S)
        assert time.monotonic() - began < CRASHED_WITHIN_S
        until(lambda: states(killed)[-1] == "SCHEDULED", "it does not go on")
        until(lambda: not psutil.pid_exists(int(sleeping.read_text())), "its stage lives on")

        # The next schedule goes on with it, then with the one that waits.
        project.calm("distill")
        calls = project.calls()
        assert calls.count("prepare begins") == 1
        second = serve(checkout)
        try:
            until(lambda: states(killed)[-1] == "COMPLETED", "it does not go on")
            until(lambda: states(waiting)[-1] == "COMPLETED", "the next run does not start")
            assert project.began() == ["distill", "report"]

            # A flow alone that is killed is told at once; once again it waits for a person.
            project.trouble("report", "sleep always")
            sleeping.unlink()
            (checkout / "stage.py").open("a").write("# changed\n")
            again, later = start("on-demand"), start("scheduled")
            until(sleeping.exists, "the run does nothing")
            (flow,) = flows_of(second)
            project.calm("report")
            flow.kill()
            until(lambda: states(later)[-1] == "COMPLETED", "the next run does not start")
            assert states(again)[-1] == "CRASHED"
            assert client.read_global_concurrency_limits(limit=10, offset=0) == []
        finally:
            second.send_signal(signal.SIGTERM)
            started = second.children(recursive=True)
            second.wait(120)
        assert not psutil.wait_procs(started, timeout=60)[1]
    assert "Traceback" not in (checkout.parent / "serve.log").read_text()


def test_a_prefect_server_that_is_killed_in_the_middle_costs_no_stage(project, checkout) -> None:
    from prefect.client.orchestration import get_client

    everything = ["prepare", "cache@t2i", "cache@local_edit", "distill", "report"]

    def run_in_the_middle_of_a_stage(without: str, **further: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if k != without}
        process = subprocess.Popen(
            [sys.executable, "-m", "danceflow.cli", "run"], cwd=checkout, text=True,
            env={**environment, "PAUSE": "4", **further},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        calls = project.calls_file
        until(
            lambda: (
                (calls.exists() and "cache@t2i begins" in calls.read_text())
                or process.poll() is not None
            ),
            "the run does nothing",
        )
        return process

    with at_home(checkout) as home, get_client(sync_client=True) as client:
        record = json.loads((checkout / ".prefect" / "server.json").read_text())
        keeper = psutil.Process(int(record["keeper"].partition("-")[0]))

        # The project's own is started again, and the run waits where it needs it.
        run = run_in_the_middle_of_a_stage("PREFECT_API_URL")
        (server,) = keeper.children()
        server.kill()
        output, _ = run.communicate(timeout=240)
        assert run.returncode == 0, output
        assert "Traceback" not in output
        assert project.began() == everything
        (again,) = keeper.children()
        assert again.pid != server.pid
        (flow,) = client.read_flow_runs()
        assert flow.state.type.value == "COMPLETED"

        # One that is configured, and stays away: one error, after the stages.
        (checkout / "stage.py").open("a").write("# changed\n")
        run = run_in_the_middle_of_a_stage(
            "DANCEFLOW_PREFECT_USERS", PREFECT_CLIENT_MAX_RETRIES="1"
        )
        for process in (keeper, again):
            process.kill()
        output, _ = run.communicate(timeout=240)
        assert run.returncode == 1, output
        assert "Traceback" not in output
        assert f"\nerror: Prefect at {home.url} went away" in output, output
        assert project.began() == everything
    project.run("dvc", "repro")
    assert project.began() == []


def test_a_group_that_is_told_to_stop_ends_without_a_word_too_many(project, checkout) -> None:
    """As by a terminal that is closed, or a machine that is shut down."""
    project.trouble("distill", "sleep always")
    sleeping = project.calls_file.with_name("sleeping")
    command = [sys.executable, "-m", "danceflow.cli", "run"]
    run = subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    until(lambda: sleeping.exists() or run.poll() is not None, "the run does nothing")
    os.killpg(run.pid, signal.SIGTERM)
    output, _ = run.communicate(timeout=90)
    assert run.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    assert "stage 'distill' was ended" in output
