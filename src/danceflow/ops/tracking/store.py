"""The tracking store: where it is, whether it answers, and what it raises."""

import contextlib
import functools
import logging
import os
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from danceflow.errors import StoreAwayError, TrackingError
from danceflow.ops.tracking.address import (
    HTTP,
    POSTGRES,
    SQLITE,
    holds_login,
    require_driver,
    scheme_of,
    take_apart,
    without_login,
)
from danceflow.ops.tracking.anchor import anchor, artifact_root
from danceflow.ops.tracking.database import prepare_database
from danceflow.ops.tracking.login import use_login
from danceflow.ops.tracking.place import git_says, main_checkout

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOG = logging.getLogger(__name__)

DATABASE = "mlflow.db"
KIND_TAG = "mlflow.experimentKind"
TRAINING = "custom_model_development"  # MLflow's name of the kind "model training"

# What MLflow's page writes by itself where nobody chose a kind.
_NO_KIND = (
    None,
    "",
    "no_inferred_type",
    "genai_development_inferred",
    "custom_model_development_inferred",
)
_REACH_TIMEOUT_S = 5.0
# What a flow tells its stages about itself.
_FLOW_TAGS = {
    "prefect.flow_run_id": "DANCEFLOW_FLOW_RUN",
    "prefect.flow_run_url": "DANCEFLOW_FLOW_PAGE",
}
_REFUSED = re.compile(r"failed with error code 40[13]\b")
# What MLflow, requests and PostgreSQL's driver say of a store that is not there for the moment.
_AWAY = re.compile(
    r"failed with (timeout )?exception|Max retries exceeded|error code 50[234]\b"
    r"|too many 50[234] error|Connection (refused|reset|aborted)"
    r"|server closed the connection|connection already closed|database system is"
)
_ADVISORY_LOCK = 4_061_977  # any number, the same in every process that opens a store
_GLOBAL_STORE = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")

T = TypeVar("T")


class TrackingSection(Protocol):
    """What the ``tracking`` section of the parameters says."""

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""

    @property
    def uri(self) -> str | None:
        """The tracking store."""

    @property
    def experiment(self) -> str:
        """The MLflow experiment's name."""

    @property
    def registered_model(self) -> str:
        """The student's name in the model registry."""


@dataclass(frozen=True)
class TrackingSettings:
    """Where runs are recorded.

    Attributes:
        root: the checkout that the stage works in (a worktree or a DVC temporary folder too).
        enabled: False makes every tracker one that records nothing.
        uri: the tracking store; None: ``mlflow.db`` in the main checkout.
        experiment: the MLflow experiment's name.
        registered_model: the student's name in the model registry.
    """

    root: Path
    enabled: bool
    uri: str | None = field(repr=False)  # it may hold a password
    experiment: str
    registered_model: str

    @staticmethod
    def of(root: Path, section: TrackingSection) -> "TrackingSettings":
        """Return the settings of a checkout, from the ``tracking`` section of its parameters."""
        return TrackingSettings(
            root, section.enabled, section.uri, section.experiment, section.registered_model
        )


