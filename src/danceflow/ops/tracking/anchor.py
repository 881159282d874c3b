"""A store that came along with its project finds its artifacts where the project is now.

MLflow writes the absolute place of every artifact into its database. Once a checkout is moved or
copied, what it holds lies elsewhere, and whatever is recorded next would go to the old place: back
into a folder that was given up, or into the checkout that this one is a copy of.
"""

import contextlib
import logging
import shlex
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from danceflow.errors import TrackingError

_LOG = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"

_BUSY_TIMEOUT_S = 60.0
# Every column that holds places of artifacts; the first one decides where new ones go.
_EXPERIMENTS = ("experiments", "artifact_location")
_FOLDERS = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))
_COLUMNS = (
    _EXPERIMENTS,
    *_FOLDERS,
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
    ("trace_tags", "value"),
)


def artifact_root(database: Path) -> Path:
    """Return the folder of the artifacts of a project's own store: beside the database."""
    return database.parent / ARTIFACTS


def anchor(database: Path) -> None:
    """Let a project's own database name its artifacts where they lie now, all of them or none.

    Experiments whose artifacts lie in a folder of another name were not made by danceflow; they
    stay as they are.

    Args:
        database: an SQLite database with MLflow's tables.

    Raises:
        TrackingError: artifacts were left behind; it gives the command that brings them.
        sqlite3.Error: the database refuses.
    """
    here = artifact_root(database)
    if not _elsewhere(database, here):
        return
    with _transaction(database) as connection:
        for location in _former_roots(connection, here):
            _require_all(connection, database, location, here)
            for table, column in _COLUMNS:
                _replace(connection, table, column, location, here.as_uri())
            _LOG.info("%s: its artifacts were in %s and are in %s", database, location, here)


def _elsewhere(database: Path, here: Path) -> bool:
    """Return whether the database names another place than ``here``; it is not locked for that."""
    with contextlib.closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection:
        return bool(_former_roots(connection, here))


@contextlib.contextmanager
def _transaction(database: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection that alone may write; what it wrote is kept unless there is an error."""
    with contextlib.closing(
        sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _former_roots(connection: sqlite3.Connection, here: Path) -> Sequence[str]:
    """Return the places other than ``here`` where danceflow's experiments keep artifacts."""
    table, column = _EXPERIMENTS
    rows = connection.execute(f"SELECT DISTINCT {column} FROM {table}")  # noqa: S608
    return [
        location
        for (location,) in rows
        if location and location.startswith("file:") and location != here.as_uri()
        if _path(location).name == ARTIFACTS
    ]


def _require_all(connection: sqlite3.Connection, database: Path, location: str, here: Path) -> None:
    """Raise TrackingError if something is at the former place and not ``here``."""
    former = _path(location)
    if not _is_folder(former):
        return
    left = 0
    for table, column in _FOLDERS:
        rows = connection.execute(f"SELECT {column} FROM {table}")  # noqa: S608
        for (folder,) in rows:
            if folder and folder.startswith(f"{location}/"):
                part = _path(folder).relative_to(former)
                left += _is_folder(former / part) and not _is_folder(here / part)
    if left:
        command = f"mkdir -p {shlex.quote(str(here))} && cp -an {shlex.quote(str(former))}/. "
        raise TrackingError(
            f"{database}: the artifacts of {left} of its runs and models are in {former} and not "
            f"beside it; bring them with `{command}{shlex.quote(str(here))}/`"
        )


def _replace(connection: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    """Put ``new`` in the place of ``old``, and of ``old`` at the start of a longer path."""
    connection.execute(
        f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "  # noqa: S608
        f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
        {"old": old, "new": new},
    )


def _is_folder(path: Path) -> bool:
    """Return whether there is a folder; what may not be looked at is none of ours."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _path(uri: str) -> Path:
    """Return the path that a ``file:`` URI names."""
    return Path(unquote(urlsplit(uri).path))
