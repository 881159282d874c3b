"""The service as a process: it listens, and on SIGTERM ends what it has begun."""

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.errors import DanceflowError, UsageError
from danceflow.ops.tracking import TrackingSettings
from danceflow.paths import Paths, find_root
from danceflow.registry.open import ALIASES, is_folder
from danceflow.service.limits import Limits
from danceflow.service.live import FolderSource, RegistrySource, Source
from danceflow.service.served import ServedLog
from danceflow.service.token import read_token, require_safe

if TYPE_CHECKING:
    import uvicorn

_LOG = logging.getLogger(__name__)
_BACKLOG = 256
_MAX_CONNECTIONS = 1024


@dataclass(frozen=True)
class Listening:
    """Where and how the service listens.

    Attributes:
        host: an address of this machine.
        port: 0: any that is free.
        drain_s: seconds in which requests may end after SIGTERM.
        poll_s: seconds between two looks for a newer model.
        window_s: seconds that a picture waits for others to be computed with.
        num_threads: of the network on a CPU; None: as torch chooses.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    drain_s: float = 60.0
    poll_s: float = 10.0
    window_s: float = 0.01
    num_threads: int | None = None


def serve_model(source: Source, listening: Listening, limits: Limits, log: ServedLog) -> None:
    """Answer requests until SIGTERM or an interrupt; those that have begun are answered.

    A folder's student is loaded first; the registry's while the service says that it is not ready.

    Args:
        source: where the student comes from.
        listening: where and how.
        limits: of requests.
        log: takes samples of what is asked.

    Raises:
        UsageError: the address cannot be had, or is open to others without a token.
        WeightsError: the folder holds no student.
    """
    token = read_token()
    require_safe(listening.host, token)
    bound = bind(listening.host, listening.port)
    with bound:
        import torch
        import uvicorn

        from danceflow.service.app import Service, build_app

        if listening.num_threads is not None:
            torch.set_num_threads(listening.num_threads)
        service = Service(
            source,
            limits,
            log,
            token=token,
            poll_s=listening.poll_s,
            window_s=listening.window_s,
        )
        if isinstance(source, FolderSource):
            service.live.look()
        config = uvicorn_config(build_app(service), listening.drain_s)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _LOG.info("listening at http://%s:%d", shown, port)
        if token is None:
            _LOG.info("without a token: everybody on this machine may ask")
        server = uvicorn.Server(config)
        server.run(sockets=[bound])
        if not server.started:
            raise DanceflowError("the service did not start; the lines above say why")


def find_source(
    text: str, settings: TrackingSettings | None, device: str, together: int | None
) -> Source:
    """Return where a student comes from, as ``--from`` says it.

    Args:
        text: a folder, an alias, ``runs:/...`` or ``models:/...``.
        settings: where runs are recorded; None: only a folder can be served.
        device: where to compute.
        together: rows of a batch, as ``Student`` takes it.

    Raises:
        UsageError: a store is needed and there is none.
    """
    if is_folder(text):
        return FolderSource(Path(text), device, together)
    if settings is None or not settings.enabled:
        raise UsageError(f"{text}: tracking is off, so there is no store to look in")
    if text in ALIASES:
        text = f"models:/{settings.registered_model}@{text}"
    return RegistrySource(settings, text, device, together)


def sample_folder_of(given: Path | None) -> Path:
    """Return where samples are kept: the folder given, or that of the checkout around here.

    Outside of a checkout it lies in the working folder.
    """
    if given is not None:
        return given
    try:
        return Paths(find_root(Path.cwd())).served
    except UsageError:
        return Paths(Path.cwd()).served


def uvicorn_config(app: Any, drain_s: float) -> "uvicorn.Config":
    """Return how an application is run here: quietly, and for so many connections.

    Args:
        app: what answers.
        drain_s: seconds in which requests may end after SIGTERM.
    """
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(drain_s)),
        limit_concurrency=_MAX_CONNECTIONS,
    )


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; taken before the model is loaded, so that errors come early.

    Raises:
        UsageError: the address cannot be had.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = infos[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(_BACKLOG)
    except OSError as error:
        raise UsageError(f"{host} port {port}: cannot listen there: {error.strerror}") from error
    return bound