@dataclass(frozen=True)
class Store:
    """A tracking store that answered, and the experiment in it.

    Attributes:
        uri: where it is; a server's is without its login.
        client: of MLflow; it logs in by itself.
        experiment_id: of the experiment that runs go to.
    """

    uri: str = field(repr=False)
    client: "MlflowClient"
    experiment_id: str

    @contextlib.contextmanager
    def as_current(self) -> Iterator[None]:
        """Make it MLflow's global store within the block, for what takes no client.

        MLflow keeps the global store in the environment as well, where it would outrank the
        parameters of everything that follows: both are put back.
        """
        import mlflow

        kept = {name: os.environ.get(name) for name in _GLOBAL_STORE}
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def resolve_uri(root: Path, configured: str | None) -> str:
    """Return the absolute URI of the tracking store.

    ``MLFLOW_TRACKING_URI`` goes first, then ``configured``, then ``mlflow.db`` in the main
    checkout. A relative SQLite path is relative to the main checkout, so that a worktree or DVC's
    temporary folder, which are deleted afterwards, never hold the store.

    Args:
        root: the checkout that is worked in.
        configured: ``tracking.uri`` of the parameters.

    Raises:
        TrackingError: the URI names a folder, which MLflow takes no more, or memory.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or configured
    main = main_checkout(root)
    if uri is None:
        return f"{SQLITE}{main / DATABASE}"
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme == "file":
        raise TrackingError(
            f"tracking.uri {without_login(uri)!r}: MLflow keeps no runs in plain folders; "
            "write sqlite:///<path>/mlflow.db or a server's http address"
        )
    if scheme != "sqlite":
        return uri
    path = uri.removeprefix(SQLITE)
    if path == uri or not path or path == ":memory:":
        raise TrackingError(
            f"tracking.uri {without_login(uri)!r}: write sqlite:///<path of a file>"
        )
    return f"{SQLITE}{main / path}"


def open_store(settings: TrackingSettings) -> Store:
    """Return the store, after it answered; the experiment is made when it is missing.

    Raises:
        StoreAwayError: within seconds, when it does not answer.
        TrackingError: it cannot be used: no such place, no driver, a wrong login, a damaged
            database.
    """
    uri, login = take_apart(resolve_uri(settings.root, settings.uri))
    require_driver(uri)
    if settings.uri is not None and holds_login(settings.uri):
        _warn_of_login(str(settings.root))
    _reach(uri)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    artifacts = None  # a server decides itself where they go
    with store_errors(uri), _alone(uri):
        if login is not None:
            use_login(uri, login)
        if uri.startswith(SQLITE):
            database = Path(uri.removeprefix(SQLITE))
            prepare_database(database)
            # It writes the traceback of what it raises, which leaves as one error (store_errors).
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
            artifacts = artifact_root(database)
        elif scheme_of(uri) == POSTGRES:
            artifacts = artifact_root(main_checkout(settings.root) / DATABASE)
        client = MlflowClient(uri, uri)
        if uri.startswith(SQLITE):
            database = Path(uri.removeprefix(SQLITE))
            if database.resolve().is_relative_to(main_checkout(settings.root)):
                anchor(database)  # elsewhere it is not the project's, and stays as it is
        return Store(uri, client, _experiment(client, uri, settings.experiment, artifacts))


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Let whatever MLflow, its database or its connection raise leave as ``TrackingError``.

    What led to it is told with it, unless an address with a login stands in there.
    """
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    known = (MlflowException, sqlalchemy.exc.SQLAlchemyError, sqlite3.Error, OSError)
    try:
        yield
    except known as error:
        text = _reason(error)
        kind = StoreAwayError if _AWAY.search(text) else TrackingError
        told = kind(without_login(f"MLflow at {uri}: {text}"))
        raise told from (None if any(map(holds_login, _chain(error))) else error)


def known(ask: Callable[[], T]) -> T | None:
    """Return MLflow's answer, or None when it knows no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def runs_page(address: str, store: Store, view: str | None = None) -> str:
    """Return the address of the experiment's runs on MLflow's page.

    The page opens every experiment as one of traces, of whatever kind it is, unless its address
    says otherwise.

    Args:
        address: of the page.
        store: the store that it shows.
        view: a view that is saved in the experiment; None: the page's usual columns.
    """
    kind = "workflowType=machine_learning"
    place = f"{address.rstrip('/')}/#/experiments/{store.experiment_id}"
    if view is not None:
        return without_login(f"{place}/runs?{kind}&viewStateShareKey={view}")
    return without_login(f"{place}?{kind}")


def run_page(address: str, store: Store, run_id: str) -> str:
    """Return the address of a run on MLflow's page.

    Args:
        address: of the page.
        store: the store that it shows.
        run_id: MLflow's id of the run.
    """
    place = f"#/experiments/{store.experiment_id}/runs/{run_id}"
    return without_login(f"{address.rstrip('/')}/{place}")


def _reason(error: BaseException) -> str:
    """Return all that an error says, in one line.

    What SQLAlchemy puts around a database's words, the statement and its values, is left out.
    """
    from sqlalchemy.exc import DBAPIError

    text = str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DBAPIError) and str(cause) == str(error):
            text = str(cause.orig)
        cause = cause.__cause__
    if _REFUSED.search(text):
        return (
            "the server refuses the login; write it as http://<name>:<password>@<host> in "
            "MLFLOW_TRACKING_URI, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    return " ".join(text.split()) or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[str]:
    """Yield what an error and all that led to it say."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__


