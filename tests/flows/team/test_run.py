"""A team's servers as a whole, as far as none of them needs to run."""

import sys
from pathlib import Path

import pytest

from danceflow.errors import UsageError
from flows.team import processes, run
from flows.team.services import Service
from flows.team.settings import prepare


def test_a_command_has_addresses_and_passwords(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    team = prepare(tmp_path)
    show = "import os; print(os.environ['MLFLOW_TRACKING_PASSWORD'], os.environ['HOME'])"
    assert run.call(tmp_path, [sys.executable, "-c", show]) == 0
    assert capfd.readouterr().out.split()[0] == team.passwords["mlflow"]
    assert run.call(tmp_path, [sys.executable, "-c", "raise SystemExit(7)"]) == 7
    with pytest.raises(UsageError, match="no-such-program: No such file"):
        run.call(tmp_path, ["no-such-program"])


def test_nothing_is_there_to_end_or_to_work_with(tmp_path: Path) -> None:
    assert run.down(tmp_path) == ()
    with pytest.raises(UsageError, match="danceflow team up"):
        run.call(tmp_path, ["true"])
    with pytest.raises(UsageError, match="danceflow team up"):
        run.standing(tmp_path)


def test_a_running_service_keeps_its_port(tmp_path: Path) -> None:
    team = prepare(tmp_path, {"mlflow": 21_347})
    code = "import time; time.sleep(300)"
    service = Service("mlflow", (sys.executable, "-c", code), {}, lambda: True, tmp_path)
    started = processes.start(service, team.folder, tmp_path / "log")
    while not processes.running(team.folder, "mlflow"):
        pass
    try:
        with pytest.raises(UsageError, match="mlflow runs on port 21347"):
            run.up(tmp_path, {"mlflow": 21_348})
    finally:
        assert run.down(tmp_path) == ("mlflow",)
        started.wait()
    assert prepare(tmp_path).ports["mlflow"] == 21_347
