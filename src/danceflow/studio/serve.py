"""The studio as a process: what it shows comes from here or from a service, until it is told."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import DanceflowError, UsageError
from danceflow.ops.tracking import TrackingSettings
from danceflow.paths import Paths, find_root
from danceflow.registry.open import is_folder
from danceflow.service.limits import Limits
from danceflow.service.live import Source
from danceflow.service.serve import bind, find_source, uvicorn_config
from danceflow.service.served import ServedLog
from danceflow.service.token import is_loopback, read_token, require_safe
from danceflow.studio.models import Choice, LocalModels, Models, Teachers

_LOG = logging.getLogger(__name__)
_POLL_S, _WINDOW_S, _DRAIN_S = 10.0, 0.01, 5


@dataclass(frozen=True)
class Place:
    """Where the studio listens, and where its tree lies.

    Attributes:
        host: an address of this machine.
        port: 0: any that is free.
        folder: of the tree.
    """

    host: str
    port: int
    folder: Path


def serve_studio(
    place: Place,
    students: Sequence[str],
    url: str | None,
    settings: TrackingSettings | None,
    device: str,
) -> None:
    """Show the studio until SIGTERM or an interrupt.

    Args:
        place: where it listens and keeps its tree.
        students: to choose from, the usual one first.
        url: of a model service, asked in place of students here; None: they are loaded here.
        settings: where runs are recorded; None: only folders can be opened.
        device: where to compute.

    Raises:
        UsageError: the address cannot be had, is open to others without a token, or a student
            needs a store and there is none.
        WeightsError: a folder holds no student.
    """
    token = read_token()
    require_safe(place.host, token)
    root = _root()
    with bind(place.host, place.port) as bound:
        import uvicorn

        from danceflow.service.app import Service
        from danceflow.studio.app import Studio, build_studio
        from danceflow.studio.tree import Tree
        from danceflow.studio.words import find_words

        tree = Tree(place.folder)
        limits = Limits()
        service = None
        if url is not None:
            from danceflow.studio.remote import RemoteModels

            models: Models = RemoteModels(url)
        else:
            sources = {text: find_source(text, settings, device, None) for text in students}
            first = students[0]
            service = Service(
                sources[first],
                limits,
                ServedLog(place.folder, 0.0),
                token=token,
                poll_s=_POLL_S,
                window_s=_WINDOW_S,
            )
            if is_folder(first):
                service.live.look()
            models = LocalModels(
                Choice(first, first, "Students"),
                service.live,
                service.batcher,
                sources,
                Registered(settings, device, root),
                _teachers(root),
            )
        studio = Studio(tree, models, limits, find_words(root))
        is_open = not is_loopback(place.host)
        app = build_studio(studio, service, token, is_open=is_open)
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _LOG.info("the studio is at http://%s:%d", shown, port)
        _LOG.info("its pictures are kept in %s", place.folder)
        server = uvicorn.Server(uvicorn_config(app, _DRAIN_S))
        server.run(sockets=[bound])
        if not server.started:
            raise DanceflowError("the studio did not start; the lines above say why")


@dataclass(frozen=True)
class Registered:
    """The students that need not be named: versions of the registry, and the one that was made.

    Attributes:
        settings: where runs are recorded; None: there is no registry.
        device: where to compute.
        root: of the checkout; None: there is none.
    """

    settings: TrackingSettings | None
    device: str
    root: Path | None

    def __call__(self) -> list[tuple[Choice, Source]]:
        """Return them, aliases first.

        Raises:
            TrackingError: the registry does not answer.
        """
        found: list[tuple[Choice, Source]] = []
        if self.root is not None and Paths(self.root).student.is_dir():
            text = "models/student"
            source = find_source(str(Paths(self.root).student), None, self.device, None)
            found.append((Choice(text, text, "Students"), source))
        if self.settings is None or not self.settings.enabled:
            return found
        from danceflow.ops.tracking import open_store
        from danceflow.registry.open import registered

        name = self.settings.registered_model
        versions = registered(open_store(self.settings), name)
        for number, aliases in versions.items():
            found += [
                self._entry(alias, f"models:/{name}@{alias}", f"{alias} (v{number})")
                for alias in aliases
            ]
        for number in versions:
            text = f"models:/{name}/{number}"
            found.append(self._entry(text, text, f"{name} v{number}"))
        return found

    def _entry(self, key: str, text: str, label: str) -> tuple[Choice, Source]:
        source = find_source(text, self.settings, self.device, None)
        return Choice(key, label, "Registry"), source


def tree_folder(given: Path | None) -> Path:
    """Return where the tree is kept: the folder given, or that of the checkout around here.

    Outside of a checkout it lies in the working folder.
    """
    if given is not None:
        return given
    root = _root()
    return Paths(Path.cwd() if root is None else root).studio


def _teachers(root: Path | None) -> Teachers | None:
    if root is None:
        return None
    from danceflow.params.read import load_params

    paths = Paths(root)
    return Teachers(paths.teachers, load_params(paths.params))


def _root() -> Path | None:
    try:
        return find_root(Path.cwd())
    except UsageError:
        return None
