"""The student opened from a folder, a tracked run or the model registry.

Only the weights and their description travel; no code that came with them is run here. What comes
from a store is checked against the digest that was registered before anything is read from it.
"""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import TrackingError, UsageError, WeightsError
from danceflow.ops.determinism import is_there
from danceflow.ops.files import file_digests
from danceflow.ops.tracking import (
    Store,
    TrackingSettings,
    open_store,
    store_errors,
    without_login,
)
from danceflow.params.read import load_params
from danceflow.paths import Paths, find_root
from danceflow.registry.student import Student

DIGEST_TAG = "student.digest"
ALIASES = ("champion", "challenger", "previous")
ARTIFACT = "student"  # the folder's name inside a logged model


@dataclass(frozen=True)
class Entry:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: its number.
        digest: what ``folder_digest`` finds in its files.
    """

    name: str
    version: int
    digest: str


def open_student(
    source: str | Path, settings: TrackingSettings | None = None, device: str = "cpu"
) -> Student:
    """Return a student that is ready to use.

    Args:
        source: a folder; ``champion``, ``challenger`` or ``previous``; ``runs:/<run id>``;
            ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        settings: where runs are recorded; None: as the parameters of this checkout say.
        device: where to compute.

    Raises:
        WeightsError: they are missing, truncated or not the ones that were registered.
        TrackingError: the store cannot be reached or knows no such run or model.
        UsageError: the source needs a store, and tracking is off or this is no checkout; or the
            device is not there.
        ConfigError: the parameters of this checkout are wrong.
    """
    if not is_there(device):
        raise UsageError(f"there is no device {device!r} on this machine")
    with package_of(source, settings) as package:
        return open_folder(package, None, device)


@contextlib.contextmanager
def package_of(source: str | Path, settings: TrackingSettings | None = None) -> Iterator[Path]:
    """Give the folder of a student; one that comes from a store was checked, and goes at the end.

    Args:
        source: As ``open_student``.
        settings: As ``open_student``.

    Raises:
        WeightsError: what the store has is not what was registered.
        TrackingError: As ``open_student``.
        UsageError: As ``open_student``.
        ConfigError: As ``open_student``.
    """
    text = str(source)
    if is_folder(text):
        yield Path(source)
        return
    settings, uri = as_uri(text, settings)
    store = open_store(settings)
    with fetched(store, find_entry(store, uri)) as package:
        yield package


def as_uri(source: str, settings: TrackingSettings | None) -> tuple[TrackingSettings, str]:
    """Return the store to look in, and the URI that an alias or an entry has there.

    Raises:
        UsageError: tracking is off, or this is no checkout.
        ConfigError: the parameters of this checkout are wrong.
    """
    settings = _checkout_settings() if settings is None else settings
    if not settings.enabled:
        raise UsageError(f"{source}: tracking is off, so there is no store to look in")
    if source in ALIASES:
        return settings, f"models:/{settings.registered_model}@{source}"
    return settings, source


def is_folder(source: str) -> bool:
    """Return whether a source names a folder, which may be missing, and no entry of a store."""
    return not source.startswith(("runs:/", "models:/")) and source not in ALIASES


def open_folder(
    folder: Path, digest: str | None, device: str, together: int | None = None
) -> Student:
    """Return the student in a folder, which is not needed any more then.

    Args:
        folder: what the training wrote.
        digest: what ``folder_digest`` must find; None: not checked.
        device: where to compute.
        together: rows of a batch, as ``Student`` takes it.

    Raises:
        WeightsError: it is missing, incomplete or another one.
    """
    if not folder.is_dir():
        raise WeightsError(f"{folder}: there is no student here; run the pipeline first")
    if digest is not None:
        require_content(folder, digest)
    from danceflow.models.package import load_package

    package = load_package(folder, device)
    # Read now: before they are asked the folder may be gone, or hold another student.
    package.family.frozen_networks()
    return Student(package, together)


def require_content(folder: Path, digest: str) -> None:
    """Check that a folder holds what was registered.

    Raises:
        WeightsError: it holds something else.
    """
    found = folder_digest(folder)
    if found != digest:
        raise WeightsError(
            f"{folder}: its content is not what was registered "
            f"(sha256 {found[:12]}..., registered {digest[:12]}...)"
        )


def find_entry(store: Store, source: str) -> Entry:
    """Return the version that a source means now.

    Args:
        store: where it is registered.
        source: ``runs:/<run id>``, ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.

    Raises:
        TrackingError: the store has no such student.
        UsageError: the source is written in another way.
    """
    with store_errors(store.uri):
        version = _find_version(store, source)
        digest = version.tags.get(DIGEST_TAG)
    if digest is None:
        raise TrackingError(f"{source}: version {version.version} is no danceflow student")
    return Entry(str(version.name), int(version.version), str(digest))


def registered(store: Store, name: str) -> dict[int, tuple[str, ...]]:
    """Return the versions of a registered model, the newest first, each with its aliases.

    Args:
        store: where it is registered.
        name: of the model; one that is not there has no versions.

    Raises:
        TrackingError: the store does not answer.
    """
    with store_errors(store.uri):
        versions = store.client.search_model_versions(f"name = '{name}'")
        if not versions:
            return {}
        aliases = dict(store.client.get_registered_model(name).aliases)
    numbers = sorted((int(version.version) for version in versions), reverse=True)
    return {
        number: tuple(alias for alias, of in sorted(aliases.items()) if int(of) == number)
        for number in numbers
    }


def open_entry(store: Store, entry: Entry, device: str, together: int | None = None) -> Student:
    """Return a version's student, ready to use.

    Raises:
        WeightsError: what comes is not what was registered.
        TrackingError: the store cannot be reached, or does not give it.
    """
    with fetched(store, entry) as package:
        return open_folder(package, None, device, together)


@contextlib.contextmanager
def fetched(store: Store, entry: Entry) -> Iterator[Path]:
    """Give the folder of a version's student, checked; it goes when the block is left.

    Raises:
        WeightsError: what comes is not what was registered.
        TrackingError: the store cannot be reached, or does not give it.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="danceflow-student-") as folder:
        with store_errors(store.uri), store.as_current():
            content = store.client.get_model_version_download_uri(entry.name, str(entry.version))
            place = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{content}/artifacts/{ARTIFACT}", dst_path=folder
            )
        require_content(Path(place), entry.digest)
        yield Path(place)


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's files: 64 hexadecimal digits over names and contents."""
    digest = hashlib.sha256()
    for name, content in file_digests(folder).items():
        digest.update(f"{name}\0{content}\n".encode())
    return digest.hexdigest()


