"""What is decided once for a team's servers."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danceflow.errors import DanceflowError, UsageError
from flows.team.settings import SERVICES, load, prepare, read_ports


def test_it_is_decided_once_and_written_for_its_owner_alone(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    assert prepare(tmp_path) == load(tmp_path) == first
    assert set(first.ports) == set(SERVICES)
    assert len(set(first.passwords.values())) == len(first.passwords) == 6
    assert all(len(word) >= 32 for word in first.passwords.values())
    for path in (first.folder / "passwords.json", first.environment_file):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not [word for word in first.passwords.values() if word in first.database("mlflow")]


def test_two_at_once_decide_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: prepare(tmp_path), range(4)))
    assert found == [found[0]] * 4


def test_a_shell_can_read_the_environment(tmp_path: Path) -> None:
    team = prepare(tmp_path)
    script = f"set -a; source {team.environment_file}; env"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    shown = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert {name: shown[name] for name in team.environment} == dict(team.environment)


def test_ports_are_chosen_or_given_and_stay(tmp_path: Path) -> None:
    first = prepare(tmp_path, {"mlflow": 21345})
    assert first.ports["mlflow"] == 21345
    assert prepare(tmp_path).ports == first.ports
    assert prepare(tmp_path, {"s3": 21346}).ports == {**first.ports, "s3": 21346}
    # Those that the system gives to whoever connects somewhere would be taken now and then.
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(port for name, port in first.ports.items()) < ephemeral


@pytest.mark.parametrize("text", ["mlflow", "mlflow=", "mlflow=x", "mlflow=0", "mlflow=65536"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="SERVICE=PORT"):
        read_ports([text])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'mlflow'"):
        prepare(tmp_path, read_ports(["mlflo=5000"]))
    with pytest.raises(UsageError, match="two services on one port"):
        prepare(tmp_path, read_ports(["mlflow=21345", "s3=21345"]))
    with pytest.raises(UsageError, match="danceflow team up"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    path = prepare(tmp_path).folder / "passwords.json"
    path.write_text(content + "Planted-Secret" if content == "{" else content)
    with pytest.raises(DanceflowError, match=r"passwords\.json") as caught:
        load(tmp_path)
    assert "Planted" not in str(caught.value)
