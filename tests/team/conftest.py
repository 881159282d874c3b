"""The servers of a team, started once for all tests of this folder, and a run of the pipeline."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from checkout import Checkout
from params_files import dump_yaml
from repository import ROOT
from team_servers import PLANTED, Servers

from danceflow.params.read import override
from danceflow.params.yaml12 import read_yaml
from flows.team import run
from flows.team.settings import load

CAPABILITY = "t2i"
TINY = {
    "run.num_threads": 1,
    "cache.num_samples": 4,
    "cache.num_steps": 2,
    "cache.batch_size": 4,
    "distill.init": "base",
    "distill.num_steps": 2,
    "distill.num_updates": 2,
    "distill.batch_size": 4,
    "distill.warmup": 1,
    "distill.checkpoint_every": 2,
    "distill.log_every": 1,
    "distill.evaluate_every": 2,
    "distill.evaluate_samples": 1,
    "distill.grid_every": 2,
    "evaluate.num_samples": 1,
    "gate.auto_promote": False,
    "evaluate.num_steps": 2,
    "evaluate.batch_size": 32,
    "evaluate.num_bootstrap": 20,
    "tracking.enabled": True,
    "tracking.uri": None,
    "tracking.experiment": "danceflow",
    "tracking.registered_model": "danceflow-scenes",
}


def tiny_params(root: Path) -> dict[str, Any]:
    """Return the parameters of the smallest run with the committed teachers."""
    data = override(read_yaml(root / "params.yaml"), TINY)
    sizes = {"num_train": 12, "num_validation": 12, "num_test": 12}
    data["data"]["buckets"] = {CAPABILITY: sizes}
    data["capabilities"] = {CAPABILITY: data["capabilities"][CAPABILITY]}
    data["teachers"] = {"base": data["teachers"]["base"]}
    data["gate"]["min_retention"] = {CAPABILITY: 0.0}
    return data


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="danceflow-team-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def started(place: Path) -> Iterator[Checkout]:
    """A checkout whose servers run."""
    checkout = Checkout(place, PLANTED)
    checkout.paths.params.write_text(dump_yaml(tiny_params(ROOT)))
    checkout.commit()
    try:
        run.up(checkout.root)
        yield checkout
    finally:
        run.down(checkout.root)


@pytest.fixture(scope="session")
def servers(started: Checkout) -> Servers:
    """The servers after one run of the pipeline, whose results are on the DVC remote."""
    team = load(started.root)
    environment = {**team.environment, **PLANTED}
    done = started.call("danceflow", "run", "--push", environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    started.commit()
    return Servers(started, team, done.stdout, done.stdout + done.stderr)


@pytest.fixture
def surroundings(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """This process with the addresses and passwords of the servers."""
    for name, value in servers.team.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(servers.checkout.root)
    return {**os.environ}
