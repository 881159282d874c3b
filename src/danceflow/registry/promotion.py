"""Which version is live: the aliases ``challenger``, ``champion`` and ``previous``.

A version becomes champion only through the gate, judged against the champion of that moment. The
registry keeps no history of its aliases, so every change is written down first
(``danceflow.registry.history``), and then the aliases follow. What is left between the two by a
process that was killed, or was moved by somebody else, is put right by the next command.
"""

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from getpass import getuser
from typing import TYPE_CHECKING

from danceflow.errors import UsageError
from danceflow.ops.tracking import Store, known, store_errors
from danceflow.registry.card import fitting, publish
from danceflow.registry.evidence import Again, current, rival_of
from danceflow.registry.history import (
    Approval,
    Change,
    ConflictError,
    Entry,
    History,
    line_of,
    now,
    steadily,
)
from danceflow.report.gate import Verdict, verdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from danceflow.params.sections import GateParams

CHAMPION = "champion"
CHALLENGER = "challenger"
PREVIOUS = "previous"
WITHDRAWN_TAG = "withdrawn"
GATE_TAG = "gate.passed"
DECISION_TAG = "gate.decision"
REASONS_TAG = "gate.reasons"
AGAINST_TAG = "gate.champion"

_POLL_S = 0.2
# Nobody can see from here whether a process of another machine still runs. Its requests to the
# registry end long before: it begins none after the first number.
_OWN_LEASE_S = 30.0
_FOREIGN_LEASE_S = 120.0

_LOG = logging.getLogger(__name__)


class GateError(UsageError):
    """The gate does not let a version become champion."""


@dataclass(frozen=True)
class Standing:
    """How a version stands after it was considered.

    Attributes:
        version: its number.
        verdict: the gate's.
        champion: whether it is the champion.
        withdrawn: whether it was the champion once and was rolled back.
        refused: whether a person who was asked refused it.
        change: what made it champion just now; None: nothing did.
    """

    version: int
    verdict: Verdict
    champion: bool
    withdrawn: bool
    refused: bool = False
    change: Change | None = None


