"""A checkout that is moved or copied takes its runs and its registered students along."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scored import evidence_of

from danceflow.errors import TrackingError
from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.params.sections import GateParams
from danceflow.registry.open import open_student
from danceflow.registry.promotion import CHALLENGER, CHAMPION, Promotions
from danceflow.registry.register import register_student

NAME = "student"
POLICY = GateParams(
    confidence=0.95,
    min_score={},
    min_retention={"t2i": 0.9},
    max_regression=0.05,
    auto_promote=True,
)


def work(settings: TrackingSettings, strength: float) -> str:
    """Do what a run of the pipeline does with the store; return the run's id."""
    folder = settings.root / "student"
    folder.mkdir(exist_ok=True)
    (folder / "weights.json").write_text(f'{{"strength": {strength}}}')
    pointer = settings.root / f"run-{strength}.json"
    with start_run(settings, pointer, name="n", key=str(strength), params={}) as tracker:
        tracker.log_artifact(folder / "weights.json", "notes")
        run_id = str(tracker.run_id)
    store = open_store(settings)
    entry = register_student(store, lambda: run_id, folder, NAME, evidence_of(0.5))
    Promotions(store, NAME).consider(entry.version, POLICY, auto_promote=True)
    return run_id


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def places(database: Path) -> Iterator[str]:
    """Yield everything in a database that names a place on this disk."""
    connection = sqlite3.connect(database)
    for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        for row in connection.execute(f"SELECT * FROM {table}"):
            yield from (f"{table}: {item}" for item in row if "mlartifacts" in str(item))
    connection.close()


@pytest.fixture
def made(tracking: TrackingSettings, colour_package: None) -> TrackingSettings:
    """A checkout with two students, in a place with characters that a URI does not take as such."""
    root = tracking.root.parent / "all my work" / "50% näher" / "checkout"
    root.parent.mkdir(parents=True)
    tracking.root.rename(root)
    settings = replace(tracking, root=root)
    work(settings, 1.0)
    work(settings, 0.5)
    return settings


def move(root: Path) -> Path:
    return root.rename(root.with_name("moved here"))


def move_the_parent(root: Path) -> Path:
    root.parent.rename(root.parents[1] / "renamed")
    return root.parents[1] / "renamed" / root.name


def move_and_leave_a_link(root: Path) -> Path:
    there = move(root)
    root.symlink_to(there, target_is_directory=True)
    return root


def move_into_a_linked_disk(root: Path) -> Path:
    disk = root.parents[1] / "disk"
    disk.mkdir()
    (root.parents[1] / "link").symlink_to(disk, target_is_directory=True)
    shutil.move(root, disk / "checkout")
    return root.parents[1] / "link" / "checkout"


def move_and_leave_something_else(root: Path) -> Path:
    there = move(root)
    (root / "mlartifacts").mkdir(parents=True)
    return there


def copy(root: Path) -> Path:
    return Path(shutil.copytree(root, root.with_name("copy")))


MOVES = [
    move,
    move_the_parent,
    move_and_leave_a_link,
    move_into_a_linked_disk,
    move_and_leave_something_else,
    copy,
]


@pytest.mark.parametrize("how", MOVES)
def test_a_checkout_that_was_moved_goes_on_where_it_is(
    made: TrackingSettings, how: Callable[[Path], Path]
):
    former = made.root
    settings = replace(made, root=how(former))
    here = settings.root.resolve() / "mlartifacts"
    known = content(here)
    left = content(former.resolve()) if how is copy else None

    for source, colour in [("challenger", None), ("champion", None), (f"models:/{NAME}/1", 128)]:
        (image,) = open_student(source, settings).generate(["green"])
        assert colour is None or image.getpixel((0, 0)) == (0, colour, 0)
    import mlflow

    with open_store(settings).as_current():
        mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    assert {
        place for place in places(settings.root / "mlflow.db") if here.as_uri() not in place
    } == set()

    work(settings, 0.25)
    promotions = Promotions(open_store(settings), NAME)
    assert {promotions.holder(alias).version for alias in (CHAMPION, CHALLENGER)} == {3}
    assert promotions.rollback().version == 2
    now = content(here)
    assert len(now) > len(known)
    assert {name: now[name] for name in known} == known
    if how is copy:
        assert content(former) == left, "the copy wrote into the original"
        work(made, 0.75)
        assert content(here) == now, "the original wrote into the copy"
        open_student("challenger", made)
    elif how is move_and_leave_something_else:
        assert list((former / "mlartifacts").iterdir()) == []
    elif not former.is_symlink():
        assert not former.exists()


