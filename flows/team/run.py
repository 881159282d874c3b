"""A team's servers as a whole: up, down, watched, and who works with them."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import DanceflowError, UsageError
from danceflow.ops.files import exclusive
from danceflow.paths import Paths
from flows import dvc_remote
from flows.ports import HOST, is_free
from flows.team import processes
from flows.team.services import Service, services
from flows.team.settings import REMOTE, SERVICES, Team, load, prepare

_LOG = logging.getLogger(__name__)
_WATCH_S = 5.0


@dataclass(frozen=True)
class Standing:
    """How a service stands.

    Attributes:
        name: the service's.
        is_running: whether it has a process.
        is_ready: whether it answers.
        address: what a person or a program opens.
    """

    name: str
    is_running: bool
    is_ready: bool
    address: str


def up(
    root: Path, ports: Mapping[str, int] | None = None, *, with_model: bool = False
) -> tuple[Standing, ...]:
    """Return how the services stand, once all of them answer; those that do already stay.

    The DVC remote ``team`` is set in the checkout's own, uncommitted settings.

    Args:
        root: the checkout.
        ports: those that were asked for, by service.
        with_model: whether the model service is one of them.

    Raises:
        UsageError: a port is taken, or was asked for while its service runs on another.
        DanceflowError: a program is missing, or a service does not start.
    """
    with exclusive(Paths(root).team / "run"):
        team = _prepared(root, ports or {})
        found = services(team, with_model=with_model)
        started = {item.name: item for item in found}
        waiting: dict[str, subprocess.Popen[bytes]] = {}
        for service in found:
            for need in service.needs:
                _finish(started[need], waiting, team)
            if _is_there(service, team):
                continue
            _LOG.info("starting %s", service.name)
            waiting[service.name] = processes.start(service, team.folder, team.log(service.name))
        for service in found:
            _finish(service, waiting, team)
        dvc_remote.set_remote(root, REMOTE, team.remote, {"endpointurl": team.address("s3")})
    return standing(root)


def down(root: Path) -> tuple[str, ...]:
    """Return the names of the services that were ended, with every process they had started.

    Args:
        root: the checkout.
    """
    folder = Paths(root).team
    with exclusive(folder / "run"):
        ended = []
        for name in reversed(SERVICES):
            number = signal.SIGINT if name == "postgres" else signal.SIGTERM
            if processes.end(folder, name, number):
                _LOG.info("ended %s", name)
                ended.append(name)
    return tuple(ended)


def standing(root: Path) -> tuple[Standing, ...]:
    """Return how every service stands.

    Args:
        root: the checkout.

    Raises:
        UsageError: there are none yet.
    """
    team = load(root)
    return tuple(
        Standing(
            service.name,
            bool(processes.running(team.folder, service.name)),
            service.ready(),
            service.shown or f"{HOST}:{team.ports[service.name]}",
        )
        for service in services(team, with_model=True)
    )


def watch(root: Path, *, with_model: bool = False) -> None:
    """Start again whatever of the services has ended, until this process is told to end.

    Then the services are ended, too. Where this process is killed they stay, and the next call
    takes them over.

    Args:
        root: the checkout.
        with_model: whether the model service is one of them.
    """
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    while not told.wait(_WATCH_S):
        try:
            up(root, with_model=with_model)
        except DanceflowError as error:
            _LOG.error("%s", error)  # the next try may do better
    down(root)


def call(root: Path, command: Sequence[str]) -> int:
    """Return the exit code of a command that has the addresses and passwords of the services.

    Args:
        root: the checkout.
        command: the program and its arguments.

    Raises:
        UsageError: there are no services yet, or no such program.
    """
    team = load(root)
    try:
        return subprocess.call(list(command), env={**os.environ, **team.environment})
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror}") from error


def _prepared(root: Path, ports: Mapping[str, int]) -> Team:
    """Return the team; its services keep their ports as long as they run."""
    folder = Paths(root).team
    if ports and (folder / "ports.json").is_file():
        known = load(root).ports
        for name, port in ports.items():
            if known.get(name, port) != port and processes.running(folder, name):
                raise UsageError(
                    f"{name} runs on port {known[name]}: call `danceflow team down` first"
                )
    return prepare(root, ports)


def _is_there(service: Service, team: Team) -> bool:
    """Return whether a service runs and answers; one that does not answer is ended."""
    if processes.running(team.folder, service.name):
        if processes.answers_soon(service):
            if service.follow is not None:
                service.follow()
            return True
        _LOG.warning("%s runs but does not answer: it is started again", service.name)
        processes.end(team.folder, service.name, service.stop_signal)
    port = team.ports[service.name]
    if not is_free(port):
        raise UsageError(
            f"port {port} of {service.name} is taken by another program; end that, or choose "
            f"another: danceflow team up --port {service.name}=PORT"
        )
    return False


def _finish(service: Service, waiting: dict[str, subprocess.Popen[bytes]], team: Team) -> None:
    """Wait for a service that was started just now, and do what follows its start."""
    process = waiting.pop(service.name, None)
    if process is None:
        return
    processes.wait_until_ready(service, process, team.log(service.name))
    if service.follow is not None:
        service.follow()
