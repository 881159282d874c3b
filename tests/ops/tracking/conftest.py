"""A real MLflow server with logins: killed and started again, or cut off the network."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.ports import free_ports


class Line(socketserver.ThreadingTCPServer):
    """The line to a server: whatever comes to its port goes there and back, until it is cut."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, server_port: int) -> None:
        self.server_port, self.open = server_port, set[socket.socket]()
        super().__init__(("127.0.0.1", port), None)  # type: ignore[arg-type]
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def finish_request(self, request, client_address) -> None:
        try:
            there = socket.create_connection(("127.0.0.1", self.server_port))
        except OSError:
            return  # nobody is there
        ends = (request, there)
        self.open.update(ends)
        back = threading.Thread(target=_carry, args=(there, request), daemon=True)
        back.start()
        _carry(request, there)
        back.join()
        self.open.difference_update(ends)

    def cut(self) -> None:
        self.shutdown()
        self.server_close()
        for end in list(self.open):
            _close(end)


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _close(source)
    _close(target)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class Server:
    """MLflow's server with basic auth on loopback."""

    user, password, quoted = "admin", "pl@nted/s3cret:word", "pl%40nted%2Fs3cret%3Aword"

    def __init__(self, folder: Path) -> None:
        self.port, self._port = free_ports(2)
        self.line: Line | None = None
        self.folder = folder
        config = folder / "auth.ini"
        config.write_text(
            f"[mlflow]\ndefault_permission = READ\nadmin_username = {self.user}\n"
            f"database_uri = sqlite:///{folder}/auth.db\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 600\n"  # a password costs half a second to check
        )
        self.environment = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
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
        return f"http://{self.user}:{self.quoted}@127.0.0.1:{self.port}"

    def away(self) -> None:
        """Cut it off: nothing reaches it, and what was on its way is lost."""
        if self.line is not None:
            self.line.cut()
            self.line = None

    def back(self) -> None:
        """Let it be reached again."""
        if self.line is None:
            self.line = Line(self.port, self._port)

    def start(self) -> None:
        """Return once it answers."""
        self.back()
        if self.process is not None:
            return
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
                *("--port", str(self._port), "--workers", "1"),
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
        running.away()


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
