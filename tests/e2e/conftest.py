"""The whole pipeline, run once for all tests of this folder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from checkout import Checkout


@dataclass(frozen=True)
class Finished:
    """A checkout in which the pipeline ran; everything in it is committed.

    Attributes:
        checkout: its state is that of the run, before and after every test.
        table: what ``danceflow run`` printed.
    """

    checkout: Checkout
    table: str


@pytest.fixture(scope="session")
def first_run(
    tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, prefect_server: None
) -> Finished:
    """The tutorial's first command: real stages through a real Prefect server, DVC and MLflow."""
    from prefect.settings import PREFECT_API_URL

    server = {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    checkout = Checkout(tmp_path_factory.mktemp("e2e"), server)
    shutil.copyfile(mlflow_template, checkout.root / "mlflow.db")
    checkout.take_environment()
    table = checkout.run("make", "--silent", "run", "ARGS=--parallel 2")
    checkout.commit()
    return Finished(checkout, table)


@pytest.fixture
def finished(first_run: Finished) -> Finished:
    """The finished checkout, also after a test that changed and left it."""
    first_run.checkout.restore()
    return first_run
