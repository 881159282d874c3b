"""A registered student whose files in the store are damaged or gone gets them again.

So does its evidence: both are compared by their digests.
"""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.errors import TrackingError
from danceflow.ops.tracking import Store, store_errors
from danceflow.registry.evidence import EVIDENCE_TAG, is_kept, keep, place_of
from danceflow.registry.open import ARTIFACT, DIGEST_TAG, folder_digest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from danceflow.report.evidence import Evidence

_LOG = logging.getLogger(__name__)


def mend_student(store: Store, name: str, folder: Path) -> bool:
    """Return whether a student's files in the store were not what was registered, and are now.

    Args:
        store: the registry.
        name: the registered model.
        folder: a student; nothing is done where it is not registered.

    Raises:
        TrackingError: the registry refuses.
    """
    digest = folder_digest(folder)
    mended = [_mend(store, version, folder, digest) for version in _versions(store, name, digest)]
    return any(mended)


def mend_evidence(store: Store, name: str, folder: Path, evidence: "Evidence") -> bool:
    """Return whether the evidence of a student was damaged or gone in the store, and is not now.

    Args:
        store: the registry.
        name: the registered model.
        folder: a student; nothing is done where it is not registered.
        evidence: that of the checkout; nothing is done where it was registered by another one.

    Raises:
        TrackingError: the registry refuses.
    """
    digest = folder_digest(folder)
    place, is_mended = place_of(digest, evidence), False
    for version in _versions(store, name, digest):
        run_id = str(version.run_id)
        if version.tags.get(EVIDENCE_TAG) == place and not is_kept(store, run_id, place):
            keep(store, run_id, digest, evidence)
            is_mended = True
            _LOG.warning(
                "the evaluation of version %s of %s was damaged in the store; sent again",
                version.version,
                version.name,
            )
    return is_mended


def _versions(store: Store, name: str, digest: str) -> "list[ModelVersion]":
    """Return the versions that hold a student."""
    wanted = f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'"
    with store_errors(store.uri):
        return list(store.client.search_model_versions(wanted))


def _mend(store: Store, version: "ModelVersion", folder: Path, digest: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="danceflow-student-") as place:
        if _digest_of(store, version, Path(place)) == digest:
            return False
        content = Path(place) / "again"
        shutil.copytree(folder, content / "artifacts" / ARTIFACT)
        with store_errors(store.uri):
            model = str(version.source).rpartition("/")[2]
            store.client.log_model_artifacts(model, str(content))
    _LOG.warning(
        "version %s of %s was damaged in the store; sent again", version.version, version.name
    )
    return True


def _digest_of(store: Store, version: "ModelVersion", place: Path) -> str | None:
    """Return the digest of what the store gives; None: files are gone."""
    import mlflow

    try:
        with store_errors(store.uri), store.as_current():
            content = store.client.get_model_version_download_uri(version.name, version.version)
            found = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{content}/artifacts/{ARTIFACT}", dst_path=str(place)
            )
    except TrackingError:
        return None
    return folder_digest(Path(found))
