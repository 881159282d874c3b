"""A real MLflow server with logins, which can be killed and started again on its port."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

USER, PASSWORD = "admin", "pl@nted/s3cret:word"
QUOTED = "pl%40nted%2Fs3cret%3Aword"


class Server:
    """MLflow's server with basic auth on loopback."""

    def __init__(self, folder: Path) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.folder = folder
        config = folder / "auth.ini"
        config.write_text(
            f"[mlflow]\ndefault_permission = READ\nadmin_username = {USER}\n"
            f"database_uri = sqlite:///{folder}/auth.db\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 600\n"  # a password costs half a second to check
        )
        self.environment = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Without the login."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def uri(self) -> str:
        """As a user writes it, with the login."""
        return f"http://{USER}:{QUOTED}@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Return once it answers."""
        if self.process is not None:
            return
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
                *("--port", str(self.port), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
                *("--artifacts-destination", str(self.folder / "artifacts")),
            ],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def kill(self) -> None:
        """Kill it with all its workers; nothing is told to anybody."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def _running(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Server]:
    """One start for all tests of a process."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        running = Server(folder)
        yield running
        running.kill()


@pytest.fixture
def server(_running: Server) -> Server:
    """It answers, whatever the test before did to it."""
    _running.start()
    return _running


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test logs in by itself."""
    from danceflow.ops.tracking import login

    monkeypatch.setattr(login, "_LOGINS", {})
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "")
