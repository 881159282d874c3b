"""The history of the champion: a log in the store that many append to and nobody rewrites.

MLflow changes nothing only if it still is as it was, so an alias cannot be taken by one of two. But
it numbers the versions of a model, each number once, whoever asks. The log is therefore a second
registered model, ``<name>-history``: an entry is a version of it and names the entry that it
follows. One that does not follow the last valid entry came too late and is none. The last entry is
also the lease of who wrote it: until it is marked as done, nobody else moves an alias, unless its
writer is gone.
"""

import contextlib
import json
import random
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from getpass import getuser
from typing import Any, Literal, TypeVar

from danceflow.errors import DanceflowError, TrackingError, UsageError
from danceflow.ops.processes import is_running, process_mark
from danceflow.ops.tracking import Store, known

Action = Literal["promote", "rollback", "moved by hand", "mended", "refused"]

MAX_REASON = 1000
"""Characters of a reason, and of a name."""

_LEGACY_TAG = "promotion."  # of the registered model, as entries were kept once
_SUFFIX = "-history"
_SOURCE = "danceflow:/history"  # a version must have a source; an entry has nothing to load
_FOLLOWS, _CHANGE, _OWNER, _DONE = "follows", "change", "owner", "done"
_NUM_TRIES = 12

T = TypeVar("T")


class ConflictError(DanceflowError):
    """Another change of the champion came first."""


@dataclass(frozen=True)
class Approval:
    """What a person answered who was asked.

    Attributes:
        by: who.
        time: when, UTC, ISO 8601.
        reason: why.
    """

    by: str
    time: str
    reason: str


@dataclass(frozen=True)
class Change:
    """One change of the champion, or a promotion that a person refused.

    Attributes:
        action: what was done. ``moved by hand``: somebody else moved the alias, in MLflow's page
            perhaps, and it was seen at ``time``. ``mended``: what a process began that was killed
            was done to its end. ``refused``: the champion stays.
        version: the champion from then on, or the version that was refused; None: there is none.
        previous: the champion before; None when there was none.
        time: when, UTC, ISO 8601.
        user: who called the command.
        reason: why, in their words.
        approval: what a person answered who was asked before; None: nobody was.
        withdraws: versions that no scheduled run shall promote from then on.
        mends: the action that was done to its end; None: this is no mending.
    """

    action: Action
    version: int | None
    previous: int | None
    time: str
    user: str
    reason: str = ""
    approval: Approval | None = None
    withdraws: tuple[int, ...] = ()
    mends: Action | None = None

    @staticmethod
    def now(
        action: Action,
        version: int | None,
        previous: int | None,
        reason: str = "",
        approval: Approval | None = None,
        withdraws: tuple[int, ...] = (),
    ) -> "Change":
        """Return a change that this user makes now."""
        return Change(action, version, previous, now(), getuser(), reason, approval, withdraws)

    @property
    def kind(self) -> Action:
        """What it does to the line of succession: its action, or the one that it mends."""
        return self.mends or self.action

    def __str__(self) -> str:
        """Return the change as a sentence."""
        before = "no champion" if self.previous is None else f"version {self.previous}"
        if self.action == "refused":
            return f"refused: version {self.version} does not become champion ({before} stays)"
        what = f"mended ({self.mends})" if self.mends else self.action
        after = "no version" if self.version is None else f"version {self.version}"
        return f"{what}: {after} is the champion (before: {before})"

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "withdraws": list(self.withdraws)}

    @staticmethod
    def of_json(text: str) -> "Change":
        """Return the change that a text holds; older entries know less.

        Raises:
            ValueError: it holds none.
        """
        try:
            data = json.loads(text)
            if data.get("approval"):
                data["approval"] = Approval(**data["approval"])
            data["withdraws"] = tuple(data.get("withdraws", ()))
            return Change(**data)
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Entry:
    """A valid entry of the log.

    Attributes:
        number: its number in the store; 0: it is older than the log.
        change: what it says.
        done: whether the aliases were brought to what it says.
        owner: who wrote it.
    """

    number: int
    change: Change
    done: bool
    owner: str = ""


