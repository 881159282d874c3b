"""A small project with the real tools around stages that take a moment each."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from danceflow.ops.tracking import TrackingSettings
from flows.dvc_graph import write_parameters

# What the tests below rely on; the rest is the embedded default's.
PARAMETERS = {
    "distill.num_updates": 600,
    "gate.min_retention": {"t2i": 0.9, "local_edit": 0.9, "global_edit": 0.9},
    "gate.auto_promote": True,
    "tracking.enabled": True,
    "tracking.uri": None,
    "tracking.experiment": "danceflow",
    "tracking.registered_model": "danceflow-scenes",
}

GRAPH = """
# The shape of the real graph: a root, a frozen stage, two siblings, a training, a report.
stages:
  prepare:
    cmd: python stage.py prepare
    deps: [stage.py, raw.csv]
    params: [data.seed]
    outs: [data/buckets]
  teachers:
    frozen: true  # its outs are committed
    cmd: python stage.py teachers
    deps: [data/buckets]
    outs:
      - models/teachers:
          cache: false
          persist: true
  cache:
    matrix:
      capability: [t2i, local_edit]
    cmd: python stage.py cache ${item.capability}
    deps: [stage.py, data/buckets, models/teachers]
    params: [cache]
    outs: ["data/cache/${item.capability}"]
  distill:
    cmd: python stage.py distill
    deps: [stage.py, data/cache]
    params: [distill]
    outs: [models/student, reports/distill]
  report:
    cmd: python stage.py report
    deps: [stage.py, models/student]
    outs: [reports/evaluate, reports/summary.json]
    metrics:
      - reports/metrics.json:
          cache: false
"""

STAGE = """
import json, os, subprocess, sys, time
from pathlib import Path
import yaml

name, item = sys.argv[1], sys.argv[-1]
calls = Path(os.environ["CALLS"])
params = yaml.safe_load(Path("params.yaml").read_text())

def note(text):
    with calls.open("a") as file:
        print(text, file=file)

def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

stage = f"{name}@{item}" if item != name else name
note(f"{stage} begins")
print(f"{stage}: hello", flush=True)
trouble = calls.with_name(f"trouble-{stage}")
if trouble.exists():
    kind, _, times = trouble.read_text().partition(" ")
    if kind == "sleep":
        subprocess.Popen(["sleep", "300"])
        write(calls.with_name("sleeping"), str(os.getpgid(0)))
        time.sleep(300)
    if times == "":
        trouble.unlink()
    print(f"{stage}: something is wrong", file=sys.stderr)
    sys.exit(int(kind))
if name == "prepare":
    seed = params["data"]["seed"]
    write("data/buckets/rows.txt", f"{seed} {Path('raw.csv').read_text()}")
if name == "teachers":
    write("models/teachers/weights.txt", "trained again")
if name == "cache":
    time.sleep(float(os.environ.get("PAUSE", "0")))
    write(f"data/cache/{item}/rows.txt", f"{item} {params['cache']['num_samples']}")
if name == "distill":
    steps = params["distill"]["num_updates"]
    write("models/student/weights.json", json.dumps({"strength": steps}))
    manifest = {"family": "none", "num_steps": params["evaluate"]["num_steps"], "files": {}}
    write("models/student/manifest.json", json.dumps(manifest))
    row = {"step": steps, "capability": "t2i", "loss": 1 / steps, "sigma_bins": {"low": 0.5}}
    write("reports/distill/metrics.jsonl", json.dumps(row) + chr(10))
    from danceflow.params.read import load_params
    from danceflow.ops.tracking import TrackingSettings, start_run
    settings = TrackingSettings.of(Path.cwd(), load_params(Path("params.yaml")).tracking)
    pointer = Path("reports/distill/run.json")
    with start_run(settings, pointer, name="run", key="key", params=params["distill"]) as run:
        run.log_metrics({"loss/t2i": 1 / steps}, steps)
if name == "report":
    steps = json.loads(Path("models/student/weights.json").read_text())["strength"]
    score = min(1.0, steps / 1000)
    row = {"student": score, "teacher": 1.0, "start": 0.1, "retention": score}
    row |= {"retention_interval": [score - 0.01, score + 0.01], "num_samples": 4}
    names = params["capabilities"]
    write("reports/summary.json", json.dumps({"capabilities": {name: row for name in names}}))
    metrics = {"score": {"t2i": score}, "retention": {"t2i": score}, "verdict": "fail"}
    metrics["seconds"] = 7
    write("reports/metrics.json", json.dumps(metrics))
    from PIL import Image
    Path("reports/evaluate/t2i").mkdir(parents=True)
    asked = {"variant": "standard", "seed": 0}
    answers = [{"uid": str(n), "category": f"c{n % 2}", **asked} for n in range(30)]
    def field(mark):
        rows = [{**answer, "score": mark} for answer in answers]
        parts = dict.fromkeys(("categories", "variants", "metrics", "field_gap"), {})
        return {"score": mark, "rows": rows, **parts}
    for name in names:
        fields = {"student": field(score), "start": field(0.1), "teacher:base": field(1.0)}
        found = {"capability": name, "scale": 1.0, "teacher": "teacher:base", "num_steps": 4}
        found |= {"extractor": "none", "seconds": 1.0, "fields": fields}
        write(f"reports/evaluate/{name}.json", json.dumps(found))
        identity = {"num_steps": params["evaluate"]["num_steps"]}
        write(f"reports/evaluate/{name}/identity.json", json.dumps(identity))
    Image.new("RGB", (64, 32), "red").save("reports/evaluate/t2i/grid.png")
