"""Which version is live: the aliases ``challenger`` and ``champion``, and how they came about.

A version becomes champion only through the gate, judged against the champion of that moment. The
registry keeps no history of its aliases, so every change is written down as a tag of the
registered model; what was live before can be found, and restored, from it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from getpass import getuser
from typing import TYPE_CHECKING, Literal, TypeVar

from danceflow.errors import UsageError
from danceflow.ops.tracking import Store, store_errors
from danceflow.registry.card import fitting, publish
from danceflow.registry.evidence import Again, current, rival_of
from danceflow.report.gate import Verdict, verdict

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from danceflow.params.sections import GateParams

CHAMPION = "champion"
CHALLENGER = "challenger"
WITHDRAWN_TAG = "withdrawn"
GATE_TAG = "gate.passed"
DECISION_TAG = "gate.decision"
REASONS_TAG = "gate.reasons"
AGAINST_TAG = "gate.champion"

_LOG_TAG = "promotion."

T = TypeVar("T")


class GateError(UsageError):
    """The gate does not let a version become champion."""


@dataclass(frozen=True)
class Change:
    """One change of the champion.

    Attributes:
        action: what was done.
        version: the champion from then on.
        previous: the champion before; None when there was none.
        time: when, UTC, ISO 8601.
        user: who.
    """

    action: Literal["promote", "rollback"]
    version: int
    previous: int | None
    time: str
    user: str

    def __str__(self) -> str:
        """Return the change as a sentence."""
        before = "no champion" if self.previous is None else f"version {self.previous}"
        return f"{self.action}: version {self.version} is the champion (before: {before})"


@dataclass(frozen=True)
class Standing:
    """How a version stands after it was considered.

    Attributes:
        version: its number.
        verdict: the gate's.
        champion: whether it is the champion.
        withdrawn: whether it was the champion once and was rolled back.
    """

    version: int
    verdict: Verdict
    champion: bool
    withdrawn: bool


class Promotions:
    """The live versions of one registered model, and their history."""

    def __init__(self, store: Store, name: str, again: Again | None = None) -> None:
        """Take a registry.

        Args:
            store: where the model is registered.
            name: of the registered model.
            again: evaluates a champion that was evaluated otherwise than who would follow it;
                None: nothing can, and who would follow is not promoted then.
        """
        self._store = store
        self._name = name
        self._again = again

    def holder(self, alias: str) -> "ModelVersion | None":
        """Return the version that has an alias; None: none has, or it was deleted.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            number = self._aliases().get(alias)
            return None if number is None else self._registered(number)

    def history(self) -> tuple[Change, ...]:
        """Return every change of the champion, the first one first.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            tags = self._tags()
        entries = sorted(
            (int(name.removeprefix(_LOG_TAG)), value)
            for name, value in tags.items()
            if name.startswith(_LOG_TAG)
        )
        return tuple(Change(**json.loads(value)) for _, value in entries)

    def challenge(self, version: "ModelVersion") -> None:
        """Make a version the challenger.

        Raises:
            TrackingError: the registry does not answer.
        """
        with store_errors(self._store.uri):
            self._store.client.set_registered_model_alias(
                self._name, CHALLENGER, str(version.version)
            )

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
                client.set_model_version_tag(self._name, str(version.version), name, value)
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
        answer = self.judge(version, policy)
        champion = self.holder(CHAMPION)
        number = int(version.version)
        is_champion = champion is not None and int(champion.version) == number
        withdrawn = WITHDRAWN_TAG in version.tags
        change = None
        if answer.passed and auto_promote and not is_champion and not withdrawn:
            change = self._set_champion(
                "promote", number, None if champion is None else int(champion.version)
            )
        return Standing(number, answer, is_champion or change is not None, withdrawn)

    def promote(self, number: int | None, policy: "GateParams") -> Change:
        """Make a version the champion and return the change.

        Args:
            number: the version; None: the challenger.
            policy: the gate's limits.

        Raises:
            GateError: the gate does not let it pass.
            UsageError: there is no such version or no challenger, or it is the champion already.
            TrackingError: the registry does not answer.
        """
        version = self._version(number)
        champion = self.holder(CHAMPION)
        previous = None if champion is None else int(champion.version)
        if previous == int(version.version):
            raise UsageError(f"{self._name} version {version.version} is the champion already")
        answer = self.judge(version, policy)
        if not answer.passed:
            raise GateError(
                f"{self._name} version {version.version} does not pass the gate: "
                + "; ".join(answer.reasons)
            )
        with store_errors(self._store.uri):
            if WITHDRAWN_TAG in version.tags:
                self._store.client.delete_model_version_tag(
                    self._name, str(version.version), WITHDRAWN_TAG
                )
        return self._set_champion("promote", int(version.version), previous)

    def rollback(self) -> Change:
        """Make the champion before the present one the champion again and return the change.

        Versions that were deleted are passed over; was the champion itself deleted, the one before
        it comes back. The version that goes is marked as withdrawn, so that no scheduled run
        promotes it again; ``promote`` with its number does. Called again, it goes back one further.

        Raises:
            UsageError: there is no champion, or none before it.
            TrackingError: the registry does not answer.
        """
        champion = self.holder(CHAMPION)
        line = _line(self.history())
        if champion is None and not line:
            raise UsageError(f"{self._name} has no champion")
        present = line[-1] if champion is None else int(champion.version)
        former = [number for number in reversed(line) if number != present]
        with store_errors(self._store.uri):
            back = next((number for number in former if self._registered(number)), None)
            if back is None:
                deleted = ", ".join(map(str, sorted(set(former))))
                raise UsageError(
                    f"{self._name}: there was no champion before version {present}"
                    + (f" that is still there (deleted: {deleted})" if former else "")
                )
            if self._registered(present):
                self._store.client.set_model_version_tag(
                    self._name, str(present), WITHDRAWN_TAG, "true"
                )
        return self._set_champion("rollback", back, present)

    def _set_champion(
        self, action: Literal["promote", "rollback"], number: int, previous: int | None
    ) -> Change:
        change = Change(
            action, number, previous, datetime.now(UTC).isoformat(timespec="seconds"), getuser()
        )
        entry = f"{_LOG_TAG}{len(self.history()) + 1:06d}"
        client = self._store.client
        with store_errors(self._store.uri):
            # Written down first: an entry without its alias is seen and mended, the other way
            # round the former champion would be forgotten.
            client.set_registered_model_tag(self._name, entry, json.dumps(asdict(change)))
            client.set_registered_model_alias(self._name, CHAMPION, str(number))
        return change

    def _version(self, number: int | None) -> "ModelVersion":
        with store_errors(self._store.uri):
            wanted = self._aliases().get(CHALLENGER) if number is None else str(number)
            if wanted is None:
                raise UsageError(f"{self._name} has no challenger")
            version = self._registered(wanted)
        if version is None:
            raise UsageError(f"{self._name} has no version {wanted}")
        return version

    def _registered(self, number: int | str) -> "ModelVersion | None":
        """Return a version, or None if it was deleted or never was."""
        return _known(lambda: self._store.client.get_model_version(self._name, str(number)))

    def _run_is_there(self, run_id: str) -> bool:
        """Return whether a run may be written to."""
        run = _known(lambda: self._store.client.get_run(run_id))
        return run is not None and run.info.lifecycle_stage == "active"

    def _aliases(self) -> Mapping[str, str]:
        model = _known(lambda: self._store.client.get_registered_model(self._name))
        return {} if model is None else model.aliases

    def _tags(self) -> Mapping[str, str]:
        model = _known(lambda: self._store.client.get_registered_model(self._name))
        return {} if model is None else model.tags


def _line(history: Sequence[Change]) -> list[int]:
    """Return the line of succession: a promotion adds a champion, a rollback removes the last."""
    line: list[int] = []
    for change in history:
        if change.action == "rollback" and change.version in line:
            while line[-1] != change.version:
                line.pop()
        else:
            line.append(change.version)
    return line


def _known(ask: Callable[[], T]) -> T | None:
    """Return the registry's answer, or None when it knows no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
