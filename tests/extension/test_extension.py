"""To add X, touch Y: every row of the table in docs/architecture.md, done and then really used.

The toys are added to a copy of the checkout, as anybody would add them: their own file, one line
in the table of their kind, one word in the parameters. Then the stages run there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from params_files import dump_yaml
from repository import ROOT

from danceflow.params.yaml12 import read_yaml

HERE = ROOT / "tests" / "extension"
CODE = ("src", "flows", "recipes", "dvc.yaml", "params.yaml", "pyproject.toml", ".dvc")


@dataclass(frozen=True)
class Touch:
    """Something that is written into a file that is there.

    Attributes:
        table: what it is added to.
        text: what is written behind the opening bracket.
        line: how the line with that bracket begins, the only such line of the package; the
            table's name where nothing is told.
    """

    table: str
    text: str
    line: str = ""


@dataclass(frozen=True)
class Addition:
    """What is added, by which touches.

    Attributes:
        touches: of files that are there.
        file: a new file of the package, and the toy that it is.
    """

    touches: tuple[Touch, ...]
    file: tuple[str, str] | None = None


ADDITIONS = {
    "query": Addition(
        (
            Touch("SHAPES", '"toy": lambda _: (3.0, 3.0),', r"SHAPES: Mapping\[str, Shape\]"),
            Touch("QUERY_NAMES", '"toy",'),
        )
    ),
    "objective": Addition(
        (
            Touch("OBJECTIVES", '"toy": Objective(_weighted_mse(lambda queries: queries.sigma)),'),
            Touch("OBJECTIVE_NAMES", '"toy",'),
        )
    ),
    "method": Addition(
        (
            Touch(
                "METHODS",
                'Method("toy", query="toy", objective=OBJECTIVES["toy"]),',
                "    for method in",
            ),
            Touch("METHOD_NAMES", '"toy",'),
        )
    ),
    "family": Addition(
        (
            Touch("FAMILIES", '"toy": "danceflow.models.families.toy:ToyFamily",'),
            Touch("FAMILY_NAMES", '"toy",'),
        ),
        file=("models/families/toy.py", "toy_family.py"),
    ),
    "world": Addition(
        (
            Touch("WORLDS", '"sheets": "danceflow.worlds.sheets:Sheets",'),
            Touch("WORLD_BUCKETS", '"sheets": None,'),
        ),
        file=("worlds/sheets.py", "toy_world.py"),
    ),
    "metric": Addition(
        (
            Touch(
                "METRICS",
                'Metric("Brightness", "brightness:brightness", {"brightness": "Brightness"}),',
            ),
        ),
        file=("evaluate/metrics/brightness.py", "toy_metric.py"),
    ),
}


def add(root: Path, addition: Addition) -> None:
    """Add something to a checkout."""
    package = root / "src" / "danceflow"
    if addition.file is not None:
        place, toy = addition.file
        shutil.copy(HERE / toy, package / place)
    for touch in addition.touches:
        opening = re.compile(rf"^{touch.line or touch.table}(:| ).*?[({{](?=$|\")", re.MULTILINE)
        found = [
            (file, match)
            for file in package.rglob("*.py")
            for match in opening.finditer(file.read_text())
        ]
        assert len(found) == 1, (touch.table, found)
        ((file, match),) = found
        text = file.read_text()
        file.write_text(f"{text[: match.end()]}{touch.text}\n{text[match.end() :]}")


def copied(root: Path) -> Path:
    """A checkout with what the package and its checks need."""
    root.mkdir()
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def call(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a checkout, with the package that lies there."""
    places = [root / "src", root, ROOT / "tests" / "support"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with everything that the table names added to it."""
    root = copied(tmp_path_factory.mktemp("extension") / "checkout")
    for addition in ADDITIONS.values():
        add(root, addition)
    return root


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_table_that_people_read_names_these_touches(kind: str) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| \[?{kind}\b.*$", text, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", row))
    assert named == {touch.table for touch in ADDITIONS[kind].touches}
    assert ("its file" in row) == (ADDITIONS[kind].file is not None)


def test_checks_are_content_once_the_deps_that_they_name_stand_in_the_graph(extended: Path) -> None:
    """A further file in a folder that DVC knows is known; one beside it is named, with its stage.

    ``worlds/prepare.py`` is in no key but its own stage's, so stages name the worlds one by one.
    """
    told = call(extended, "-m", "danceflow.cli", "check")
    missing = re.findall(r"stage '(\w+)': deps: its imports reach (\S+), which", told.stdout)
    assert missing, told.stdout + told.stderr
    assert {path for _, path in missing} == {"src/danceflow/worlds/sheets.py"}
    graph = read_yaml(extended / "dvc.yaml")
    for stage, path in missing:
        graph["stages"][stage]["deps"].append(path)
    (extended / "dvc.yaml").write_text(dump_yaml(graph))
    again = call(extended, "-m", "danceflow.cli", "check")
    assert again.returncode == 0, again.stdout
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    rules = call(extended, "-c", lint)
    assert rules.returncode == 0, rules.stdout


def test_a_student_is_distilled_and_scored_with_everything_that_was_added(extended: Path) -> None:
    done = call(extended, str(HERE / "toy_run.py"))
    assert done.returncode == 0, done.stderr

    report = json.loads((extended / "reports" / "data.json").read_text())
    assert report["world"] == "sheets"
    manifest = json.loads((extended / "models" / "student" / "manifest.json").read_text())
    assert (manifest["family"], manifest["method"], manifest["num_updates"]) == ("toy", "toy", 2)
    for capability in ("paint", "tint"):
        found = json.loads((extended / "reports" / "evaluate" / f"{capability}.json").read_text())
        own = found["fields"]["teacher:base" if capability == "paint" else "teacher:local"]
        assert 0 <= own["score"] <= found["scale"]
        assert found["fields"]["student"]["field_gap"]["all"] > 0
        assert 0 <= found["fields"]["student"]["metrics"]["brightness"] <= 1
        assert found["scale"] == (1.0 if capability == "paint" else 10.0)


def test_a_family_without_a_layout_is_told_by_plan(extended: Path) -> None:
    params = (extended / "params.yaml").read_text()
    (extended / "toy.yaml").write_text(params.replace("name: sd3", "name: toy", 1))
    told = call(extended, "-m", "danceflow.cli", "plan", "toy.yaml")
    assert (told.returncode, told.stderr.count("\n")) == (2, 1), told.stderr
    assert "family 'toy' has no layout" in told.stderr
