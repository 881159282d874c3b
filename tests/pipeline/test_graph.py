"""dvc.yaml under the real DVC, around a command that only writes what the stage table says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from repository import ROOT

from danceflow.ops.runtime import TELEMETRY_OFF
from danceflow.params.yaml12 import read_yaml
from flows.dry_run import Fate, forecast

# Notes its call beside the checkout and writes the stage's outs; no two runs write the same.
COMMAND = f"""#!{sys.executable}
import sys, uuid
from pathlib import Path
from danceflow.stages import STAGES

name, item = sys.argv[2], sys.argv[-1]
with open("../calls", "a") as calls:
    print(*sys.argv[2:], file=calls)
for out in STAGES[name].outs:
    place = Path(out.path.format(item=item))
    file = place if place.suffix else place / "file"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{{{{"value": "{{uuid.uuid4()}}"}}}}')
"""

pytestmark = pytest.mark.pipeline


class Checkout:
    """A clone whose ``danceflow`` is the command above."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self._calls = folder / "calls"
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        command = programs / "danceflow"
        command.write_text(COMMAND)
        command.chmod(0o755)
        self._environment = {
            **os.environ,
            **TELEMETRY_OFF,
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "HOME": str(folder),
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        }

    def run(self, *command: str) -> str:
        """Return the output of a command run at the root."""
        done = subprocess.run(
            command, cwd=self.root, env=self._environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self) -> list[str]:
        """Bring everything up to date and return what was called for it."""
        self._calls.write_text("")
        self.run(sys.executable, "-m", "dvc", "repro")
        return self._calls.read_text().splitlines()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkout in which nothing ran yet."""
    folder = tmp_path_factory.mktemp("graph")
    made = Checkout(folder)
    made.root.mkdir()
    plain = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml")
    for name in (*plain, "params.yaml", "data/raw/README.md"):
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, made.root / name)
    stages = read_yaml(ROOT / "dvc.yaml")["stages"].values()
    for path in {dep for stage in stages for dep in stage["deps"] if dep.startswith("src/")}:
        place = made.root / path
        file = place if place.suffix else place / "module.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    made.run("danceflow", "stage", "teachers")  # as a clone has them: committed
    made.run("git", "init", "--quiet")
    made.run("git", "add", ".")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    made.run("git", *identity, "commit", "--quiet", "-m", "all")
    return folder


@pytest.fixture(scope="module")
def template_that_ran(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkout in which everything ran once."""
    folder = tmp_path_factory.mktemp("ran") / "of"
    assert len(copied(template, folder).repro()) > 1
    return folder


def copied(template: Path, folder: Path) -> Checkout:
    shutil.copytree(template, folder, symlinks=True, dirs_exist_ok=True)
    return Checkout(folder)


@pytest.fixture
def checkout(template: Path, tmp_path: Path) -> Checkout:
    """A clone in which nothing ran yet."""
    return copied(template, tmp_path)


@pytest.fixture
def ran(template_that_ran: Path, tmp_path: Path) -> Checkout:
    """A clone in which everything ran once."""
    return copied(template_that_ran, tmp_path)


def fates(checkout: Checkout, **overrides: object) -> dict[Fate, list[str]]:
    """What a dry run says, by what becomes of the stages."""
    found: dict[Fate, list[str]] = {}
    for item in forecast(checkout.root, None, overrides):
        found.setdefault(item.fate, []).append(item.stage)
    return found


def test_a_clone_runs_everything_but_the_frozen_stage_once(checkout: Checkout) -> None:
    assert set(fates(checkout)) == {Fate.RUNS, Fate.FROZEN}
    assert sorted(checkout.repro()) == [
        "cache --capability global_edit",
        "cache --capability local_edit",
        "cache --capability t2i",
        "distill",
        "evaluate --capability global_edit",
        "evaluate --capability local_edit",
        "evaluate --capability t2i",
        "prepare",
        "report",
    ]
    # What DVC keeps is ignored already; what is committed shows up, and nothing else changed.
    status = checkout.run("git", "status", "--porcelain", "--untracked-files=all")
    assert sorted(line[3:] for line in status.splitlines()) == [
        "dvc.lock",
        "reports/metrics.json",
    ]
    assert set(fates(checkout)) == {Fate.UP_TO_DATE, Fate.FROZEN}
    assert checkout.repro() == []


def test_a_changed_parameter_runs_what_depends_on_it(ran: Checkout) -> None:
    told = fates(ran, **{"gate.max_regression": 0.5})
    assert told[Fate.RUNS] == ["report"]
    assert Fate.MAY_RUN not in told
    params = ran.root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("experiment: danceflow", "experiment: other"))
    assert ran.repro() == []
    params.write_text(text.replace("max_regression: 0.05", "max_regression: 0.5"))
    assert ran.repro() == ["report"]
    params.write_text(
        text.replace("t2i, teacher: base, guidance: 2.0", "t2i, teacher: base, guidance: 3.0")
    )
    (cache,) = [item for item in forecast(ran.root) if item.stage == "cache@t2i"]
    assert str(cache) == "cache@t2i: runs\n  capabilities.t2i.guidance was 2.0, is 3.0"
    told = fates(ran)
    assert "cache@local_edit" in told[Fate.UP_TO_DATE]
    assert [call for call in ran.repro() if call.startswith("cache")] == ["cache --capability t2i"]


def test_what_ran_once_is_restored_and_not_executed_again(ran: Checkout) -> None:
    outs = {path: path.read_text() for path in (ran.root / "reports").rglob("*.json")}
    params = ran.root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("  seed: 0\n  image_size", "  seed: 1\n  image_size"))
    assert "prepare" in ran.repro()
    assert any(path.read_text() != content for path, content in outs.items())
    params.write_text(text)
    assert ran.repro() == []
    assert {path: path.read_text() for path in outs} == outs


def test_a_compiled_file_changes_nothing_and_a_source_file_does(ran: Checkout) -> None:
    compiled = ran.root / "src/danceflow/scenes/__pycache__/module.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"x")
    assert ran.repro() == []
    (ran.root / "src/danceflow/ops/files.py").write_text("CHANGED = 1\n")
    assert "its input src/danceflow/ops/files.py changed" in forecast(ran.root)[0].reasons
    assert "prepare" in ran.repro()
