"""A registered student whose files in the store are damaged or gone gets them again."""

import logging
import shutil
import tempfile
from pathlib import Path

from danceflow.errors import TrackingError
from danceflow.ops.tracking import Store, store_errors
from danceflow.registry.open import ARTIFACT, fetch, folder_digest
from danceflow.registry.register import find_by_digest

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
        version = find_by_digest(store, name, digest)
    if version is None:
        return False
    with tempfile.TemporaryDirectory(prefix="danceflow-student-") as place:
        if _is_whole(store, f"models:/{name}/{version.version}", digest, Path(place)):
            return False
        content = Path(place) / "again"
        shutil.copytree(folder, content / "artifacts" / ARTIFACT)
        with store_errors(store.uri):
            model = str(version.source).rpartition("/")[2]
            store.client.log_model_artifacts(model, str(content))
    _LOG.warning("version %s of %s was damaged in the store; sent again", version.version, name)
    return True


def _is_whole(store: Store, source: str, digest: str, place: Path) -> bool:
    """Return whether what the store gives has a digest; files that are gone have none."""
    try:
        found, _ = fetch(store, source, place / "found")
    except TrackingError:
        return False
    return folder_digest(found) == digest
