"""The flows as Prefect's deployments: of one checkout on this machine, or of a team's server."""

import asyncio
import contextlib
import fcntl
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed
from prefect.types.entrypoint import EntrypointType

from danceflow.errors import StageError, UsageError
from danceflow.ops.files import fingerprint
from danceflow.paths import Paths
from flows import automations, deploy_command
from flows.home import at_home, usual_port

POOL = "danceflow"
"""The work pool of ``prefect.yaml``; it runs one flow at a time, as its checkout is one."""

_END_TIMEOUT_S = 45.0
_ALIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)

_LOG = logging.getLogger(__name__)


def serve(root: Path, cron: str, port: int | None = None) -> None:
    """Run the pipeline on a schedule, and what is asked for on Prefect's page, until interrupted.

    There are three deployments: by the schedule, on demand, and of sweeps. The checkout has one
    run at a time; what is due meanwhile waits its turn. A run that was killed goes on.

    Args:
        root: the checkout.
        cron: when, such as ``0 2 * * *``.
        port: of Prefect's page, where no server is configured; None: the usual one if it is free.

    Raises:
        UsageError: the schedule is none, the checkout has one that runs already, or the port is
            taken.
        StageError: the server does not start.
    """
    from flows.pipeline import run_pipeline
    from flows.sweep import run_sweep

    check_cron(cron)
    served: dict[str, tuple[Flow[..., Any], str | None]] = {
        "scheduled": (run_pipeline, cron),
        "on-demand": (run_pipeline, None),
        "sweep": (run_sweep, None),
    }
    with _only_one(root), at_home(root, port or usual_port()) as home, _ending_runs():
        runner = _Runner(name=deployment_name("danceflow", root), limit=1)
        made = [
            runner.add_flow(
                flow,
                name=deployment_name(name, root),
                cron=when,
                parameters={"root": str(root)},
                description=f"{flow.description}\n\nIn {root}, one run at a time.",
                tags=["danceflow"],
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
            for name, (flow, when) in served.items()
        ]
        logging.getLogger("prefect.runner").addFilter(_Queue())
        own = [item for item in made if isinstance(item, UUID)]
        automations.set_up()
        _end_dead_runs(own)
        _LOG.info("runs at %r; start others at %s/deployments", cron, home.page)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` lets it be ignored
        try:
            asyncio.run(runner.start())
        except KeyboardInterrupt:
            _LOG.info("interrupted: the schedule ends")


def deploy(root: Path) -> None:
    """Make the deployments of ``prefect.yaml`` on the configured server, and all that they need.

    These are the work pool, with room for one run, and the automations. Called again, it brings
    them up to date.

    Args:
        root: the checkout that the workers shall use.

    Raises:
        UsageError: no server is configured.
        StageError: Prefect refuses.
    """
    from prefect.workers.process import ProcessWorker

    if not PREFECT_API_URL.value():
        raise UsageError(
            "no Prefect server is configured: set PREFECT_API_URL (`prefect config set "
            "PREFECT_API_URL=http://HOST:4200/api`); on one machine `danceflow serve` needs none"
        )
    with at_home(root), get_client(sync_client=True) as client:
        try:
            client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=1))
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(
                    name=POOL,
                    type=ProcessWorker.type,
                    base_job_template=ProcessWorker.get_default_base_job_template(),
                    concurrency_limit=1,
                )
            )
        automations.set_up()
        done = subprocess.run(
            [sys.executable, "-m", "flows.deploy_command", "--no-prompt", "deploy", "--all"],
            cwd=root,
            env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            told = (done.stdout + done.stderr).strip()
            raise StageError(f"prefect deploy --all in {root}: {told}")


class _Runner(Runner):
    """Prefect's, which ends on SIGTERM as on Ctrl-C: an exit out of its loop prints tracebacks.

    What it makes is closed from the first moment: somebody may ask for a run right then.
    """

    async def aadd_deployment(self, deployment: RunnerDeployment) -> UUID:
        """Make a deployment whose server refuses parameters that its flow does not have."""
        schema = deployment._parameter_openapi_schema
        deployment._parameter_openapi_schema = deploy_command.closed(schema)
        return await super().aadd_deployment(deployment)

    def handle_sigterm(self, *_: Any, **__: Any) -> None:
        """Let the loop end in order."""
        signal.raise_signal(signal.SIGINT)


class _Queue(logging.Filter):
    """Tells how many runs wait when that changes; Prefect tells it with every look, as skipped."""

    _told: object = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is told."""
        if "scheduled runs skipped" not in str(record.msg):
            return True
        is_news, self._told = record.args != self._told, record.args
        record.msg = "%d runs wait until the checkout is free"
        return is_news


def deployment_name(name: str, root: Path) -> str:
    """Return the name of a checkout's own deployment.

    Args:
        name: what it does.
        root: the checkout. Two checkouts on one server with one name would take each other's
            schedule and parameters.
    """
    return f"{name}-{fingerprint(str(root.resolve()))[:8]}"


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


def _end_dead_runs(deployments: list[UUID]) -> None:
    """Mark the runs that a killed schedule left as crashed; an automation lets them go on.

    No run of the checkout's deployments is alive before its only schedule starts.

    Args:
        deployments: of the checkout.
    """
    with get_client(sync_client=True) as client:
        dead = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=deployments),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_ALIVE))),
            )
        )
        for run in dead:
            _LOG.warning("run %s was killed with its schedule; it counts as crashed", run.name)
            state: State[Any] = Crashed(message="the schedule that ran it was killed")
            client.set_flow_run_state(run.id, state, force=True)


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