def test_a_linked_worktree_uses_the_moved_store(made, tmp_path):
    git = ["git", "-C", str(made.root)]
    (made.root / ".gitignore").write_text("*\n!.gitignore\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", "--detach", str(tmp_path / "tree")], check=True)
    there = move(made.root)
    repair = ["git", "-C", str(there), "worktree", "repair", str(tmp_path / "tree")]
    subprocess.run(repair, check=True, capture_output=True)
    open_student("challenger", replace(made, root=tmp_path / "tree"))
    assert not (tmp_path / "tree" / "mlflow.db").exists()


def test_artifacts_that_were_left_behind_are_told_with_the_command_that_brings_them(made):
    there = made.root.with_name("only the database")
    there.mkdir()
    shutil.copyfile(made.root / "mlflow.db", there / "mlflow.db")
    before = (there / "mlflow.db").read_bytes()
    settings = replace(made, root=there)
    with pytest.raises(TrackingError, match="artifacts of 4 of its runs and models") as caught:
        open_store(settings)
    assert (there / "mlflow.db").read_bytes() == before
    command = str(caught.value).split("`")[1]
    subprocess.run(command, shell=True, check=True)
    (image,) = open_student(f"models:/{NAME}/1", settings).generate(["green"])
    assert image.getpixel((0, 0)) == (0, 128, 0)
    assert content(there / "mlartifacts") == content(made.root / "mlartifacts")


def test_what_was_written_to_the_old_place_after_the_move_is_not_forgotten(made):
    """As it was before: a moved checkout went on in the folder that it had left."""
    there = move(made.root)
    run = next((there / "mlartifacts").glob("*/artifacts/notes")).parents[1]
    (made.root / "mlartifacts").mkdir(parents=True)
    shutil.move(run, made.root / "mlartifacts" / run.name)
    with pytest.raises(TrackingError, match="artifacts of 1 of its runs") as caught:
        open_store(replace(made, root=there))
    subprocess.run(str(caught.value).split("`")[1], shell=True, check=True)
    open_store(replace(made, root=there))
    assert (run / "artifacts" / "notes").is_dir()


def test_a_store_that_lies_elsewhere_is_not_touched(made, tmp_path):
    """It may be shared: who moved it has to say so."""
    (tmp_path / "project").mkdir()
    shared = move(made.root)
    before = (shared / "mlflow.db").read_bytes()
    for uri in (
        f"sqlite:///{shared}/mlflow.db",
        f"sqlite:///../{os.path.relpath(shared, tmp_path)}/mlflow.db",
    ):
        settings = replace(made, root=tmp_path / "project", uri=uri)
        with pytest.raises(TrackingError, match="No such artifact: 'student'"):
            open_student("champion", settings)
        assert (shared / "mlflow.db").read_bytes() == before


def test_experiments_that_danceflow_did_not_make_stay_as_they_are(made):
    foreign = [(made.root / "elsewhere").as_uri(), "s3://bucket/mlartifacts", "/srv/mlartifacts"]
    client = open_store(made).client
    for place in foreign:
        client.create_experiment(place.replace("/", "-"), artifact_location=place)
    client = open_store(replace(made, root=move(made.root))).client
    found = {experiment.artifact_location for experiment in client.search_experiments()}
    assert set(foreign) <= found


def test_a_database_that_may_not_be_changed_is_named_and_left_whole(made):
    there = replace(made, root=move(made.root))
    lock = sqlite3.connect(there.root / "mlflow.db", isolation_level=None)
    lock.execute(
        "CREATE TRIGGER no BEFORE UPDATE ON model_versions "
        "BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    before = sorted(places(there.root / "mlflow.db"))
    with pytest.raises(TrackingError, match=r"mlflow\.db: refused"):
        open_store(there)
    assert sorted(places(there.root / "mlflow.db")) == before
    lock.execute("DROP TRIGGER no")
    lock.close()
    open_student("champion", there)
