"""What happens to a finished student: registered, judged, promoted, rolled back.

Plain functions, so that a command calls them without a Prefect server; ``flows.pipeline`` makes
tasks of the first two. They are no DVC stages: a side effect on a registry must not be cached.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from danceflow.errors import DataError, TrackingError, UsageError
from danceflow.ops.files import read_object
from danceflow.ops.tracking import Store, TrackingSettings, open_store, source_tags
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.compare import Comparison
from danceflow.registry.compare import compare as compare_versions
from danceflow.registry.history import Approval, Change
from danceflow.registry.promotion import GATE_TAG, Promotions, Standing
from danceflow.registry.register import register_student
from danceflow.report.evidence import read_evidence
from flows.notify import Event, News, tell
from flows.rescore import CheckoutEvaluation
from flows.sync import send


def register(root: Path, params: Params) -> int:
    """Return the number of the student's version in the registry; the same content is one version.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters.

    Raises:
        WeightsError: there is no student.
        DataError: its evaluation is missing or damaged.
        TrackingError: the store cannot be reached or refuses.
    """
    paths = Paths(root)
    settings = TrackingSettings.of(root, params.tracking)
    store = open_store(settings)
    summary = read_summary(paths.summary)
    run_id = send(root, params)
    if run_id is None:
        raise TrackingError("tracking is off: a student cannot be registered")
    entry = register_student(
        store,
        lambda: run_id,
        paths.student,
        settings.registered_model,
        read_evidence(paths, summary["capabilities"], summary),
        source_tags(root),
    )
    number = int(entry.version.version)
    if entry.made:
        text = f"Version {number} was registered."
        _tell(root, params, News("registered", entry.version.name, number, text))
    return number


def consider(
    root: Path, params: Params, number: int, *, wait_for_approval: bool = False
) -> Standing:
    """Make a version the challenger, judge it against the champion, promote it where allowed.

    A champion that was evaluated otherwise is evaluated again, which takes as long as the student's
    own part of the stage ``evaluate``.

    Args:
        root: the checkout or worktree that the pipeline ran in.
        params: its parameters; ``gate`` is the policy.
        number: a version of the registered model.
        wait_for_approval: whether a person is asked afterwards; then it is not promoted here.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    promotions = _promotions(root, params)
    version = promotions.version(number)
    standing = promotions.consider(
        version, params.gate, auto_promote=params.gate.auto_promote and not wait_for_approval
    )
    if standing.change is not None:
        _tell(root, params, _news_of(promotions, standing.change))
    elif not standing.verdict.passed and version.tags.get(GATE_TAG) != "false":
        text = f"Version {number} does not pass the gate: {'; '.join(standing.verdict.reasons)}"
        _tell(root, params, News("refused", promotions.name, number, text))
    return standing


def promote(
    root: Path,
    version: int | None = None,
    reason: str = "",
    approval: Approval | None = None,
    params: Params | None = None,
) -> Change:
    """Make a version the champion, if the gate lets it pass, and return the change.

    Args:
        root: the checkout.
        version: its number; None: the challenger.
        reason: why, kept in the history.
        approval: what a person answered who was asked.
        params: the parameters to go by; None: those of the checkout.

    Raises:
        GateError: the gate does not let it pass.
        ConflictError: somebody else changed the champion meanwhile.
        UsageError: there is no such version, or tracking is off.
        TrackingError: the store cannot be reached or refuses.
    """
    params = load_params(Paths(root).params) if params is None else params
    promotions = _promotions(root, params)
    change = promotions.promote(version, params.gate, reason, approval)
    _tell(root, params, _news_of(promotions, change))
    return change


def proposed(root: Path, version: int | None) -> Standing:
    """Return how a version stands that a person shall be asked about: it passes the gate.

    Args and errors are those of ``promote``.
    """
    params = load_params(Paths(root).params)
    return _promotions(root, params).propose(version, params.gate)


def refuse(root: Path, params: Params, number: int, approval: Approval) -> Change:
    """Write down that a person refused a version, and return the entry.

    Args:
        root: the checkout or worktree.
        params: its parameters.
        number: the version.
        approval: who refused it, when and why.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    promotions = _promotions(root, params)
    change = promotions.refuse(number, approval)
    _tell(root, params, _news_of(promotions, change))
    return change


def rollback(root: Path, reason: str = "") -> Change:
    """Make the former champion the champion again and return the change.

    Args:
        root: the checkout.
        reason: why, kept in the history.

    Raises:
        ConflictError: somebody else changed the champion meanwhile.
        UsageError: there is none, or tracking is off.
        TrackingError: the store cannot be reached or refuses.
    """
    params = load_params(Paths(root).params)
    promotions = _promotions(root, params)
    change = promotions.rollback(reason)
    _tell(root, params, _news_of(promotions, change))
    return change


def history(root: Path) -> tuple[tuple[Change, ...], str | None]:
    """Return every change of the champion, and what is to be mended, if anything is.

    Args:
        root: the checkout.

    Raises:
        UsageError: tracking is off.
        TrackingError: the store cannot be reached.
    """
    promotions = _promotions(root, load_params(Paths(root).params))
    return promotions.history(), promotions.astray()


def compare(root: Path, first: str, second: str, *, pictures: bool) -> Comparison:
    """Return two versions of the student side by side.

    Args:
        root: the checkout.
        first: number of a version, or an alias such as ``champion``.
        second: number or alias of the other one.
        pictures: whether to fetch those, too.

    Raises:
        UsageError: there is no such version or alias, or tracking is off.
        TrackingError: the store cannot be reached.
    """
    registry = _registry(root, load_params(Paths(root).params))
    return compare_versions(*registry, first, second, pictures=pictures)


def read_summary(path: Path) -> Mapping[str, Any]:
    """Return ``reports/summary.json``.

    Raises:
        DataError: it is missing or holds no capabilities.
    """
    summary = read_object(path, "run the stage report")
    if not isinstance(summary.get("capabilities"), dict):
        raise DataError(f"{path}: holds no capabilities; run the stage report")
    return summary


def _promotions(root: Path, params: Params) -> Promotions:
    return Promotions(*_registry(root, params), CheckoutEvaluation(root, params))


def _tell(root: Path, params: Params, news: News) -> None:
    tell(news, params.notify, root)


def _news_of(promotions: Promotions, change: Change) -> News:
    """Return a change as it is told."""
    events: dict[str, Event] = {"rollback": "rolled back", "refused": "refused"}
    text = [str(change), change.reason and f"Reason: {change.reason}"]
    details: dict[str, Any] = {
        "previous": change.previous,
        "user": change.user,
        "reason": change.reason,
    }
    if change.approval is not None:
        answered = "Refused" if change.kind == "refused" else "Approved"
        text.append(f"{answered} by {change.approval.by}: {change.approval.reason}")
        details["approval"] = asdict(change.approval)
    event = events.get(change.kind, "promoted")
    return News(event, promotions.name, change.version, "\n".join(filter(None, text)), details)


def _registry(root: Path, params: Params) -> tuple[Store, str]:
    settings = TrackingSettings.of(root, params.tracking)
    if not settings.enabled:
        raise UsageError("tracking.enabled is false: there is no registry")
    return open_store(settings), settings.registered_model
