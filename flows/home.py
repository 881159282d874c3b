"""Where Prefect lives: with the server that is configured, else in the project itself.

The project's own database is ``.prefect`` of the main checkout, beside ``mlflow.db``; that of the
user, with the runs of other projects, is left alone. One server at a time works on it: the first
command that needs one starts it, others join, and it ends with the last of them. One that is killed
is started again, and whoever asks it waits.
"""

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import prefect.context
from prefect.settings import PREFECT_API_URL, get_current_settings

from danceflow.errors import StageError, UsageError
from danceflow.ops.files import disk_errors, exclusive, write_json
from danceflow.ops.processes import is_running, process_mark
from danceflow.ops.runtime import require_disk_space
from danceflow.ops.tracking import main_checkout, without_login
from danceflow.paths import Paths
from flows.ports import free_ports, is_free
from flows.servers import prefect_server, require_api

PORT = 4200
"""Where Prefect's page is looked for first."""

HEARTBEAT_S = 30
"""How often a flow says that it is alive; Prefect takes no less."""

RETRIES = 4
"""How often a server that is configured and away is asked again: for half a minute in all."""

_PATIENCE_S = {True: 60.0, False: 30.0}
"""How long a server is waited for; one of the project's own is being started again."""

_AWAY = (502, 503, 504)
"""What a proxy answers for a server that is away."""

_KEEPER = Path(__file__).with_name("keeper.py")
_USERS = "DANCEFLOW_PREFECT_USERS"
_START_TIMEOUT_S = 120.0
_ROOM_BYTES = 20 << 20
"""What the database of a run and its logs take."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Home:
    """The Prefect server that a command works with.

    Attributes:
        url: of its API.
        is_alive: whether it is still there; one that is configured is taken to be.
    """

    url: str
    is_alive: Callable[[], bool]

    @property
    def page(self) -> str:
        """The address of its page."""
        return (get_current_settings().ui_url or self.url.removesuffix("/api")).rstrip("/")


@contextlib.contextmanager
def at_home(root: Path, port: int | None = None, *, is_asked: bool = True) -> Iterator[Home]:
    """Let Prefect work within the block with the configured server, else with the project's own.

    Args:
        root: the checkout.
        port: of the project's server, if this is what starts it; None: any that is free.
        is_asked: whether the block needs its answers; if not, a configured one that is away is
            a warning.

    Raises:
        UsageError: the port is taken.
        StageError: the server does not start, or the one that is configured does not answer; or it
            went away within the block and did not come back.
    """
    beats = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}
    if url := PREFECT_API_URL.value():
        try:
            require_api()
        except StageError as error:
            if is_asked:
                raise
            _LOG.warning("%s", error)
        patience = {}
        if "max_retries" not in get_current_settings().client.model_fields_set:
            patience["PREFECT_CLIENT_MAX_RETRIES"] = str(RETRIES)
        with _surroundings({**beats, **patience}), _away_is_one_error(url):
            yield Home(url, lambda: True)
        return
    paths = Paths(main_checkout(root))
    paths.prefect.mkdir(mode=0o700, exist_ok=True)
    users = paths.prefect / "users.lock"
    own = {
        **beats,
        "PREFECT_HOME": str(paths.prefect),
        # Other settings than the place stay the user's.
        "PREFECT_PROFILES_PATH": str(get_current_settings().profiles_path),
        _USERS: str(users),
    }
    with _surroundings(own), prefect.context.root_settings_context(), _used(users):
        with exclusive(paths.prefect / "server"):
            home = _running(paths.prefect) or _started(paths.prefect, port)
        with (
            _surroundings({"PREFECT_API_URL": home.url}),
            prefect.context.root_settings_context(),
            _away_is_one_error(home.url),
        ):
            yield home


def stay_home() -> None:
    """Keep the project's server as long as this process lives.

    A flow that a schedule has started tells the server of its end, also when it ends because the
    schedule was killed.
    """
    if users := os.environ.get(_USERS):
        _STAYING.enter_context(_used(Path(users)))


def is_own_server() -> bool:
    """Return whether Prefect works with the project's own server."""
    return _USERS in os.environ