class History:
    """The log of one registered model."""

    def __init__(self, store: Store, name: str) -> None:
        """Take the model; nothing is made before there is something to write."""
        self._store = store
        self._name = name
        self.name = f"{name}{_SUFFIX}"

    def entries(self) -> tuple[Entry, ...]:
        """Return the valid entries, the first one first.

        Raises:
            TrackingError: an entry cannot be read.
            MlflowException: the registry does not answer.
        """
        model = known(lambda: self._store.client.get_registered_model(self._name))
        kept = {} if model is None else model.tags
        old = sorted(name for name in kept if name.startswith(_LEGACY_TAG))
        legacy = [Entry(0, self._change(name, kept[name]), done=True) for name in old]
        return (*legacy, *self._logged())

    def append(self, change: Change, after: int) -> Entry:
        """Return the new entry of a change.

        Args:
            change: what it says; a refusal changes no alias and is done at once.
            after: number of the last entry as the writer knows it; 0: there is none.

        Raises:
            ConflictError: there is a later one, whose writer came first.
            TrackingError: the store is too busy.
            MlflowException: the registry does not answer.
        """
        for what, text in _told(change).items():
            if len(text) > MAX_REASON:
                raise UsageError(f"{what}: {len(text)} characters, at most {MAX_REASON} are kept")
        own = uuid.uuid4().hex
        tags = {
            _FOLLOWS: str(after),
            _CHANGE: json.dumps(change.as_json()),
            _OWNER: json.dumps({**this_process(), "id": own}),
            **({_DONE: "true"} if change.action == "refused" else {}),
        }
        self._require_log()
        steadily(
            lambda: self._store.client.create_model_version(
                self.name,
                _SOURCE,
                tags=tags,
                description="\n\n".join([str(change), *filter(None, _told(change).values())]),
                await_creation_for=0,
            )
        )
        # A number is given only after the smaller ones can be seen: nothing can come between.
        later = [entry for entry in self._logged() if entry.number > after]
        if later and _is_from(later[0], own):
            return later[0]
        self._take_back(own)
        first = later[0].change if later else None
        raise ConflictError(
            f"{self._name}: another change came first"
            + (f", by {first.user} at {first.time}: {first}" if first else "")
            + "; look at `danceflow history` and call the command again if it is still wanted"
        )

    def close(self, entry: Entry) -> None:
        """Mark an entry as done: the aliases are as it says."""
        if entry.number:
            self._tag(entry, _DONE, "true")

    def is_at_work(self, entry: Entry) -> bool | None:
        """Return whether the process that wrote an entry still runs; None: on another machine."""
        return runs(json.loads(entry.owner))

    def who(self, entry: Entry) -> str:
        """Return who wrote an entry, such as ``process 12 on host``."""
        owner = json.loads(entry.owner)
        return f"process {owner['process'].partition('-')[0]} on {owner['host']}"

    def _logged(self) -> list[Entry]:
        """Return the valid entries of the log."""
        valid: list[Entry] = []
        last = 0
        versions = all_versions(self._store, self.name)
        for version in sorted(versions, key=lambda version: int(version.version)):
            number, tags = int(version.version), version.tags
            # Not "== last": somebody may have deleted an entry, and those behind it stay.
            if _CHANGE not in tags or int(tags[_FOLLOWS]) < last:
                continue
            change = self._change(f"version {number}", tags[_CHANGE])
            valid.append(Entry(number, change, _DONE in tags, tags[_OWNER]))
            last = number
        return valid

    def _change(self, place: str, text: str) -> Change:
        try:
            return Change.of_json(text)
        except ValueError:
            raise TrackingError(
                f"{self.name}, {place}: is no entry of a history; delete it in MLflow's page"
            ) from None

    def _require_log(self) -> None:
        """Make the log when it is missing."""
        from mlflow.exceptions import MlflowException

        told = f"Append-only: every change of the champion of {self._name}."
        try:
            self._store.client.create_registered_model(self.name, description=told)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _take_back(self, own: str) -> None:
        """Delete what came too late. What stays for whatever reason is no valid entry anyway."""
        from mlflow.exceptions import MlflowException

        for version in all_versions(self._store, self.name):
            if own in version.tags.get(_OWNER, ""):
                with contextlib.suppress(MlflowException):
                    self._store.client.delete_model_version(self.name, version.version)

    def _tag(self, entry: Entry, key: str, value: str) -> None:
        client = self._store.client
        steadily(lambda: client.set_model_version_tag(self.name, str(entry.number), key, value))


def line_of(changes: Sequence[Change]) -> list[int]:
    """Return the line of succession, which ends at the champion of now, if there is one.

    A promotion adds a champion; whatever goes back to an earlier one removes those behind it.
    """
    line: list[int] = []
    for change in changes:
        if change.action == "refused" or change.version is None or change.version in line[-1:]:
            continue
        if change.kind != "promote" and change.version in line:
            del line[line.index(change.version) + 1 :]
        else:
            line.append(change.version)
    return line


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def steadily(write: Callable[[], T]) -> T:
    """Return the answer to a write that may be repeated, once others leave the store alone.

    Two writers of one row let a database refuse one of them, which means nothing to a user.

    Raises:
        TrackingError: the store is still busy after several seconds.
        MlflowException: it refuses for another reason.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(_NUM_TRIES):
        try:
            return write()
        except MlflowException as error:
            if not _is_busy(error):
                raise
            time.sleep(random.uniform(0.0, 0.05 * 2 ** min(attempt, 5)))
    raise TrackingError("the model registry is busy: too many write to it at once; try again")


def all_versions(store: Store, name: str) -> list[Any]:
    """Return every version of a registered model; none when there is no such model."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = store.client.search_model_versions(f"name = '{name}'", page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _is_busy(error: Exception) -> bool:
    """Return whether a database refused a write because of another one at the same moment."""
    text = str(error).lower()
    return any(
        words in text
        for words in ("integrityerror", "unique", "locked", "deadlock", "creation error")
    )


def _told(change: Change) -> dict[str, str]:
    """Return the words of people in a change, by what they are."""
    approval = change.approval
    return {
        "reason": change.reason,
        "who approved": "" if approval is None else approval.by,
        "why it was approved": "" if approval is None else approval.reason,
    }


def _is_from(entry: Entry, own: str) -> bool:
    return bool(json.loads(entry.owner)["id"] == own)


def this_process() -> dict[str, str]:
    """Return what tells this process from all others, also from a later one with its number."""
    return {"host": socket.gethostname(), "process": process_mark()}


def runs(owner: Mapping[str, str]) -> bool | None:
    """Return whether a process runs; None: it is one of another machine."""
    return is_running(owner["process"]) if owner["host"] == socket.gethostname() else None
