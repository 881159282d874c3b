"""The servers of a team, started once for all tests of this folder, and a run of the pipeline."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from checkout import Checkout, one_capability
from team_servers import PLANTED, Servers

from flows.team import run
from flows.team.settings import load


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
    one_capability(checkout)
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
