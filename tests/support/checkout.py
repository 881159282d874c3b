"""A clone of the repository with small parameters, in which the real stages run."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from params_files import dump_yaml
from repository import ROOT

from danceflow.ops.tracking import TrackingSettings
from danceflow.params.read import load_params, override
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths

# What decides how long a stage takes; the family is that of the committed teachers.
SMALL = {
    "run.num_threads": 1,
    "cache.num_samples": 6,
    "cache.num_steps": 2,
    "cache.batch_size": 6,
    "distill.num_steps": 4,
    "distill.num_updates": 4,
    "distill.batch_size": 6,
    "distill.warmup": 1,
    "distill.checkpoint_every": 2,
    "distill.log_every": 1,
    "distill.evaluate_every": 2,
    "distill.evaluate_samples": 1,
    "distill.grid_every": 2,
    "evaluate.num_samples": 2,
    "evaluate.num_steps": 2,
    "evaluate.further_steps": [1],
    "evaluate.batch_size": 32,
    "evaluate.num_bootstrap": 20,
    "evaluate.seeds": [0],
    "gate.max_regression": 0.05,
    "gate.auto_promote": True,
    "tracking.enabled": True,
    "tracking.uri": None,
    "tracking.experiment": "danceflow",
    "tracking.registered_model": "danceflow-scenes",
}
SIZES = {"num_train": 24, "num_validation": 12, "num_test": 12}

# The smallest run with a committed teacher: every stage once.
CAPABILITY, TEACHER = "t2i", "base"
SMALLEST = {
    "cache.num_samples": 4,
    "cache.batch_size": 4,
    "distill.init": "base",
    "distill.num_steps": 2,
    "distill.num_updates": 2,
    "distill.batch_size": 4,
    "evaluate.num_samples": 1,
    "evaluate.further_steps": [],
    "gate.auto_promote": False,
}


class Checkout:
    """A git and DVC repository with everything that this one tracks."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        recipe: Path | None = None,
        below: str = "",
    ) -> None:
        """Copy the tracked files as they are in the working tree, and commits them.

        Args:
            folder: where to.
            environment: added to that of this process.
            recipe: takes the place of ``params.yaml``; None: that file, made small.
            below: the project's folder below the top of the git repository.
        """
        top = folder / "checkout"
        self.root = top / below
        self.paths = Paths(self.root)
        programs = Path(sys.executable).parent
        code = (self.root / "src", self.root)  # the clone's own, as if it was installed
        self.environment: Mapping[str, str] = {
            **os.environ,
            **environment,
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(map(str, code)),
        }
        self.root.mkdir(parents=True)
        listed = ["git", "ls-files", "-z", "--deduplicate"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, names.stdout.split("\0")):
            if (ROOT / name).is_file():  # else it was deleted and that is not committed yet
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes((ROOT / name).read_bytes())
                (self.root / name).chmod((ROOT / name).stat().st_mode)
        if recipe is None:
            data = override(read_yaml(ROOT / "params.yaml"), SMALL)
            data["data"]["buckets"] = {name: dict(SIZES) for name in data["data"]["buckets"]}
            self.paths.params.write_text(dump_yaml(data))
        else:
            self.paths.params.write_bytes(recipe.read_bytes())
        (self.root / "dvc.lock").unlink(missing_ok=True)  # it is about other parameters
        self.run("git", "init", "--quiet", "--initial-branch", "main", str(top))
        self.commit()

    def take_environment(self) -> None:
        """Take the environment of this process as the one that ``make setup`` would make."""
        place = self.root / ".venv"
        place.mkdir()
        for part in Path(sys.prefix).iterdir():
            (place / part.name).symlink_to(part)
        ready = place / ".ready"
        ready.unlink(missing_ok=True)
        ready.touch()

    def twin(self, folder: Path) -> "Checkout":
        """Return a copy with what was made in it, whose tracking store is its own."""
        other = copy.copy(self)
        other.root = folder / "checkout"
        other.paths = Paths(other.root)
        shutil.copytree(self.root, other.root, symlinks=True)
        moved = str(self.root), str(other.root)
        other.environment = {
            **self.environment,
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "PYTHONPATH": self.environment["PYTHONPATH"].replace(*moved),
        }
        return other

    def call(
        self, *command: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Return how a command ended that was run at the root."""
        return subprocess.run(
            command,
            cwd=self.root,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Return the output of a command that works."""
        done = self.call(*command, environment=environment)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def dvc(self, *arguments: str) -> list[str]:
        """Return the stages that a DVC command executed."""
        return re.findall(r"^Running stage '([^']+)'", self.run("dvc", *arguments), re.MULTILINE)

    def set(self, name: str, value: object) -> None:
        """Change one parameter in ``params.yaml``."""
        data = override(read_yaml(self.paths.params), {name: value})
        self.paths.params.write_text(dump_yaml(data))

    def commit(self) -> None:
        """Commit everything."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def restore(self) -> None:
        """Go back to the last commit and to what it made."""
        self.run("git", "reset", "--quiet", "--hard")
        self.run("dvc", "checkout", "--force", "--quiet")

    def status(self) -> str:
        """Return what git sees as changed or new."""
        return self.run("git", "status", "--porcelain")

    @property
    def lock(self) -> str:
        """The text of ``dvc.lock``."""
        return (self.root / "dvc.lock").read_text()

    @property
    def params(self) -> Params:
        """The parameters."""
        return load_params(self.paths.params)

    @property
    def tracking(self) -> TrackingSettings:
        """Where it records its runs."""
        return TrackingSettings.of(self.root, self.params.tracking)

    def json(self, path: Path) -> Any:
        """Return the content of a JSON file."""
        return json.loads(path.read_text(encoding="utf-8"))


def one_capability(checkout: Checkout) -> None:
    """Let a checkout have one capability alone, and commit that."""
    data = override(read_yaml(checkout.paths.params), SMALLEST)
    data["data"]["buckets"] = {CAPABILITY: {**SIZES, "num_train": 12}}
    data["capabilities"] = {CAPABILITY: data["capabilities"][CAPABILITY]}
    data["teachers"] = {TEACHER: data["teachers"][TEACHER]}
    data["gate"]["min_retention"] = {CAPABILITY: 0.0}
    checkout.paths.params.write_text(dump_yaml(data))
    checkout.commit()


def outcomes(table: str) -> dict[str, str]:
    """Return what became of every stage, from the table that ``danceflow run`` prints."""
    stages: Sequence[tuple[str, str]] = re.findall(
        r"^\| (\S+) \| (ran|restored|unchanged|frozen) \| [\d.]+ \|$", table, re.MULTILINE
    )
    return dict(stages)
