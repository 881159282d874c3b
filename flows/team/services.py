"""What a team's servers are: the command of each, its environment, and when it is ready."""

import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from danceflow.errors import DanceflowError
from danceflow.ops.files import write_text
from danceflow.ops.runtime import TELEMETRY_OFF
from flows.dvc_stage import stage_environment
from flows.ports import HOST
from flows.servers import prefect_server
from flows.team import postgres, storage
from flows.team.settings import BUCKET, DATABASES, POOL, USER, Team

_PYTHON = (sys.executable, "-m")
_REACH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Service:
    """A server that runs until it is told to end.

    Attributes:
        name: one of ``SERVICES``.
        command: what to run.
        environment: what it has beside this process's.
        ready: whether it answers.
        prepare: called before it is started.
        follow: called when it is ready, before others that need it are started.
        needs: which services must be ready before.
        account: as whom it runs.
        folder: where it is started.
        stop_signal: what lets it end in good order.
        shown: the address that a person opens; None: none.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    folder: Path
    prepare: Callable[[], None] | None = None
    follow: Callable[[], None] | None = None
    needs: tuple[str, ...] = ()
    account: postgres.Account = field(default_factory=postgres.Account)
    stop_signal: signal.Signals = signal.SIGTERM
    shown: str | None = None


def services(team: Team, *, with_model: bool) -> tuple[Service, ...]:
    """Return a team's services, each after those that it needs.

    Args:
        team: ports, passwords and places.
        with_model: whether the model service is one of them.

    Raises:
        DanceflowError: a program is not installed.
    """
    _require_packages()
    found = (_postgres(team), _storage(team), _mlflow(team), _prefect(team), _worker(team))
    return (*found, _model(team)) if with_model else found


def _postgres(team: Team) -> Service:
    data, password = team.data("postgres"), team.passwords["postgres"]

    def make_ready() -> None:
        postgres.create_cluster(data, USER, password)
        postgres.clear_lock(data)

    return Service(
        "postgres",
        postgres.command(data, HOST, team.ports["postgres"]),
        {},
        ready=lambda: postgres.answers(team.database("postgres"), password),
        prepare=make_ready,
        follow=lambda: postgres.create_databases(team.database("postgres"), password, DATABASES),
        account=postgres.account(),
        folder=data,
        stop_signal=signal.SIGINT,  # the end that does not wait for its clients
    )


def _storage(team: Team) -> Service:
    place = (str(team.ports["s3"]), str(team.data("s3")))

    def make_bucket() -> None:
        storage.create_bucket(BUCKET, team.storage_environment)

    return Service(
        "s3",
        (*_PYTHON, "flows.team.storage", *place),
        {**team.storage_environment, **_code()},
        ready=lambda: _answers(f"{team.address('s3')}/health"),
        follow=make_bucket,
        folder=team.data("s3"),
    )


def _mlflow(team: Team) -> Service:
    login = team.data("mlflow") / "login.ini"
    options = {
        "--host": HOST,
        "--port": str(team.ports["mlflow"]),
        "--backend-store-uri": team.database("mlflow"),
        "--artifacts-destination": f"s3://{BUCKET}/mlflow",
        "--app-name": "basic-auth",
        "--workers": "1",
    }

    def write_login() -> None:
        settings = {
            "default_permission": "EDIT",
            "database_uri": team.database("mlflow_auth"),
            # Each request would hash the password anew: a version has 200 files, one request each.
            "auth_cache_ttl_seconds": "60",
        }
        lines = [f"{name} = {value}" for name, value in settings.items()]
        write_text(login, "\n".join(["[mlflow]", *lines, ""]))

    return Service(
        "mlflow",
        (*_PYTHON, "mlflow", "server", *(word for pair in options.items() for word in pair)),
        {
            **TELEMETRY_OFF,
            **team.storage_environment,
            "PGPASSWORD": team.passwords["postgres"],
            "MLFLOW_AUTH_CONFIG_PATH": str(login),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": team.passwords["mlflow"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": team.passwords["mlflow_pages"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        },
        ready=lambda: _answers(f"{team.address('mlflow')}/health"),
        prepare=write_login,
        needs=("postgres", "s3"),
        folder=team.data("mlflow"),
        shown=team.address("mlflow"),
    )


def _prefect(team: Team) -> Service:
    server = prefect_server(team.ports["prefect"])
    address = team.address("prefect")
    database = team.database("prefect").replace("postgresql:", "postgresql+asyncpg:", 1)
    return Service(
        "prefect",
        (*server.command, "--host", HOST),
        {
            **TELEMETRY_OFF,
            **server.environment,
            "PREFECT_HOME": str(team.data("prefect")),
            "PREFECT_UI_API_URL": f"{address}/api",
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PGPASSWORD": team.passwords["postgres"],
            "PREFECT_SERVER_API_AUTH_STRING": team.environment["PREFECT_API_AUTH_STRING"],
        },
        ready=lambda: _answers(f"{address}/api/health"),
        needs=("postgres",),
        folder=team.data("prefect"),
        shown=address,
    )


def _worker(team: Team) -> Service:
    options = ("--pool", POOL, "--type", "process", "--name", "local", "--with-healthcheck")
    return Service(
        "worker",
        (*_PYTHON, "prefect", "--no-prompt", "worker", "start", *options),
        {
            **TELEMETRY_OFF,
            **stage_environment(os.environ),
            **team.environment,
            "PREFECT_WORKER_WEBSERVER_HOST": HOST,
            "PREFECT_WORKER_WEBSERVER_PORT": str(team.ports["worker"]),
        },
        ready=lambda: _answers(f"{team.address('worker')}/health"),
        needs=("mlflow", "prefect"),
        folder=team.root,
    )


def _model(team: Team) -> Service:
    place = ("--host", HOST, "--port", str(team.ports["model"]))
    return Service(
        "model",
        (*_PYTHON, "danceflow.cli", "serve-model", *place),
        {**TELEMETRY_OFF, **team.environment},
        ready=lambda: _answers(f"{team.address('model')}/healthz"),
        needs=("mlflow",),
        folder=team.root,
        shown=team.address("model"),
    )


def _code() -> dict[str, str]:
    """Return how a process in another folder finds the code that runs here."""
    root = str(Path(__file__).resolve().parents[2])
    places = [root, f"{root}/src", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(places)}


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=_REACH_TIMEOUT_S) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _require_packages() -> None:
    """Raise DanceflowError where a package of the extra ``team`` is missing."""
    from importlib.util import find_spec

    for name in ("moto", "boto3", "psycopg2", "flask_wtf", "dvc_s3"):
        if find_spec(name) is None:
            raise DanceflowError(
                f"the package {name} is missing: pip install 'danceflow[team]', which brings all "
                "that a team's servers need"
            )
