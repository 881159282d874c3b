"""A project's database: whole or not there, whoever is killed or comes at the same time."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from danceflow.errors import TrackingError
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.ops.tracking.database import prepare_database

# Not this process itself: what Prefect leaves in it lets no fork of it end well. MLflow is imported
# once, in the process that all others are forked from.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", "danceflow.ops.tracking"])

pytestmark = pytest.mark.pipeline


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "mlflow.db"


def ask(database: Path, question: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(question).fetchall()


def settings(database: Path) -> TrackingSettings:
    return TrackingSettings(database.parent, True, None, "scenes", "student")


def test_eight_processes_make_one_store(database: Path) -> None:
    others = [FORK.Process(target=open_store, args=(settings(database),)) for _ in range(8)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0] * 8
    places = [(name, f"file://{database.parent}/mlartifacts") for name in ("scenes",)]
    assert ask(database, "SELECT name, artifact_location FROM experiments")[1:] == places
    assert sorted(path.name for path in database.parent.iterdir()) == [
        "mlflow.db",
        "mlflow.db.lock",
    ]


def test_a_kill_while_it_is_made_breaks_nothing(database: Path) -> None:
    """Ten kills, each somewhere between the first table and the last."""
    work, rng = database.with_name("mlflow.db.making"), random.Random(0)
    killed = 0
    while killed < 10:
        process = FORK.Process(target=prepare_database, args=(database,))
        began = time.monotonic()
        process.start()
        while not (work / database.name).exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5) * (time.monotonic() - began + 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:  # it was done
            shutil.rmtree(work, ignore_errors=True)
            database.unlink()
            continue
        killed += 1
        if database.exists():  # killed behind the move
            prepare_database(database)
            database.unlink()
    store = open_store(settings(database))
    run = store.client.create_run(store.experiment_id)
    assert store.client.get_run(run.info.run_id).info.status == "RUNNING"
    assert not work.exists()


def older(database: Path, mlflow_template: Path) -> None:
    """Write a database of an older MLflow, with an experiment in it."""
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = create_sqlalchemy_engine(f"sqlite:///{database}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{database}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, _second(config))
    engine.dispose()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) "
            "VALUES (7, 'kept', 'active')"
        )


def _second(config) -> str:
    from alembic.script import ScriptDirectory

    revisions = [item.revision for item in ScriptDirectory.from_config(config).walk_revisions()]
    return revisions[-2]


def test_an_older_schema_is_brought_up_to_date_and_kept_as_it_was(database, mlflow_template):
    older(database, mlflow_template)
    ((before,),) = ask(database, "SELECT version_num FROM alembic_version")
    others = [FORK.Process(target=open_store, args=(settings(database),)) for _ in range(2)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    assert [process.exitcode for process in others] == [0, 0]
    version = "SELECT version_num FROM alembic_version"
    assert ask(database, version) == ask(mlflow_template, version)
    assert ask(database, "SELECT name FROM experiments WHERE experiment_id = 7") == [("kept",)]
    kept = database.with_name(f"mlflow.db.before-{before}")
    assert ask(kept, version) == [(before,)]


def _content(kind: str, database: Path, template: Path) -> None:
    if kind == "words":
        database.write_bytes(b"no database at all, only some words" * 100)
    elif kind == "torn":
        whole = template.read_bytes()
        database.write_bytes(whole[:4096] + bytes(len(whole) // 2))
    elif kind == "first tables":
        ask(database, "CREATE TABLE experiments (experiment_id INTEGER)")
    elif kind in ("half", "half with runs"):
        older(database, template)
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("CREATE TABLE secrets (secret_id TEXT)")
            if kind == "half with runs":
                connection.execute("INSERT INTO runs (run_uuid) VALUES ('a')")
    elif kind == "newer":
        shutil.copyfile(template, database)
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


def test_a_file_without_tables_becomes_a_database(database) -> None:
    ask(database, "PRAGMA user_version = 1")
    assert database.stat().st_size
    prepare_database(database)
    open_store(settings(database))


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("words", r"is no database, or is damaged .*mv mlflow.db mlflow.db.broken.*danceflow sync"),
        ("torn", r"is no database, or is damaged"),
        ("first tables", r"was made only in part.*holds no runs; move it away \(`mv mlflow.db"),
        ("half", r"was made only in part.*holds no runs; move it away"),
        ("half with runs", r"its tables are not.*it holds 1 runs; bring a copy"),
        ("newer", r"was made by another version of MLflow \(its schema is ffffffffffff\)"),
    ],
)
def test_what_cannot_be_used_is_told_with_what_to_do_and_stays(
    kind, told, database, mlflow_template
) -> None:
    _content(kind, database, mlflow_template)
    before = database.read_bytes()
    with pytest.raises(TrackingError, match=rf"{database}: {told}"):
        open_store(settings(database))
    assert database.read_bytes() == before
    assert not database.with_name("mlflow.db.making").exists()
