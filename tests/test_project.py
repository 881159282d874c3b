"""What the two commands stand on: pins, settings, ignored files, the Makefile."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
REQUIRED = [
    re.split(r"[<>=]", text)[0]
    for text in (
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
    )
]


def _name(name: str) -> str:
    return name.lower().replace("_", "-")


def test_pins_are_exact_and_name_no_place() -> None:
    for name, pin in PINS.items():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", pin), f"{name}=={pin}"


def test_what_is_required_is_pinned_and_installed_so() -> None:
    pins = {_name(name): pin for name, pin in PINS.items()}
    for name in REQUIRED:
        assert version(name).partition("+")[0] == pins[_name(name)], name


def test_the_pins_that_matter() -> None:
    assert PINS["torch"] == "2.13.0"
    assert tuple(int(part) for part in PINS["fastapi"].split(".")[:2]) < (0, 151)


def test_prefect_waits_long_enough_for_its_server() -> None:
    code = (
        "from prefect.settings import get_current_settings\n"
        "server = get_current_settings().server\n"
        "print(server.ephemeral.startup_timeout_seconds, server.analytics_enabled)"
    )
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["120", "False"]


def _ignored(path: str) -> bool:
    done = subprocess.run(
        ["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT, check=False
    )
    assert done.returncode in {0, 1}
    return done.returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        ".venv/bin/python",
        "mlflow.db",
        "mlflow.db-wal",
        "mlruns/0/x",
        "mlartifacts/0/x",
        ".danceflow/work/x",
        "src/danceflow/__pycache__/x.pyc",
        ".coverage",
        "data/buckets/t2i/x.arrow",
        "data/cache/t2i/x",
        "models/student/x.safetensors",
        "reports/distill/metrics.jsonl",
        "reports/evaluate/t2i/grid.png",
        "models/teachers/.base.safetensors.1-ab.partial",
    ],
)
def test_what_git_must_not_hold_is_ignored(path: str) -> None:
    assert _ignored(path)


@pytest.mark.parametrize(
    "path",
    [
        "dvc.lock",
        "models/teachers/base.safetensors",
        "models/teachers/base/weights.safetensors",
        "reports/teachers/t2i.png",
        "reports/teachers.json",
        "reports/data.json",
        "reports/evaluate/t2i.json",
        "reports/summary.json",
        "reports/gate.json",
        "src/danceflow/data/cache.py",
        "src/danceflow/models/families/sd3.py",
    ],
)
def test_what_git_must_hold_is_not_ignored(path: str) -> None:
    assert not _ignored(path)


def _make(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_make_lists_its_targets() -> None:
    named = re.findall(r"make (\w+) ", _make("help"))
    assert {"run", "test", "check", "ui", "teachers", "clean", "help"} <= set(named)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("run", "danceflow run"),
        ("test", "python -m pytest --cov --cov-report=term --cov-fail-under=85"),
        ("check", "danceflow check"),
        ("ui", "danceflow ui"),
        ("teachers", "danceflow teachers"),
    ],
)
def test_make_sets_up_and_then_calls_the_command(target: str, command: str) -> None:
    lines = _make("--dry-run", "--always-make", target).splitlines()
    setup = next(index for index, line in enumerate(lines) if "pip install" in line)
    assert "--constraint constraints.txt --editable '.[dev]'" in lines[setup]
    assert any(line.startswith(command) for line in lines[setup + 1 :])


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
