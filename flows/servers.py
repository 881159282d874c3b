"""How the servers of Prefect and MLflow are started: command and environment of each."""

import os
import subprocess
import sys
from dataclasses import dataclass, field

from danceflow.errors import StageError
from danceflow.ops.tracking import without_login

_ANSWER_S = 10.0
_UI_API_URL = ("PREFECT_UI_API_URL", "PREFECT_SERVER_UI_API_URL")


@dataclass(frozen=True)
class Server:
    """A command, and what its environment has beside this process's."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Return the server's process, the leader of a process group of its own.

        Args:
            quiet: drop what it prints to standard output.
        """
        return subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
            start_new_session=True,
        )


def require_api() -> None:
    """Check that the Prefect server that is configured answers; without one there is none to ask.

    Raises:
        StageError: it does not; a flow would end with Prefect's own traceback.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        return
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=_ANSWER_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StageError(
            f"Prefect at {without_login(url)} does not answer ({error}); start it, or unset "
            "PREFECT_API_URL (`prefect config unset PREFECT_API_URL`): a run then has a server of "
            "its own"
        ) from None


def prefect_server(port: int) -> Server:
    """Return Prefect's server with its page.

    The page asks port 4200 unless it is told where its server is. Slots of concurrency limits are
    leased in files: a server that was killed knows them when it is started again, and what is not
    renewed is free after five minutes.

    Args:
        port: of both.
    """
    environment = {
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        )
    }
    if not any(name in os.environ for name in _UI_API_URL):  # it may stand behind a proxy
        environment[_UI_API_URL[0]] = f"http://127.0.0.1:{port}/api"
    python = (sys.executable, "-m", "prefect")
    return Server((*python, "server", "start", "--port", str(port)), environment)


def mlflow_server(port: int, uri: str) -> Server:
    """Return MLflow's page over a store: one worker, and no processes for jobs that nobody gives.

    Args:
        port: of the page.
        uri: the store.
    """
    python = (sys.executable, "-m", "mlflow", "ui")
    return Server(
        (*python, "--backend-store-uri", uri, "--port", str(port), "--workers", "1"),
        {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
