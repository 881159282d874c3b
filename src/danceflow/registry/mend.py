"""A registered student whose files in the store are damaged or gone gets them again."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.errors import TrackingError
from danceflow.ops.tracking import Store, store_errors
from danceflow.registry.open import ARTIFACT, DIGEST_TAG, folder_digest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

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
    with store_errors(store.uri):
        versions = store.client.search_model_versions(
            f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'"
        )
    mended = [_mend(store, version, folder, digest) for version in versions]
    return any(mended)


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
