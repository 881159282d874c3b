"""A project's own database: made whole or not at all, and brought to what MLflow needs.

MLflow makes its tables one by one in the database itself, and so does an upgrade: who is killed
meanwhile leaves a half of it that nobody can use, and two at once break each other's. Here one
process does it, in a folder beside the database, while others wait; the name holds the result at
once.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.errors import TrackingError
from danceflow.ops.files import disk_errors, exclusive
from danceflow.ops.tracking.address import SQLITE
from danceflow.ops.tracking.anchor import artifact_root

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

_LOG = logging.getLogger(__name__)

_BUSY_TIMEOUT_S = 60.0


def prepare_database(database: Path) -> None:
    """Make a database with all of MLflow's tables, or bring an older one up to date.

    Of an older one a copy stays beside it, ``<name>.before-<its version>``.

    Args:
        database: an SQLite file, which need not exist.

    Raises:
        TrackingError: it is damaged, was made only in part, or belongs to a newer MLflow; the
            message says what to do.
        DiskSpaceError: there is no room.
    """
    if _version(database) == _scripts().get_current_head():
        return
    with exclusive(database), disk_errors(database):
        found = _version(database)  # another process may have been faster
        head = _scripts().get_current_head()
        if found == head:
            return
        work = database.with_name(f"{database.name}.making")
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        try:
            if found is None:
                _make(work / database.name, database)
            else:
                _upgrade(database, found, work / database.name)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _make(new: Path, database: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"{SQLITE}{new}", artifact_root(database).as_uri())
    store.engine.dispose()
    with new.open("rb+") as file:
        os.fsync(file.fileno())
    new.replace(database)
    _LOG.info("made %s", database)


def _upgrade(database: Path, found: str, new: Path) -> None:
    """Upgrade a copy, and write it into the database in one transaction."""
    import sqlalchemy.exc
    from alembic.util.exc import CommandError
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    known = {script.revision for script in _scripts().walk_revisions()}
    if found not in known:
        raise TrackingError(
            f"{database}: was made by another version of MLflow (its schema is {found}); install "
            "that version, or move the file away"
        )
    kept = database.with_name(f"{database.name}.before-{found}")
    with _opened(database) as live:
        before = live.execute("PRAGMA data_version").fetchone()
        with _opened(new, new=True) as copy:
            live.backup(copy)
        shutil.copyfile(new, new.with_name(kept.name))
        engine = create_sqlalchemy_engine(f"{SQLITE}{new}")
        try:
            _upgrade_db(engine)
        except (sqlalchemy.exc.SQLAlchemyError, CommandError) as error:
            raise _half_made(database) from error
        finally:
            engine.dispose()
        if live.execute("PRAGMA data_version").fetchone() != before:
            raise TrackingError(
                f"{database}: a process of an older version writes to it; end that first"
            )
        new.with_name(kept.name).replace(kept)
        with _opened(new) as copy:
            copy.backup(live)
    _LOG.info("%s: brought from schema %s up to date; as it was: %s", database, found, kept)


def _version(database: Path) -> str | None:
    """Return the version of a database's tables; None: there are none.

    Raises:
        TrackingError: it is damaged, or was made only in part.
    """
    if not database.exists() or database.stat().st_size == 0:
        return None
    try:
        with _opened(database) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if not tables:
                return None
            versions = (
                connection.execute("SELECT version_num FROM alembic_version").fetchall()
                if "alembic_version" in tables
                else []
            )
    except sqlite3.OperationalError:
        raise  # busy, or not to be read
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"{database}: is no database, or is damaged ({error}); bring a copy of it back, or "
            f"move it away (`mv {database.name} {database.name}.broken`): the next command makes "
            "an empty one, and `danceflow sync` records again what DVC and the work folders hold"
        ) from error
    if len(versions) != 1:
        raise _half_made(database)
    return str(versions[0][0])


def _half_made(database: Path) -> TrackingError:
    """Return the error for tables that an older danceflow was killed at."""
    with _opened(database) as connection, contextlib.suppress(sqlite3.Error):
        ((count,),) = connection.execute("SELECT count(*) FROM runs")
        if count:
            return TrackingError(
                f"{database}: its tables are not what MLflow needs, and it holds {count} runs; "
                "bring a copy of it back, or let `mlflow db upgrade` say more about a copy"
            )
    return TrackingError(
        f"{database}: was made only in part, by a process that was killed, and holds no runs; "
        f"move it away (`mv {database.name} {database.name}.broken`), and the next command makes it"
    )


def _scripts() -> "ScriptDirectory":
    """Return what MLflow knows about its schemas."""
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(""))


@contextlib.contextmanager
def _opened(database: Path, *, new: bool = False) -> Iterator[sqlite3.Connection]:
    mode = "rwc" if new else "rw"
    uri = f"{database.absolute().as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
        yield connection
