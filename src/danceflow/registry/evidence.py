"""The evidence of registered versions: kept with the run, added to, and never overwritten.

A version's rows lie in the artifacts of its run, one file for each evaluation, named by the
student's content, the evaluation's identity and the file's own content. A tag of the version says
which one it was registered by. Tags hold no score, so they do not grow with the capabilities.
"""

import hashlib
import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from danceflow.errors import DanceflowError, DataError, TrackingError, UsageError
from danceflow.ops.tracking import Store, known, store_errors
from danceflow.registry.open import DIGEST_TAG, fetched, find_entry
from danceflow.report.evidence import Evidence, Scored
from danceflow.report.gate import Rival

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_LOG = logging.getLogger(__name__)

EVIDENCE_TAG = "evidence"
_FOLDER = "evidence"

T = TypeVar("T")


class Again(Protocol):
    """A checkout that can evaluate a student again."""

    def identities(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the identity of its evaluation of each of its capabilities."""

    def evaluate(self, package: Path, capabilities: Collection[str]) -> Mapping[str, Scored]:
        """Return what a student scores on some of its capabilities."""


def keep(store: Store, run_id: str, student: str, evidence: Evidence) -> str:
    """Add evidence to a run and return its place there; what is there stays, unless it is damaged.

    Args:
        store: where the run is.
        run_id: of the run.
        student: digest of the student that it is about.
        evidence: what was found.

    Raises:
        TrackingError: the store refuses.
    """
    place = place_of(student, evidence)
    if not is_kept(store, run_id, place):
        with store_errors(store.uri):
            store.client.log_text(run_id, evidence.as_text(), place)
    return place


def place_of(student: str, evidence: Evidence) -> str:
    """Return where evidence is kept in a run: its content decides, so nothing is overwritten.

    Args:
        student: digest of the student that it is about.
        evidence: what was found.
    """
    digest = _digest(evidence.as_text().encode())
    return f"{_FOLDER}/{student[:16]}/{evidence.identity}-{digest}.json"


def is_kept(store: Store, run_id: str, place: str) -> bool:
    """Return whether evidence lies at a place of a run as it was written.

    Raises:
        TrackingError: the store cannot be reached.
    """
    with store_errors(store.uri):
        files = store.client.list_artifacts(run_id, place.rpartition("/")[0])
    if all(item.path != place for item in files):
        return False
    content = _content(store, run_id, place)
    return content is not None and _is_own(content, place)


def current(store: Store, version: "ModelVersion") -> Evidence:
    """Return the evidence that a version was registered by, the last time it was.

    Raises:
        TrackingError: it has none, as it was not registered by danceflow; or it is gone.
        DataError: it is damaged.
    """
    what = f"{version.name} version {version.version}"
    place = version.tags.get(EVIDENCE_TAG)
    if place is None:
        raise TrackingError(
            f"{what} holds no evaluation to judge it by; `danceflow run` in the checkout that it "
            "comes from registers it with one"
        )
    found = _read(store, str(version.run_id), place)
    if found is None:
        raise TrackingError(
            f"{what}: its evaluation {place} is gone from run {version.run_id}; `danceflow sync` "
            "in the checkout that it comes from adds it again"
        )
    return found


def stored(store: Store, version: "ModelVersion") -> list[Evidence]:
    """Return everything that is known of a version, what it was registered by first.

    What is damaged is left out, with a warning.

    Raises:
        TrackingError: the store cannot be reached.
    """
    places = _places(store, version)
    places.sort(key=lambda place: place != version.tags.get(EVIDENCE_TAG))
    found = []
    for place in places:
        try:
            item = _read(store, str(version.run_id), place)
        except DataError as error:
            _LOG.warning("not used: %s", error)
        else:
            found += [] if item is None else [item]
    return found


def rival_of(
    store: Store,
    evidence: Evidence,
    version: "ModelVersion",
    champion: "ModelVersion",
    again: Again | None,
) -> Rival:
    """Return the champion with evidence by the evaluation that a student was judged by.

    Where the champion was never evaluated so, and this checkout evaluates as the student was, the
    champion's package is evaluated now. Where this checkout evaluates otherwise, the student's is,
    too. What is found is kept with the versions.

    Args:
        store: where both are registered.
        evidence: what the student was registered by.
        version: the student's.
        champion: the champion's.
        again: the checkout; None: nothing can be evaluated here.

    Raises:
        TrackingError: the store cannot be reached.
    """
    known = stored(store, champion)
    can = dict(known[0].capabilities) if known else {}
    names = [name for name in evidence.capabilities if name in can or not known]
    found = _by(known, {name: evidence.capabilities[name].identity for name in names})
    own: dict[str, Scored] = {}
    trouble = ""
    if missing := [name for name in names if name not in found]:
        try:
            ours = _identities(again, missing)
            found |= _obtained(store, champion, ours, again)
            others = {
                name: identity
                for name, identity in ours.items()
                if identity != evidence.capabilities[name].identity
            }
            own = _obtained(store, version, others, again)
        except DanceflowError as error:
            trouble = str(error)
    return Rival(
        f"version {champion.version}",
        Evidence(capabilities={**can, **found}),
        Evidence(capabilities={**evidence.capabilities, **own}) if own else None,
        trouble,
    )


def _identities(again: Again | None, names: Collection[str]) -> dict[str, Mapping[str, Any]]:
    """Return how this checkout evaluates some capabilities."""
    if again is None:
        raise UsageError("there is no checkout here to evaluate it by")
    known = again.identities()
    if lacking := [name for name in names if name not in known]:
        raise UsageError(f"params.yaml has no capability {', '.join(lacking)}")
    return {name: known[name] for name in names}


def _obtained(
    store: Store,
    version: "ModelVersion",
    wanted: Mapping[str, Mapping[str, Any]],
    again: Again | None,
) -> dict[str, Scored]:
    """Return what a version scores by the checkout's evaluation: as it is kept, else evaluated."""
    found = _by(stored(store, version), wanted)
    lacking = [name for name in wanted if name not in found]
    if not lacking or again is None:
        return found
    _LOG.info("version %s is evaluated again: %s", version.version, ", ".join(lacking))
    entry = find_entry(store, f"models:/{version.name}/{version.version}")
    with fetched(store, entry) as package:
        scored = dict(again.evaluate(package, lacking))
    try:
        keep(store, str(version.run_id), entry.digest, Evidence(capabilities=scored))
    except TrackingError as error:  # its run is gone: it is compared all the same
        _LOG.warning("the new evaluation of version %s is not kept: %s", version.version, error)
    return found | scored


def _by(known: Iterable[Evidence], wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Scored]:
    """Return what is known by the evaluations that are wanted, the first of each."""
    found: dict[str, Scored] = {}
    for evidence in known:
        for name, scored in evidence.capabilities.items():
            if name in wanted and scored.identity == wanted[name]:
                found.setdefault(name, scored)
    return found


def _places(store: Store, version: "ModelVersion") -> list[str]:
    """Return where evidence of a version lies in its run; nowhere, if the run is gone."""
    student = version.tags.get(DIGEST_TAG)
    if not version.run_id or student is None:
        return []
    run_id, folder = version.run_id, f"{_FOLDER}/{student[:16]}"
    with store_errors(store.uri):
        files = known(lambda: store.client.list_artifacts(run_id, folder))
    return [item.path for item in files or ()]


def _read(store: Store, run_id: str, place: str) -> Evidence | None:
    """Return the evidence at a place of a run, None if there is none.

    Raises:
        TrackingError: the store cannot be reached.
        DataError: it is damaged.
    """
    content = _content(store, run_id, place)
    if content is None:
        return None
    if not _is_own(content, place):
        raise DataError(
            f"run {run_id}, {place}: its content is not what was written; `danceflow sync` in the "
            "checkout that it comes from sends it again"
        )
    return Evidence.read(content, f"run {run_id}, {place}")


def _content(store: Store, run_id: str, place: str) -> bytes | None:
    """Return the bytes at a place of a run, None if there are none."""
    with store_errors(store.uri), store.as_current(), tempfile.TemporaryDirectory() as folder:
        file = known(lambda: store.client.download_artifacts(run_id, place, folder))
        return None if file is None else Path(file).read_bytes()


def _is_own(content: bytes, place: str) -> bool:
    """Return whether bytes are those that a place is named by."""
    return place.endswith(f"-{_digest(content)}.json")


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
