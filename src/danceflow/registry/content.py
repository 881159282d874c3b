"""One content, one version: also when two register it at once, or one is killed half-way.

A registration uploads the student as a logged model, and then makes a version of that. Nothing in
MLflow keeps two processes from doing so at once; but versions are numbered by the store, so the
lowest of one content is the same for everybody, and who made another takes its own back. A logged
model says which process uploads it, so that what a killed one left is known as such.
"""

import json
import logging
import time
from typing import TYPE_CHECKING, Any

from danceflow.ops.tracking import Store, known
from danceflow.registry.history import runs, this_process
from danceflow.registry.open import ARTIFACT, DIGEST_TAG

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_OWNER_TAG = "student.uploaded_by"
# Of what nobody can be asked about: older ones say no process, others ran on another machine.
_UPLOAD_TAKES_S = {True: 86_400.0, False: 3_600.0}

_LOG = logging.getLogger(__name__)


def find_by_digest(store: Store, name: str, digest: str) -> "ModelVersion | None":
    """Return the first version of a registered model that holds the content of a digest, or None.

    Raises:
        MlflowException: the registry does not answer.
    """
    found = store.client.search_model_versions(
        f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'"
    )
    return min(found, key=lambda version: int(version.version), default=None)


def keep_first(store: Store, made: "ModelVersion", digest: str) -> bool:
    """Return whether a version that was just made is the one of its content; else take it back.

    Args:
        store: the registry.
        made: the version.
        digest: of its content.

    Raises:
        MlflowException: the registry does not answer.
    """
    first = find_by_digest(store, made.name, digest)
    if first is None or int(first.version) == int(made.version):
        return True
    _LOG.info(
        "the same student was registered at the same time as version %s; version %s is taken back",
        first.version,
        made.version,
    )
    store.client.delete_model_version(made.name, made.version)
    if first.source != made.source:
        known(lambda: store.client.delete_logged_model(_model_id(made.source)))
    return False


def upload_tags(digest: str) -> dict[str, str]:
    """Return the tags of a logged model: what it holds, and which process uploads it."""
    return {DIGEST_TAG: digest, _OWNER_TAG: json.dumps(this_process())}


def uploaded(store: Store, digest: str) -> str | None:
    """Return the URI of a student that a process uploaded and, killed, did not register; or None.

    Raises:
        MlflowException: the store does not answer.
    """
    for model in _logged(store):
        tags = model.tags
        if (
            str(model.status) == "READY"
            and tags.get(DIGEST_TAG) == digest
            and _has_no_uploader(json.loads(tags[_OWNER_TAG]))
        ):
            return str(model.model_uri)
    return None


def clear_uploads(store: Store) -> None:
    """Take away what killed processes uploaded in part: it is marked as failed and deleted.

    Raises:
        MlflowException: the store does not answer.
    """
    for model in _logged(store):
        if str(model.status) == "PENDING" and _is_left(model):
            _LOG.warning("the upload %s of a student was killed; it is deleted", model.model_id)
            store.client.finalize_logged_model(model.model_id, "FAILED")
            store.client.delete_logged_model(model.model_id)


def _logged(store: Store) -> list[Any]:
    """Return every student of the experiment that was uploaded, whole or not."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = store.client.search_logged_models(
            [store.experiment_id], f"name = '{ARTIFACT}'", page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def _has_no_uploader(owner: dict[str, str]) -> bool:
    """Return whether no other process may still register, or take back, what it uploaded."""
    return runs(owner) is False or owner == this_process()


def _is_left(model: Any) -> bool:
    """Return whether nobody uploads a model any more."""
    tag = model.tags.get(_OWNER_TAG)
    running = None if tag is None else runs(json.loads(tag))
    if running is not None:
        return not running
    age_s = time.time() - model.creation_timestamp / 1000
    return bool(age_s > _UPLOAD_TAKES_S[tag is not None])


def _model_id(uri: str) -> str:
    return uri.removeprefix("models:/")