def _checkout_settings() -> TrackingSettings:
    """Return where the checkout of the working folder records its runs."""
    root = find_root(Path.cwd())
    return TrackingSettings.of(root, load_params(Paths(root).params).tracking)


def _find_version(store: Store, source: str) -> Any:
    """Return the registry's entry for a source."""
    from mlflow.exceptions import MlflowException

    kind, _, rest = source.partition(":/")
    if kind == "runs":
        found = store.client.search_model_versions(f"run_id = '{rest.strip('/')}'")
        if not found:
            raise TrackingError(f"{source}: no student was registered from this run")
        return max(found, key=lambda version: int(version.version))
    name, at, alias = rest.strip("/").partition("@")
    if at:
        try:
            number = store.client.get_registered_model(name).aliases.get(alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise TrackingError(
                f"{source}: no student is registered as {name} yet in {without_login(store.uri)}; "
                "`danceflow run` registers one"
            ) from error
        if number is None:
            raise TrackingError(
                f"{source}: {name} has no {alias}: there never was one, or it was deleted; "
                "`danceflow promote <version>` makes a version the champion, `danceflow rollback` "
                "brings the one before a deleted champion back"
            )
        return store.client.get_model_version(name, number)
    name, slash, number = name.rpartition("/")
    if not slash:
        raise UsageError(f"{source}: write models:/<name>@<alias> or models:/<name>/<version>")
    return store.client.get_model_version(name, number)