def wait_for_server() -> None:
    """Return when the server answers, or it was waited for long enough.

    Prefect's client asks again only where it had an answer before: one that is new, as for every
    artifact, gives up at once.
    """
    url = PREFECT_API_URL.value()
    deadline = time.monotonic() + _PATIENCE_S[is_own_server()]
    while url and not answers(url.rstrip("/")) and time.monotonic() < deadline:
        time.sleep(0.5)


_STAYING = contextlib.ExitStack()


@contextlib.contextmanager
def _used(users: Path) -> Iterator[None]:
    """Count as a user of the server, until the block or this process ends."""
    with users.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # a server that is about to end is waited for
        yield


@contextlib.contextmanager
def _away_is_one_error(url: str) -> Iterator[None]:
    """Raise ``StageError`` where Prefect's client gives a server up within the block."""
    try:
        yield
    except (httpx.TransportError, httpx.HTTPStatusError) as error:
        reason = str(error) or type(error).__name__
        is_away = True
        if isinstance(error, httpx.HTTPStatusError):
            code = error.response.status_code
            reason, is_away = f"HTTP {code}", code in _AWAY
        if not is_away or not str(error.request.url).startswith(url.rstrip("/")):
            raise
        raise StageError(
            f"Prefect at {without_login(url)} went away ({reason}); what the stages have made is "
            "kept, and the same command goes on with it"
        ) from error


def _running(folder: Path) -> Home | None:
    """Return the project's server if there is one; one that was killed is waited for."""
    try:
        record = json.loads((folder / "server.json").read_text(encoding="utf-8"))
        url, keeper = str(record["url"]), str(record["keeper"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    deadline = time.monotonic() + _START_TIMEOUT_S
    while is_running(keeper) and time.monotonic() < deadline:
        if answers(url):
            return Home(url, lambda: is_running(keeper))
        time.sleep(0.2)
    return None


def _started(folder: Path, port: int | None) -> Home:
    """Start the project's server and return it."""
    number = next(free_ports(1)) if port is None else port
    if port is not None and not is_free(port):
        raise UsageError(f"port {port} is taken; choose another one for Prefect")
    require_disk_space(folder, _ROOM_BYTES)
    server = prefect_server(number)
    log = folder / "server.log"
    with disk_errors(log):
        told = log.open("wb")
    with told:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER), str(folder / "users.lock"), *server.command],
            env={**os.environ, **server.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{number}/api"
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not answers(url):
        has_ended = keeper.poll() is not None
        if has_ended or time.monotonic() > deadline:
            keeper.terminate()
            require_disk_space(folder, _ROOM_BYTES)  # without room the log cannot say why
            if has_ended:
                raise StageError(f"Prefect's server does not start at {url}; {log} says why")
            raise StageError(
                f"Prefect's server does not answer at {url} within {_START_TIMEOUT_S:.0f} s; the "
                f"machine may be too busy: try again ({log} has what it said, if anything)"
            )
        time.sleep(0.2)
    mark = process_mark(keeper.pid)
    write_json(folder / "server.json", {"url": url, "keeper": mark})
    _LOG.info("Prefect: %s", url.removesuffix("/api"))
    return Home(url, lambda: keeper.poll() is None)


def answers(url: str) -> bool:
    """Return whether Prefect's API answers.

    Args:
        url: of the API.
    """
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def usual_port() -> int | None:
    """Return the port at which Prefect's page is looked for; None where it is taken."""
    return PORT if is_free(PORT) else None


@contextlib.contextmanager
def _surroundings(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables within the block, for this process's Prefect and for those that it starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    prefect.context.refresh_global_settings_context()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        prefect.context.refresh_global_settings_context()