def source_tags(root: Path) -> dict[str, str]:
    """Return tags that say which code and which experiment a run comes from.

    MLflow's own commit tag hides local changes, hence ``git.dirty``.
    """
    tags = {"mlflow.user": getuser(), "mlflow.source.name": "danceflow"}
    commit = git_says(root, "rev-parse", "HEAD")
    if commit is not None:
        tags["git.commit"] = tags["mlflow.source.git.commit"] = commit
        changes = git_says(root, "status", "--porcelain", "--untracked-files=no")
        tags["git.dirty"] = str(changes != "").lower()
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = experiment
    for tag, name in _FLOW_TAGS.items():
        if value := os.environ.get(name):
            tags[tag] = value
    return tags


def _reach(uri: str) -> None:
    """Raise where a server does not answer or a database's folder is missing."""
    if uri.startswith(SQLITE):
        folder = Path(uri.removeprefix(SQLITE)).parent
        if not folder.is_dir():
            raise TrackingError(f"MLflow at {uri}: {folder} is no folder")
        if not os.access(folder, os.W_OK):
            raise TrackingError(f"MLflow at {uri}: {folder} may not be written to")
        return
    if scheme_of(uri) not in HTTP:
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_REACH_TIMEOUT_S):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return  # it answers; the path may be hidden behind a proxy or a login
        reason: object = f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
    _away(uri, reason)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes from opening a store of PostgreSQL's within the block.

    The first one makes MLflow's tables, and two at once would break each other's.
    """
    if scheme_of(uri) != POSTGRES:
        yield
        return
    import sqlalchemy

    patience = {"connect_timeout": int(_REACH_TIMEOUT_S)}
    engine = sqlalchemy.create_engine(
        uri, poolclass=sqlalchemy.pool.NullPool, connect_args=patience
    )
    try:
        connection = engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        if "FATAL:" in str(error.orig) and "database system is" not in str(error.orig):
            raise  # it answers: a wrong password, no such database
        _away(uri, " ".join(str(error.orig).split()))
    with connection:
        lock = sqlalchemy.text("SELECT pg_advisory_lock(:number)")
        connection.execute(lock, {"number": _ADVISORY_LOCK})
        yield


@functools.cache
def _warn_of_login(root: str) -> None:
    """Say once that a password stands where git may keep it."""
    _LOG.warning(
        "%s/params.yaml: tracking.uri holds a login, which git keeps once that file is committed; "
        "give it in MLFLOW_TRACKING_URI",
        root,
    )


def _away(uri: str, reason: object) -> NoReturn:
    raise StoreAwayError(
        without_login(
            f"MLflow at {uri} does not answer ({reason}); start it, change tracking.uri or "
            "MLFLOW_TRACKING_URI, or set tracking.enabled to false"
        )
    )


def _experiment(client: "MlflowClient", uri: str, name: str, artifacts: Path | None) -> str:
    """Return the id of an experiment, made when it is missing."""
    from mlflow.exceptions import MlflowException

    location = None if artifacts is None else artifacts.as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(
                client.create_experiment(
                    name, artifact_location=location, tags={KIND_TAG: TRAINING}
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was faster
    if found is None or found.lifecycle_stage != "active":
        number = "" if found is None else f" --experiment-id {found.experiment_id}"
        raise TrackingError(
            f"MLflow at {without_login(uri)}: experiment {name!r} was deleted; restore it there: "
            f"mlflow experiments restore{number}"
        )
    if found.tags.get(KIND_TAG) in _NO_KIND:
        client.set_experiment_tag(found.experiment_id, KIND_TAG, TRAINING)
    return str(found.experiment_id)
