"""The student that answers: opened from a folder, or followed in the registry.

A new champion is loaded beside the present one, makes a picture as a trial, and takes its place.
Requests keep the student that they came in with. Where the new one cannot be loaded, or the
registry does not answer, the present one stays, and it is tried again.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from danceflow.errors import DanceflowError
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.registry.open import Entry, find_entry, folder_digest, open_entry, open_folder
from danceflow.registry.student import Row, Student

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A student and where it comes from.

    Attributes:
        student: ready to use.
        name: of the registered model, or of the folder.
        version: in the registry; 0: it comes from a folder.
        digest: SHA-256 of its files.
    """

    student: Student
    name: str
    version: int
    digest: str

    def described(self) -> dict[str, str | int]:
        """Return what answers say of the model."""
        return {"name": self.name, "version": self.version, "digest": self.digest}


class Source(Protocol):
    """Where a student comes from."""

    def newest(self) -> str:
        """Return what is to be served now, in a word that changes with it."""
        ...

    def open(self) -> Served:
        """Return it, loaded."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """A student in a folder; it is opened once."""

    folder: Path
    device: str
    together: int | None = None

    def newest(self) -> str:
        """Return the folder's name: what is in it is not looked at again."""
        return str(self.folder)

    def open(self) -> Served:
        """Return the student.

        Raises:
            WeightsError: it is missing or damaged.
        """
        student = open_folder(self.folder, None, self.device, self.together)
        return Served(student, self.folder.resolve().name, 0, folder_digest(self.folder))


@dataclass
class RegistrySource:
    """An entry of the model registry, such as the champion, whatever version it is."""

    settings: TrackingSettings
    source: str
    device: str
    together: int | None = None
    _found: Entry | None = field(default=None, init=False)

    def newest(self) -> str:
        """Return the version and the digest of the entry of now.

        Raises:
            TrackingError: the registry does not answer, or has no such entry.
        """
        entry = find_entry(open_store(self.settings), self.source)
        self._found = entry
        return f"{entry.name}/{entry.version}/{entry.digest}"

    def open(self) -> Served:
        """Return the version that ``newest`` found, loaded.

        Raises:
            TrackingError: the registry does not answer.
            WeightsError: what comes is not what was registered.
        """
        store = open_store(self.settings)
        entry = self._found or find_entry(store, self.source)
        student = open_entry(store, entry, self.device, self.together)
        return Served(student, entry.name, entry.version, entry.digest)


class Live:
    """The student of now, and the thread that looks for a newer one."""

    def __init__(
        self,
        source: Source,
        poll_s: float,
        on_change: Callable[[Served], None],
        on_failure: Callable[[], None],
    ) -> None:
        """Take the source; nothing is loaded yet.

        Args:
            source: where to look.
            poll_s: seconds between two looks.
            on_change: told of every student that begins to serve.
            on_failure: told of every look that failed.
        """
        self._source = source
        self._poll_s = poll_s
        self._on_change = on_change
        self._on_failure = on_failure
        self._served: Served | None = None
        self._word: str | None = None
        self._problem = "the model is being loaded"
        self._is_first_look = True
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="danceflow-live", daemon=True)

    @property
    def served(self) -> Served | None:
        """The student of now; None: none is loaded yet."""
        return self._served

    @property
    def is_loading(self) -> bool:
        """Whether the first look is under way: there is no student yet, and nothing is wrong."""
        return self._is_first_look

    @property
    def problem(self) -> str:
        """Why there is none, or no newer one; empty where all is well."""
        return self._problem

    def look(self) -> None:
        """Serve what the source has now, if that is another student.

        Raises:
            DanceflowError: it cannot be had; the present one stays.
        """
        word = self._source.newest()
        if word != self._word:
            served = self._source.open()
            _try_out(served.student)
            self._served, self._word = served, word
            self._on_change(served)
            _LOG.info("serving %s version %d (%s)", served.name, served.version, served.digest[:12])
        self._problem, self._is_first_look = "", False

    def start(self) -> None:
        """Begin to look, now and then, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a load that has begun is not waited for."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def _follow(self) -> None:
        while not self._end.is_set():
            try:
                self.look()
            except DanceflowError as error:
                self._failed(str(error))
            except Exception as error:  # whatever a store or a damaged model raises
                _LOG.debug("raised here", exc_info=True)
                self._failed(f"{type(error).__name__}: {error}")
            self._end.wait(self._poll_s)

    def _failed(self, reason: str) -> None:
        if reason != self._problem:
            stays = "none is served yet" if self._served is None else "the present one stays"
            _LOG.warning("no newer model: %s; %s", reason, stays)
        self._problem, self._is_first_look = reason, False
        self._on_failure()


def _try_out(student: Student) -> None:
    """Make one picture: what cannot shall not take the place of what can."""
    student.make([Row("a picture", None, 0, 0, student.image_sizes[0])], num_steps=1)
