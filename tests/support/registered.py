"""A checkout whose registry holds versions of known scores, which nobody trained."""

import contextlib
import hashlib
import shutil
from pathlib import Path

from PIL import Image
from repository import ROOT
from scored import evidence_of

from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.params.read import load_params
from danceflow.registry.evidence import EVIDENCE_TAG, keep
from danceflow.registry.open import DIGEST_TAG
from danceflow.registry.promotion import Promotions

CAPABILITIES = ("t2i", "local_edit", "global_edit")


def checkout_in(root: Path, mlflow_template: Path, notify: str = "") -> Path:
    """Return a checkout of the embedded default with an empty store.

    Args:
        root: where; it is made.
        mlflow_template: a migrated, empty database.
        notify: lines in place of the section ``notify``.
    """
    root.mkdir()
    shutil.copy(ROOT / "dvc.yaml", root)
    text = (ROOT / "params.yaml").read_text()
    if notify:
        begin, end = text.index("notify:"), text.index("tracking:")
        text = text[:begin] + notify + "\n" + text[end:]
    (root / "params.yaml").write_text(text)
    shutil.copy(mlflow_template, root / "mlflow.db")
    return root


def promotions_of(root: Path) -> Promotions:
    tracking = load_params(root / "params.yaml").tracking
    settings = TrackingSettings.of(root, tracking)
    return Promotions(open_store(settings), tracking.registered_model)


def enter(
    root: Path, score: float, params: dict[str, str] | None = None, colour: str | None = None
) -> int:
    """Register a version with a run of its own, and return its number.

    Args:
        root: the checkout.
        score: on every prompt of every capability.
        params: of its run.
        colour: of a picture in its run; None: it has none.
    """
    from mlflow.exceptions import MlflowException

    promotions = promotions_of(root)
    store, client = promotions._store, promotions._store.client
    run_id = client.create_run(store.experiment_id).info.run_id
    for name, value in (params or {}).items():
        client.log_param(run_id, name, value)
    if colour is not None:
        client.log_image(run_id, Image.new("RGB", (8, 8), colour), key="grid/t2i", step=20)
    with contextlib.suppress(MlflowException):
        client.create_registered_model(promotions.name)
    digest = hashlib.sha256(str(score).encode()).hexdigest()
    place = keep(store, run_id, digest, evidence_of(score, 1.0, CAPABILITIES))
    tags = {EVIDENCE_TAG: place, DIGEST_TAG: digest, "git.commit": f"commit-of-{score}"}
    made = client.create_model_version(promotions.name, "danceflow:/x", run_id=run_id, tags=tags)
    return int(made.version)
