"""A project below the top of a repository: an experiment, then the repository is moved."""

import shutil
from pathlib import Path

import pytest
from checkout import Checkout, one_capability, outcomes

from danceflow.ops.tracking import open_store
from danceflow.paths import Paths
from danceflow.registry.open import open_student

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

BELOW = "team/project"


def test_an_experiment_keeps_its_runs_and_its_student_with_the_project(
    tmp_path: Path, mlflow_template: Path, prefect_server: None
) -> None:
    from prefect.settings import PREFECT_API_URL

    server = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    checkout = Checkout(tmp_path, server, below=BELOW)
    one_capability(checkout)
    top = tmp_path / "checkout"
    assert (top / ".git").is_dir()
    shutil.copyfile(mlflow_template, checkout.root / "mlflow.db")
    before = checkout.status()

    told = checkout.call("danceflow", "run", "-S", "distill.num_updates=3", "--name", "trial")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "the student is version 1" in told.stdout + told.stderr
    assert checkout.status() == before
    assert list(checkout.paths.worktrees.iterdir()) == []
    assert [path.parent for path in top.rglob("mlflow.db")] == [checkout.root]
    assert set(outcomes(told.stdout).values()) == {"ran", "frozen"}
    check(checkout)

    # Committed, the same experiment is there for everybody; moved, nothing is lost.
    assert "trial" in checkout.run("dvc", "exp", "show", "--csv")
    moved = tmp_path / "another place"
    top.rename(moved)
    checkout.root = moved / BELOW
    checkout.paths = Paths(checkout.root)
    code = (checkout.root / "src", checkout.root)
    checkout.environment = {**checkout.environment, "PYTHONPATH": ":".join(map(str, code))}
    check(checkout)
    made = checkout.run("danceflow", "generate", "a red circle", "--from", "challenger")
    assert (checkout.root / made.splitlines()[-1]).is_file()
    table = checkout.run("danceflow", "run", "-S", "distill.num_updates=1", "--name", "second")
    ran = outcomes(table)
    assert {name: ran[name] for name in ("prepare", "cache@t2i", "distill", "report")} == {
        "prepare": "restored",
        "cache@t2i": "restored",
        "distill": "ran",
        "report": "ran",
    }
    check(checkout, num_runs=2)
    assert not top.exists()


def check(checkout: Checkout, num_runs: int = 1) -> None:
    """The project's own store holds the runs, and every version can be opened."""
    store = open_store(checkout.tracking)
    assert store.uri == f"sqlite:///{checkout.root}/mlflow.db"
    runs = store.client.search_runs([store.experiment_id])
    assert len(runs) == num_runs
    for run in runs:
        assert run.info.artifact_uri.startswith((checkout.root / "mlartifacts").as_uri())
        assert store.client.list_artifacts(run.info.run_id, "images") != []
    name = checkout.tracking.registered_model
    versions = store.client.search_model_versions(f"name = '{name}'")
    assert len(versions) == num_runs
    for version in versions:
        open_student(f"models:/{name}/{version.version}", checkout.tracking)
    open_student("challenger", checkout.tracking)