@dataclass(frozen=True)
class _State:
    """The registry once history and aliases agree.

    Attributes:
        entries: the history.
        champion: of now.
        mended: the entry that was written just now to make them agree.
    """

    entries: tuple[Entry, ...]
    champion: int | None
    mended: Change | None = None

    @property
    def last(self) -> int:
        """The number of the last entry."""
        return self.entries[-1].number if self.entries else 0

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the history says."""
        return tuple(entry.change for entry in self.entries)

    def is_refused(self, version: int) -> bool:
        """Return whether the last that was said about a version is that a person refused it."""
        said = [item.action for item in self.changes if item.version == version]
        return said[-1:] == ["refused"]


class Promotions:
    """The live versions of one registered model, and their history.

    Attributes:
        name: of the registered model.
    """

    def __init__(self, store: Store, name: str, again: Again | None = None) -> None:
        """Take a registry.

        Args:
            store: where the model is registered.
            name: of the registered model.
            again: evaluates a champion that was evaluated otherwise than who would follow it;
                None: nothing can, and who would follow is not promoted then.
        """
        self._store = store
        self.name = name
        self._history = History(store, name)
        self._again = again

    def holder(self, alias: str) -> "ModelVersion | None":
        """Return the version that has an alias; None: none has, or it was deleted.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            number = self._aliases().get(alias)
            return None if number is None else self._registered(number)

    def version(self, number: int | None) -> "ModelVersion":
        """Return a version.

        Args:
            number: of it; None: the challenger.

        Raises:
            UsageError: there is no such version, or no challenger.
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            wanted = self._aliases().get(CHALLENGER) if number is None else str(number)
            if wanted is None:
                raise UsageError(f"{self.name} has no challenger")
            version = self._registered(wanted)
        if version is None:
            raise UsageError(f"{self.name} has no version {wanted}")
        return version

    def history(self) -> tuple[Change, ...]:
        """Return every change of the champion and every refusal, the first one first.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            return tuple(entry.change for entry in self._history.entries())

    def astray(self) -> str | None:
        """Return what keeps history and alias apart, and who mends it; None: they agree.

        Nothing is changed.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            end = _end(self._history.entries())
            found = self._champion()
        said = None if end is None else end.change.version
        if end is not None and not end.done:
            return (
                f"{end.change}: {self._history.who(end)} is at it, or was killed; then the next "
                "promotion, rollback or run mends it"
            )
        if found == said or (found is None and not self._is_there(said)):
            return None
        return (
            f"the alias {CHAMPION} was moved by hand: it is at {_version_of(found)}, and was put "
            f"to {_version_of(said)}; the next promotion, rollback or run writes it down"
        )

    def challenge(self, version: "ModelVersion") -> None:
        """Make a version the challenger.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            self._set_alias(CHALLENGER, int(version.version))

    def judge(self, version: "ModelVersion", policy: "GateParams") -> Verdict:
        """Return the gate's verdict on a version against the champion, kept as tags and as a card.

        The tags go on the version, and on the run that it comes from unless that was deleted.

        Raises:
            TrackingError: the registry does not answer, or an evaluation is missing.
        """
        champion = self.holder(CHAMPION)
        rival = champion if champion and champion.version != version.version else None
        evidence = current(self._store, version)
        answer = verdict(
            evidence,
            rival and rival_of(self._store, evidence, version, rival, self._again),
            policy,
        )
        tags = {
            GATE_TAG: str(answer.passed).lower(),
            DECISION_TAG: answer.decision,
            REASONS_TAG: fitting(answer.reasons),
            AGAINST_TAG: "" if rival is None else str(rival.version),
        }
        client = self._store.client
        with store_errors(self._store.uri):
            for name, value in tags.items():
                client.set_model_version_tag(self.name, str(version.version), name, value)
            if version.run_id and self._run_is_there(version.run_id):
                for name, value in tags.items():
                    client.set_tag(version.run_id, name, value)
        publish(self._store, version, evidence, answer)
        return answer

    def consider(
        self, version: "ModelVersion", policy: "GateParams", *, auto_promote: bool
    ) -> Standing:
        """Make a version the challenger, judge it, and promote it where that is allowed.

        The present champion stays as it is, and a version that was rolled back is not promoted.

        Args:
            version: a registered student.
            policy: the gate's limits.
            auto_promote: whether a version that passes becomes champion at once.

        Raises:
            TrackingError: the registry does not answer, or an evaluation is missing.
        """
        self.challenge(version)
        number = int(version.version)
        while True:
            state = self._settled()
            version = self.version(number)
            answer = self.judge(version, policy)
            withdrawn, refused = WITHDRAWN_TAG in version.tags, state.is_refused(number)
            standing = Standing(number, answer, state.champion == number, withdrawn, refused)
            if not (answer.passed and auto_promote) or withdrawn or refused or standing.champion:
                return standing
            try:
                change = self._enter(Change.now("promote", number, state.champion), state)
            except ConflictError as error:
                _LOG.info("%s; version %d is judged anew", error, number)
                continue
            return replace(standing, champion=True, change=change)

    def promote(
        self,
        number: int | None,
        policy: "GateParams",
        reason: str = "",
        approval: Approval | None = None,
    ) -> Change:
        """Make a version the champion and return the change.

        Was the same promotion killed half-way, it is done to its end.

        Args:
            number: the version; None: the challenger.
            policy: the gate's limits.
            reason: why, kept in the history.
            approval: what a person answered who was asked.

        Raises:
            GateError: the gate does not let it pass.
            ConflictError: somebody else changed the champion meanwhile.
            UsageError: there is no such version or no challenger, or it is the champion already.
            TrackingError: the registry does not answer.
        """
        version, state, _ = self._proposed(number, policy)
        wanted = int(version.version)
        if state.mended is not None and state.champion == wanted:
            return state.mended
        return self._enter(Change.now("promote", wanted, state.champion, reason, approval), state)

    def propose(self, number: int | None, policy: "GateParams") -> Standing:
        """Return how a version stands that passes the gate and is not the champion.

        Args and errors are those of ``promote``.
        """
        version, state, answer = self._proposed(number, policy)
        wanted = int(version.version)
        if answer is None:
            raise UsageError(f"{self.name} version {wanted} is the champion now")
        refused = state.is_refused(wanted)
        return Standing(wanted, answer, False, WITHDRAWN_TAG in version.tags, refused)

    def refuse(self, number: int, approval: Approval) -> Change:
        """Write down that a person refused a version, and return the entry.

        No scheduled run promotes it from then on; ``promote`` with its number does.

        Args:
            number: the version.
            approval: who refused it, when and why.

        Raises:
            TrackingError: the registry does not answer.
        """
        while True:
            state = self._settled()
            change = Change.now("refused", number, state.champion, "", approval)
            with store_errors(self._store.uri), contextlib.suppress(ConflictError):
                return self._history.append(change, state.last).change

    def rollback(self, reason: str = "") -> Change:
        """Make the champion before the present one the champion again and return the change.

        Versions that were deleted are passed over; was the champion itself deleted, the one before
        it comes back. The version that goes is marked as withdrawn, so that no scheduled run
        promotes it again; ``promote`` with its number does. Called again, it goes back one further.

        A promotion that was killed half-way is rolled back like a whole one. Was a rollback killed
        half-way, it is done to its end, and no second step is made.

        Args:
            reason: why, kept in the history.

        Raises:
            ConflictError: somebody else changed the champion meanwhile.
            UsageError: there is no champion, or none before it.
            TrackingError: the registry does not answer.
        """
        state = self._settled(mends_promotions=False)
        if state.mended is not None and state.mended.kind == "rollback":
            return state.mended
        line = line_of(state.changes)
        if not line:
            raise UsageError(f"{self.name} has no champion")
        present = state.champion
        former = [number for number in reversed(line) if number != present]
        back = next((number for number in former if self._is_there(number)), None)
        if back is None:
            last = present or line[-1]
            deleted = ", ".join(map(str, sorted(set(former) - {last})))
            raise UsageError(
                f"{self.name}: there was no champion before version {last}"
                + (f" that is still there (deleted: {deleted})" if deleted else "")
            )
        withdraws = () if present is None else (present,)
        gone = None if line[-1] == back else line[-1]
        change = Change.now("rollback", back, present or gone, reason, withdraws=withdraws)
        return self._enter(change, state)

    def _proposed(
        self, number: int | None, policy: "GateParams"
    ) -> "tuple[ModelVersion, _State, Verdict | None]":
        """Return a version that passes the gate, what it was judged against, and the verdict.

        There is none where the same promotion was mended just now.
        """
        version = self.version(number)
        state = self._settled()
        wanted = int(version.version)
        if state.champion == wanted:
            if state.mended is not None:
                return version, state, None
            raise UsageError(f"{self.name} version {wanted} is the champion already")
        answer = self.judge(version, policy)
        if not answer.passed:
            raise GateError(
                f"{self.name} version {wanted} does not pass the gate: {'; '.join(answer.reasons)}"
            )
        return version, state, answer

    def _settled(self, *, mends_promotions: bool = True) -> _State:
        """Return history and champion once they agree.

        Args:
            mends_promotions: False leaves a promotion that was killed half-way as it is: it counts
                as done, and what comes next sets the aliases.

        Raises:
            ConflictError: a process of this machine changes the champion, and does not end.
        """
        mended: Change | None = None
        while True:
            with store_errors(self._store.uri):
                # In this order: of a change that comes between, the entry is missed and not the
                # alias, and then nothing can be written behind the entry that is known here.
                entries = self._history.entries()
                found = self._champion()
            end = _end(entries)
            said = None if end is None else end.change.version
            if end is not None and not end.done:
                if self._is_left(end):
                    if end.change.kind == "promote" and not mends_promotions:
                        return _State(entries, said, mended)
                    mended = self._mend(entries, end) or mended
                continue
            if found == said or (found is None and not self._is_there(said)):
                state = _State(entries, found, mended)
                with store_errors(self._store.uri):
                    self._set_previous(state.changes, found)
                return state
            mended = self._write_down(entries, said, found) or mended

    def _is_left(self, end: Entry) -> bool:
        """Return whether an entry that is not done was left so; waits until that is known.

        False: it is done now, or there is a later one.
        """
        began = time.monotonic()
        told = False
        while True:
            at_work = self._history.is_at_work(end)
            waited = time.monotonic() - began
            # After that: a process may have done its work to its end before it was gone.
            with store_errors(self._store.uri):
                last = _end(self._history.entries())
            if last is None or last.number != end.number or last.done:
                return False
            if at_work is False or (at_work is None and waited > _FOREIGN_LEASE_S):
                return True
            if waited > _OWN_LEASE_S and at_work:
                raise ConflictError(
                    f"{self.name}: {self._history.who(end)} changes the champion since "
                    f"{end.change.time} and does not end; end it, then call this again"
                )
            if waited > 2.0 and not told:
                told = True
                _LOG.info("waiting for %s: %s", self._history.who(end), end.change)
            time.sleep(_POLL_S)

    def _mend(self, entries: tuple[Entry, ...], end: Entry) -> Change | None:
        """Do to its end what a process left that is gone; None: another one did."""
        was = end.change
        change = replace(
            was,
            action="mended",
            time=now(),
            user=getuser(),
            mends=was.kind,
            reason=was.reason,
        )
        _LOG.warning(
            "%s: %s of %s by %s ended half-way; it is done to its end",
            self.name,
            was.kind,
            was.time,
            was.user,
        )
        return self._enter_if_next(change, entries)

    def _write_down(
        self, entries: tuple[Entry, ...], said: int | None, found: int | None
    ) -> Change | None:
        """Enter into the history that somebody else moved the alias; None: another one did."""
        _LOG.warning(
            "%s: the alias %s was moved by hand from %s to %s; it is written down so",
            self.name,
            CHAMPION,
            _version_of(said),
            _version_of(found),
        )
        is_back = found in line_of([entry.change for entry in entries])
        change = Change(
            "moved by hand",
            found,
            said,
            now(),
            "unknown",
            f"seen by {getuser()}",
            withdraws=(said,) if is_back and said is not None else (),
        )
        return self._enter_if_next(change, entries)

    def _enter_if_next(self, change: Change, entries: tuple[Entry, ...]) -> Change | None:
        try:
            return self._enter(change, _State(entries, None))
        except ConflictError:
            return None

    def _enter(self, change: Change, state: _State) -> Change:
        """Write a change down behind the last entry that is known, let the aliases follow."""
        began = time.monotonic()
        with store_errors(self._store.uri):
            entry = self._history.append(change, state.last)
            if time.monotonic() - began > _OWN_LEASE_S:
                raise ConflictError(
                    f"{self.name}: the registry is too slow; {change} is written down, and the "
                    "next promotion, rollback or run sets the alias"
                )
            changes = (*state.changes, change)
            if change.version is not None and self._is_there(change.version):
                self._set_alias(CHAMPION, change.version)
                # After the alias: killed in between, it is mended, and not promoted by a schedule.
                self._mark_withdrawn(change.version, withdrawn=False)
            for number in change.withdraws:
                self._mark_withdrawn(number, withdrawn=True)
            self._set_previous(changes, change.version)
            self._history.close(entry)
        return change

    def _set_previous(self, changes: tuple[Change, ...], champion: int | None) -> None:
        """Let the alias of the one before be at what a rollback would bring back."""
        before = [number for number in reversed(line_of(changes)) if number != champion]
        previous = next((number for number in before if self._is_there(number)), None)
        if self._aliases().get(PREVIOUS) == (None if previous is None else str(previous)):
            return
        if previous is not None:
            self._set_alias(PREVIOUS, previous)
        else:
            client = self._store.client
            steadily(lambda: client.delete_registered_model_alias(self.name, PREVIOUS))

    def _mark_withdrawn(self, number: int, *, withdrawn: bool) -> None:
        """Set or take away the tag that keeps schedules from promoting a version."""
        version, client = self._registered(number), self._store.client
        if version is None or (WITHDRAWN_TAG in version.tags) == withdrawn:
            return
        of = (self.name, str(number), WITHDRAWN_TAG)
        if withdrawn:
            steadily(lambda: client.set_model_version_tag(*of, "true"))
        else:
            steadily(lambda: client.delete_model_version_tag(*of))

    def _set_alias(self, alias: str, number: int) -> None:
        client = self._store.client
        steadily(lambda: client.set_registered_model_alias(self.name, alias, str(number)))

    def _champion(self) -> int | None:
        """Return the version that the alias is at; None: at none, or at one that is gone."""
        number = self._aliases().get(CHAMPION)
        return int(number) if number is not None and self._is_there(int(number)) else None

    def _is_there(self, number: int | None) -> bool:
        return number is not None and self._registered(number) is not None

    def _registered(self, number: int | str) -> "ModelVersion | None":
        """Return a version, or None if it was deleted or never was."""
        return known(lambda: self._store.client.get_model_version(self.name, str(number)))

    def _run_is_there(self, run_id: str) -> bool:
        """Return whether a run may be written to."""
        run = known(lambda: self._store.client.get_run(run_id))
        return run is not None and run.info.lifecycle_stage == "active"

    def _aliases(self) -> Mapping[str, str]:
        model = known(lambda: self._store.client.get_registered_model(self.name))
        return {} if model is None else model.aliases


def _end(entries: tuple[Entry, ...]) -> Entry | None:
    """Return the last entry that is about the champion; None: there never was one."""
    ends = [entry for entry in entries if entry.change.action != "refused"]
    return ends[-1] if ends else None


def _version_of(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"