note(f"{stage} ends")
"""


class Project:
    """A git and DVC repository, and a note of which stages ran."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.calls_file = folder / "calls"
        self.environment = {
            **os.environ,
            "CALLS": str(self.calls_file),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }

    def run(self, *command: str, check: bool = True) -> str:
        """Return the output of a command run in the repository."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def calls(self) -> list[str]:
        """Return what ran since the last call: ``<stage> begins`` and ``<stage> ends``."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return lines

    def began(self) -> list[str]:
        """Return the stages that ran since the last call."""
        return [line.removesuffix(" begins") for line in self.calls() if line.endswith("begins")]

    def trouble(self, stage: str, kind: str) -> None:
        """Let a stage exit with a code (once, or with `` always`` each time), or ``sleep``."""
        self.calls_file.with_name(f"trouble-{stage}").write_text(kind)

    def calm(self, stage: str) -> None:
        """Let a stage work again."""
        self.calls_file.with_name(f"trouble-{stage}").unlink(missing_ok=True)

    def lock(self) -> Mapping[str, Any]:
        """Return the stages of ``dvc.lock``."""
        import yaml

        stages: Mapping[str, Any] = yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]
        return stages

    def status(self) -> str:
        """Return what git sees as changed or new."""
        return self.run("git", "status", "--porcelain")

    def take_surroundings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process, too, note calls and keep DVC's records beside this project."""
        for name in ("CALLS", "DVC_SITE_CACHE_DIR"):
            monkeypatch.setenv(name, self.environment[name])

    def without_tracking(self) -> None:
        """Let it record no runs: the stages take no time at all."""
        path = self.root / "params.yaml"
        path.write_text(path.read_text().replace("enabled: true", "enabled: false"))
        self.commit()

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", "state")


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A committed project in which nothing ran yet."""
    folder = tmp_path_factory.mktemp("project-template")
    project = Project(folder)
    root = project.root
    root.mkdir()
    project.run("git", "init", "-q", "-b", "main")
    project.run(sys.executable, "-m", "dvc", "init", "-q")
    project.run(sys.executable, "-m", "dvc", "config", "core.analytics", "false")
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "stage.py").write_text(STAGE)
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    write_parameters(root / "params.yaml", PARAMETERS)
    (root / ".gitignore").write_text(
        "/.danceflow/\n/mlflow.db\n/mlartifacts/\n/data/\n/models/student/\n/reports/distill/\n"
        "/reports/evaluate/\n/reports/summary.json\n"
    )
    (root / ".dvcignore").write_text(".danceflow/\n")
    (root / "raw.csv").write_text("raw")
    project.run(sys.executable, "-m", "dvc", "add", "-q", "raw.csv")
    (root / "models" / "teachers").mkdir(parents=True)
    (root / "models" / "teachers" / "weights.txt").write_text("trained once")
    project.commit()
    return folder


@pytest.fixture(scope="session")
def template_that_ran(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed project without tracking in which everything ran once."""
    folder = tmp_path_factory.mktemp("project-that-ran")
    project = copied(project_template, folder)
    project.without_tracking()
    project.run(sys.executable, "-m", "dvc", "repro", "-q")
    project.commit()
    assert project.began() != []
    return folder


def copied(template: Path, folder: Path) -> Project:
    shutil.copytree(template / "project", folder / "project", symlinks=True)
    return Project(folder)


@pytest.fixture
def project(
    project_template: Path,
    mlflow_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """A fresh copy of the project, with its own cache and tracking store."""
    project = copied(project_template, tmp_path)
    shutil.copyfile(mlflow_template, project.root / "mlflow.db")
    project.take_surroundings(monkeypatch)
    return project


@pytest.fixture
def ran(template_that_ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh copy of the project without tracking in which everything ran once."""
    project = copied(template_that_ran, tmp_path)
    project.take_surroundings(monkeypatch)
    return project


@pytest.fixture
def settings(project: Project) -> TrackingSettings:
    """Where the project records its runs."""
    return TrackingSettings(project.root, True, None, "danceflow", "danceflow-scenes")
