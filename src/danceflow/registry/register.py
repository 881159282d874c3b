"""The student enters the model registry: once per content, with all that serving needs."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.columns import IMAGE_COLUMNS
from danceflow.errors import WeightsError
from danceflow.ops.tracking import Store, store_errors
from danceflow.registry.about import About
from danceflow.registry.content import (
    clear_uploads,
    find_by_digest,
    keep_first,
    upload_tags,
    uploaded,
)
from danceflow.registry.evidence import EVIDENCE_TAG, keep
from danceflow.registry.history import steadily
from danceflow.registry.open import ARTIFACT, DIGEST_TAG, folder_digest

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

    from danceflow.report.evidence import Evidence

_SERVING = Path(__file__).with_name("serving_model.py")
_REQUIREMENTS = (
    "diffusers",
    "mlflow",
    "numpy",
    "pandas",
    "peft",
    "pillow",
    "safetensors",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Registration:
    """A student in the registry.

    Attributes:
        version: its version.
        made: whether the version is new.
        judged_anew: whether its evidence is.
    """

    version: "ModelVersion"
    made: bool
    judged_anew: bool


def register_student(
    store: Store,
    run_id: Callable[[], str],
    folder: Path,
    name: str,
    evidence: "Evidence",
    tags: Mapping[str, str] | None = None,
) -> Registration:
    """Return the student's version in the registry.

    The same content is one version, however often it is registered; another evaluation of it is
    added to its evidence, and takes nothing away. By default the served model takes as many solver
    steps as the student's manifest says.

    Args:
        store: the registry.
        run_id: gives the run that the student comes from; asked only when a version is made.
        folder: what the training wrote.
        name: the registered model.
        evidence: what the gate decides on; it is kept with the version.
        tags: what else to keep with a new version, such as the commit.

    Raises:
        WeightsError: there is no student, or it is damaged.
        TrackingError: the registry refuses.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        raise WeightsError(f"{folder}: there is no student to register")
    digest = folder_digest(folder)
    with store_errors(store.uri):
        known = find_by_digest(store, name, digest)
        if known is not None:
            place = keep(store, str(known.run_id), digest, evidence)
            if known.tags.get(EVIDENCE_TAG) == place:
                return Registration(known, made=False, judged_anew=False)
            store.client.set_model_version_tag(name, known.version, EVIDENCE_TAG, place)
            return Registration(known, made=False, judged_anew=True)
        from danceflow.models.package import read_manifest

        about = About.of(read_manifest(folder)).as_tags()
        run = run_id()
        place = keep(store, run, digest, evidence)
        clear_uploads(store)
        source = uploaded(store, digest) or _log_model(store, run, folder, digest)
        _require_model(store, name)
        with store.as_current():  # MLflow looks the model up in its global store
            made = steadily(
                lambda: store.client.create_model_version(
                    name,
                    source,
                    run_id=run,
                    model_id=source.rpartition("/")[2],  # a server takes no such source without
                    tags={**(tags or {}), **about, DIGEST_TAG: digest, EVIDENCE_TAG: place},
                )
            )
        if not keep_first(store, made, digest):
            return register_student(store, run_id, folder, name, evidence, tags)
        return Registration(made, made=True, judged_anew=True)


def signature(num_steps: int) -> "ModelSignature":
    """Return what the served student takes and gives.

    Args:
        num_steps: default of ``steps``; 0: what the student recommends for each row.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "prompt"),
                *(ColSpec(DataType.string, name, required=False) for name in IMAGE_COLUMNS),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string, "image")]),
        params=ParamSchema(
            [
                ParamSpec("seed", DataType.long, 0),
                ParamSpec("steps", DataType.long, num_steps),
                ParamSpec("guidance", DataType.double, 1.0),
                ParamSpec("size", DataType.string, ""),
            ]
        ),
    )


def requirements() -> list[str]:
    """Return what a served student needs, pinned to what is installed.

    A build's local suffix (``2.13.0+cpu``) is left out: indexes know the version without it.
    """
    return [f"{item}=={installed_version(item).partition('+')[0]}" for item in _REQUIREMENTS]


def _log_model(store: Store, run_id: str, folder: Path, digest: str) -> str:
    """Log the student as a model of a run and return its URI, ``models:/m-<id>``."""
    import mlflow

    from danceflow.models.package import read_manifest

    steps = read_manifest(folder)["num_steps"]

    package = Path(__file__).parents[1]  # danceflow is on no index: its code goes along
    with store.as_current(), warnings.catch_warnings(), mlflow.start_run(run_id=run_id):
        # An example would be run through the whole model, only to check the signature given here.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        model = mlflow.pyfunc.log_model(
            name=ARTIFACT,
            python_model=str(_SERVING),
            artifacts={ARTIFACT: str(folder)},
            code_paths=[str(package)],
            model_config={"digest": digest, "device": "cpu"},
            signature=signature(steps if isinstance(steps, int) else 0),
            pip_requirements=requirements(),
            tags=upload_tags(digest),
        )
    return str(model.model_uri)


def _require_model(store: Store, name: str) -> None:
    """Make the registered model when it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
