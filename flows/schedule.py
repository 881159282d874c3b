"""The pipeline on a schedule, with a Prefect server where there is none yet."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.types.entrypoint import EntrypointType

from danceflow.errors import StageError, UsageError
from flows.processes import ProcessGroups

DEPLOYMENT = "scheduled"

_PORT = 4200
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 45.0


def serve_flow(flow: Flow[..., Any], root: Path, cron: str) -> None:
    """Run a flow on a schedule until this process is interrupted; one run at a time.

    Schedules are a matter of Prefect's server. The temporary one that a single flow run starts
    has none, so without ``PREFECT_API_URL`` a server is started along, with its page at
    http://127.0.0.1:4200.

    Args:
        flow: what to run; it takes ``root``.
        root: the checkout.
        cron: when, such as ``0 2 * * *``.

    Raises:
        UsageError: the schedule is none.
        StageError: the server does not start.
    """
    check_cron(cron)
    with _server(), _ending_runs():
        flow.serve(
            DEPLOYMENT,
            cron=cron,
            parameters={"root": str(root)},
            global_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            ),
            description=f"danceflow in {root}",
            entrypoint_type=EntrypointType.MODULE_PATH,
        )


def check_cron(cron: str) -> None:
    """Raise UsageError for a text that is no cron schedule."""
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise UsageError(f"{cron!r} is no cron schedule, such as '0 2 * * *'") from error


@contextlib.contextmanager
def _ending_runs() -> Iterator[None]:
    """End the flow runs that this process has started when the block is left.

    Prefect's runner leaves them to themselves when it is told to stop. Each ends its own stages.
    """
    try:
        yield
    finally:
        running = multiprocessing.active_children()
        for run in running:
            run.terminate()
        for run in running:
            run.join(_END_TIMEOUT_S)


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """Give a Prefect server within the block: the configured one, or one of our own."""
    if PREFECT_API_URL.value():
        yield
        return
    url = f"http://127.0.0.1:{_PORT}/api"
    if _answers(url):  # `danceflow ui` runs already
        with temporary_settings({PREFECT_API_URL: url}):
            yield
        return
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(_PORT)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    with ProcessGroups() as processes, processes.holding(process):
        try:
            _wait(process, url)
            with temporary_settings({PREFECT_API_URL: url}):
                yield
        finally:
            processes.stop()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise StageError(f"Prefect's server does not start at {url}")
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False
