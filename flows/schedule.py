"""The pipeline on a schedule, with a Prefect server where there is none yet."""

import contextlib
import fcntl
import logging
import multiprocessing
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import (
    ConcurrencyLimitConfig,
    ConcurrencyLimitStrategy,
    State,
    StateType,
)
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from danceflow.errors import StageError, UsageError
from danceflow.ops.files import fingerprint
from danceflow.paths import Paths
from flows.processes import ProcessGroups
from flows.servers import prefect_server

_PORT = 4200
_START_TIMEOUT_S = 120.0
_END_TIMEOUT_S = 45.0
_HOLDING_A_SLOT = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

_LOG = logging.getLogger(__name__)


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
        UsageError: the schedule is none, or the checkout has one that runs already.
        StageError: the server does not start.
    """
    check_cron(cron)
    name = deployment_name(root)
    with _only_one(root), _server(), _ending_runs():
        _end_dead_runs(f"{flow.name}/{name}")
        flow.serve(
            name,
            cron=cron,
            parameters={"root": str(root)},
            global_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            ),
            description=f"danceflow in {root}",
            entrypoint_type=EntrypointType.MODULE_PATH,
        )


def deployment_name(root: Path) -> str:
    """Return the name of a checkout's own deployment.

    Args:
        root: the checkout. Two checkouts on one server with one name would take each other's
            schedule, parameters and slot.
    """
    return f"scheduled-{fingerprint(str(root.resolve()))[:8]}"


def check_cron(cron: str) -> None:
    """Raise UsageError for a text that is no cron schedule."""
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise UsageError(f"{cron!r} is no cron schedule, such as '0 2 * * *'") from error


@contextlib.contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Keep other schedules of the checkout out within the block.

    Raises:
        UsageError: there is one.
    """
    file = Paths(root).scratch / "serve.lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UsageError(
                f"{root} has a schedule already: process {lock.read().strip()} runs `danceflow "
                "serve`; end it first"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _end_dead_runs(deployment: str) -> None:
    """Mark the runs that a killed schedule left as crashed, and free the slot that they hold.

    A run that was killed together with the server holds its slot for ever: all later runs would
    wait for it. No run of the checkout's deployment is alive before its only schedule starts.

    Args:
        deployment: its name with that of its flow.
    """
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            return
        dead = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[found.id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_HOLDING_A_SLOT))),
            )
        )
        for run in dead:
            _LOG.warning("run %s was killed with its schedule; it counts as crashed", run.name)
            state: State[Any] = Crashed(message="the schedule that ran it was killed")
            client.set_flow_run_state(run.id, state, force=True)
        limit = client.read_deployment_by_name(deployment).global_concurrency_limit
        if limit is not None and limit.active_slots:
            _LOG.warning("%s: %g slots that nobody holds are freed", deployment, limit.active_slots)
            client.update_global_concurrency_limit(
                limit.name, GlobalConcurrencyLimitUpdate(active_slots=0)
            )


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
    process = prefect_server(_PORT).start(quiet=True)
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
