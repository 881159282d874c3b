"""Promotions against PostgreSQL: a race, an approval by a person, and a rollback."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from checkout import Checkout
from params_files import dump_yaml
from registered import enter, promotions_of
from repository import ROOT
from team_servers import ask

from danceflow.params.read import override
from danceflow.params.yaml12 import read_yaml
from flows.team.settings import Team, load

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

MODEL = "raced"
PATIENCE_S = 240


@pytest.fixture(scope="module")
def team(started: Checkout) -> Team:
    return load(started.root)


@pytest.fixture(scope="module")
def root(team: Team, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose registry is the team's; three versions wait, each better than the last."""
    root = tmp_path_factory.mktemp("raced")
    shutil.copy(ROOT / "dvc.yaml", root)
    data = override(read_yaml(ROOT / "params.yaml"), {"tracking.registered_model": MODEL})
    (root / "params.yaml").write_text(dump_yaml(data))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in team.environment.items():
            patch.setenv(name, value)
        assert [enter(root, score) for score in (0.7, 0.8, 0.9)] == [1, 2, 3]
    return root


def start(root: Path, team: Team, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "danceflow.cli", *arguments],
        cwd=root,
        env={**os.environ, **team.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How a command ended, and what it said."""
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out + err


def champion(root: Path, team: Team, monkeypatch: pytest.MonkeyPatch) -> int:
    for name, value in team.environment.items():
        monkeypatch.setenv(name, value)
    return int(promotions_of(root).holder("champion").version)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_why(
    root: Path, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [start(root, team, "promote", "1", "--reason", f"hand {hand}") for hand in (1, 2)]
    (won, _), (lost, why) = sorted(map(ended, both))
    assert (won, lost > 0) == (0, True)
    assert why.startswith("error: ")
    assert len(why.splitlines()) == 1
    assert champion(root, team, monkeypatch) == 1
    history = promotions_of(root).history()
    assert [change.version for change in history] == [1]
    assert history[0].reason in {"hand 1", "hand 2"}


def test_a_person_approves_and_is_remembered(
    root: Path, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = start(root, team, "promote", "2", "--wait-for-approval", "--reason", "better hands")
    try:
        answer = {"decision": "promote", "who": "Ada", "why": "looked at forty hands"}
        give(team, paused(team, asking)["id"], answer)
        code, said = ended(asking)
    finally:
        asking.kill()
    assert code == 0, said
    assert champion(root, team, monkeypatch) == 2
    last = promotions_of(root).history()[-1]
    assert (last.version, last.previous, last.reason) == (2, 1, "better hands")
    assert last.approval is not None
    assert (last.approval.by, last.approval.reason) == ("Ada", "looked at forty hands")


def test_a_rollback_restores_the_former_champion(
    root: Path, team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = ended(start(root, team, "rollback", "--reason", "six fingers"))
    assert code == 0, said
    assert champion(root, team, monkeypatch) == 1
    code, said = ended(start(root, team, "history", "--json"))
    assert code == 0, said
    changes: list[Mapping[str, Any]] = json.loads(said[said.index("[") :])
    assert [change["version"] for change in changes] == [1, 2, 1]
    assert changes[-1]["reason"] == "six fingers"


def paused(team: Team, asking: subprocess.Popen[str]) -> Any:
    """The flow run that waits for a person, once it does."""
    deadline = time.monotonic() + PATIENCE_S
    wanted = {"flow_runs": {"state": {"type": {"any_": ["PAUSED"]}}}}
    while not (found := ask(team, "flow_runs/filter", wanted)):
        assert asking.poll() is None, asking.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found[0]


def give(team: Team, run: str, answer: Mapping[str, str]) -> None:
    """Fill the form in, as soon as it is there."""
    deadline = time.monotonic() + PATIENCE_S
    told: Any = None
    while time.monotonic() < deadline:
        told = ask(team, f"flow_runs/{run}/resume", {"run_input": dict(answer)})
        if told["status"] == "ACCEPT":
            return
        time.sleep(0.5)
    raise AssertionError(told)
