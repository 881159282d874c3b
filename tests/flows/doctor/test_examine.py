"""All checks together."""

import json
from pathlib import Path

import pytest
from commands import Danceflow, in_this_process

from danceflow.ops import runtime
from flows.doctor import machine
from flows.doctor.examine import examine
from flows.doctor.finding import Level

pytestmark = pytest.mark.pipeline


@pytest.fixture
def danceflow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkout: Path
) -> Danceflow:
    monkeypatch.setattr(runtime, "start", lambda verbose: None)
    monkeypatch.setattr(runtime, "use_code_of", lambda root: None)
    monkeypatch.chdir(checkout)
    return in_this_process(monkeypatch, capsys)


def test_every_question_is_asked(checkout: Path) -> None:
    asked = {item.check for item in examine(checkout)}
    assert asked >= {"python", "packages", "disk", "memory", "port", "git", "dvc", "permissions"}
    assert asked >= {"leftovers", "prefect", "mlflow", "params", "device"}


def test_a_check_that_goes_wrong_is_a_finding(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError("no such device")

    monkeypatch.setattr(machine, "ports", broken)
    found = [item for item in examine(checkout) if item.check == "port"]
    assert [(item.level, "no such device" in item.text) for item in found] == [(Level.FAIL, True)]
    assert "device" in {item.check for item in examine(checkout)}


def test_the_exit_code_says_whether_something_fails(danceflow: Danceflow, checkout: Path) -> None:
    code, out, _ = danceflow("doctor", "--json")
    found = json.loads(out)
    assert code == 0, out
    assert {tuple(item) for item in found} == {("check", "level", "text", "advice")}
    (checkout / "params.yaml").write_text("run: {}\n")
    code, out, _ = danceflow("doctor")
    assert code == 1
    assert "\nfail params" in out


def test_a_judge_without_its_key_fails(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkout / "params.yaml"
    judge = "{url: 'http://127.0.0.1:9/v1', model: m, key_variable: JUDGE_KEY, offline: false, "
    judge += "is_score: false, num_samples: 1, num_retries: 0, max_unusable: 0.5, timeout_s: 1.0, "
    judge += "price_in: 0.0, price_out: 0.0}"
    path.write_text(path.read_text().replace("judge: null", f"judge: {judge}"))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert [str(i.level) for i in examine(checkout) if i.check == "judge"] == ["fail"]
    monkeypatch.setenv("JUDGE_KEY", "Planted-1")
    text = "\n".join(map(str, examine(checkout)))
    assert not [line for line in text.splitlines() if line.split()[1] == "judge"]
    assert "Planted" not in text
