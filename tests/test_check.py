"""Every way in which the graph, the table, the code and the command line can disagree."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer.main
from repository import ROOT

from danceflow.check import find_problems
from danceflow.cli import app
from danceflow.errors import ConfigError
from danceflow.params.yaml12 import read_yaml
from danceflow.stages import STAGES, Stage

RUN = "def run(params, paths): ...\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository's graph and parameters around stages that import next to nothing."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", tmp_path / ".dvc")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    for entry in read_yaml(tmp_path / "dvc.yaml")["stages"].values():
        for dep in entry["deps"]:
            place = tmp_path / dep
            if dep.startswith("src/"):
                (place.parent if place.suffix else place).mkdir(parents=True, exist_ok=True)
                if place.suffix:
                    place.touch()  # which holds no code
    for stage in STAGES.values():
        _write(tmp_path, stage.function.partition(":")[0], RUN)
    # The only stage that calls another's function.
    text = f"from danceflow.worlds import prepare\n{RUN}"
    _write(tmp_path, "danceflow.train.teachers.stage", text)
    return tmp_path


def found_in(root: Path, stages: Mapping[str, Stage] = STAGES) -> list[str]:
    """What disagrees, with the real command line."""
    return find_problems(root, typer.main.get_command(app).commands, stages)


def of_prepare(checkout: Path) -> list[str]:
    """What is said about the stage whose code the tests change."""
    return [problem for problem in found_in(checkout) if "stage 'prepare'" in problem]


def _write(root: Path, module: str, text: str) -> None:
    file = root.joinpath("src", *module.split(".")).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    for folder in (file.parent, *file.parent.parents):
        if folder == root / "src":
            break
        (folder / "__init__.py").touch()
    file.write_text(text)


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) >= 1, old
    file.write_text(text.replace(old, new, 1))


def test_the_repository_agrees_with_itself() -> None:
    assert found_in(ROOT) == []


def test_a_checkout_that_agrees_has_no_problem(checkout: Path) -> None:
    assert found_in(checkout) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  report:", "  reports:", "dvc.yaml: stage 'reports' is not in danceflow.stages"),
        ("  report:", "  reports:", "dvc.yaml: stage 'report' of danceflow.stages is missing"),
        (
            "cmd: danceflow stage prepare",
            "cmd: danceflow stage report",
            (
                "dvc.yaml: stage 'prepare': cmd is 'danceflow stage report', danceflow.stages says "
                "'danceflow stage prepare'"
            ),
        ),
        (
            "cmd: danceflow stage prepare",
            "cmd: python -m danceflow.cli stage prepare",
            "is no danceflow command",
        ),
        (
            "cmd: danceflow stage cache --capability",
            "cmd: danceflow stage cache --ability",
            "dvc.yaml: stage 'cache': the command line does not take",
        ),
        ("cmd: danceflow stage report", "cmd: danceflow steps report", "is no danceflow command"),
        (
            "    frozen: true  # outs are committed; `make teachers` runs it\n",
            "",
            "dvc.yaml: stage 'teachers': frozen is None, danceflow.stages says True",
        ),
        (
            "capability: ${capabilities}",
            "capability: [t2i]",
            "dvc.yaml: stage 'cache': matrix is {'capability': ['t2i']}",
        ),
        (
            "      - data/cache\n",
            "",
            "dvc.yaml: stage 'distill': deps: data/cache of danceflow.stages is missing",
        ),
        (
            "      - data/cache\n",
            "      - data/cache\n      - data/raw\n",
            "dvc.yaml: stage 'distill': deps: data/raw is not in danceflow.stages",
        ),
        (
            "      - distill\n",
            "      - distill\n      - gate\n",
            "dvc.yaml: stage 'distill': params: gate is not in danceflow.stages",
        ),
        (
            "      - models/student\n      - reports/distill\n",
            "      - reports/distill\n",
            "dvc.yaml: stage 'distill': outs: models/student of danceflow.stages is missing",
        ),
        (
            "reports/metrics.json:\n          cache: false",
            "reports/metrics.json",
            "metrics: reports/metrics.json (cache: false) of danceflow.stages is missing",
        ),
        (
            "reports/metrics.json:\n          cache: false",
            "reports/metrics.json:\n          cache: false\n          persist: true",
            "metrics: reports/metrics.json (cache: false) (persist: true) is not in danceflow.st",
        ),
        (
            "    cmd: danceflow stage report",
            "    always_changed: true\n    cmd: danceflow stage report",
            "dvc.yaml: stage 'report': 'always_changed' is not known to danceflow.stages",
        ),
        (
            "      - reports/summary.json\n    metrics:\n",
            "    metrics:\n      - reports/summary.json\n",
            "dvc.yaml: stage 'report': metrics: reports/summary.json is not in danceflow.stages",
        ),
        (
            "path: models/student",
            "path: models/pupil",
            "dvc.yaml: artifacts: no stage writes models/pupil",
        ),
    ],
)
def test_a_graph_that_says_something_else_is_told(
    checkout: Path, old: str, new: str, problem: str
) -> None:
    _replace(checkout / "dvc.yaml", old, new)
    problems = found_in(checkout)
    assert any(problem in text for text in problems), problems


def test_a_graph_without_stages_is_refused(checkout: Path) -> None:
    (checkout / "dvc.yaml").write_text("metrics: []\n")
    with pytest.raises(ConfigError, match="holds no stages"):
        found_in(checkout)


def test_a_stage_without_its_function_is_told(checkout: Path) -> None:
    _write(checkout, "danceflow.worlds.prepare", "def walk(): ...\n")
    (checkout / "src/danceflow/train/distill/stage.py").unlink()
    assert found_in(checkout) == [
        "danceflow.stages: stage 'prepare': there is no danceflow.worlds.prepare:run",
        "danceflow.stages: stage 'distill': there is no danceflow.train.distill.stage:run",
    ]


def test_code_that_a_key_does_not_cover_is_told(checkout: Path) -> None:
    _write(checkout, "danceflow.models.families.sd3", "WIDTH = 1\n")
    _write(
        checkout, "danceflow.worlds.prepare", f"from danceflow.models.families import sd3\n{RUN}"
    )
    missing = "dvc.yaml: stage 'prepare': deps: its imports reach src/danceflow/{}, which is not"
    assert of_prepare(checkout) == [f"{missing.format('models/families/sd3.py')} among them"]
    (checkout / "src/danceflow/data/look.css").write_text("body {}")
    _write(checkout, "danceflow.data.buckets", "LOOK = 'look.css'\n")
    text = f"from danceflow.data import buckets\nfrom danceflow.models.families import sd3\n{RUN}"
    _write(checkout, "danceflow.worlds.prepare", text)
    assert of_prepare(checkout) == [
        f"{missing.format('data/look.css')} among them",
        f"{missing.format('models/families/sd3.py')} among them",
    ]
    _replace(
        checkout / "dvc.yaml",
        "      - src/danceflow/columns.py\n",
        "      - src/danceflow/columns.py\n      - src/danceflow/data/look.css\n"
        "      - src/danceflow/models\n",
    )
    assert of_prepare(checkout) == []


def test_code_that_a_key_covers_for_nothing_is_told(checkout: Path) -> None:
    """A style sheet in the key of a training would make the training stale."""
    _write(checkout, "danceflow.pictures", "WIDTH = 1\n")
    place = "dvc.yaml: stage 'prepare': deps: its imports do not reach src/danceflow/"
    assert of_prepare(checkout) == [f"{place}pictures.py"]
    _write(checkout, "danceflow.worlds.prepare", f"from danceflow import pictures\n{RUN}")
    assert of_prepare(checkout) == []
    deps = "      - src/danceflow/columns.py\n"
    _replace(checkout / "dvc.yaml", deps, f"{deps}      - src/danceflow/evaluate\n")
    folder = checkout / "src/danceflow/evaluate"
    _write(checkout, "danceflow.evaluate.stage", RUN)
    (folder / "report.py").write_text("")
    (folder / "templates").mkdir()
    (folder / "templates" / "report.css").write_text("body {}")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "evaluate.pyc").write_bytes(b"x")
    assert of_prepare(checkout) == [
        f"{place}evaluate/stage.py of src/danceflow/evaluate",
        f"{place}evaluate/templates/report.css of src/danceflow/evaluate",
    ]


def test_a_dep_that_is_not_there_is_told(checkout: Path) -> None:
    (checkout / "src/danceflow/pictures.py").unlink()
    assert of_prepare(checkout) == [
        "dvc.yaml: stage 'prepare': deps: there is no src/danceflow/pictures.py"
    ]


def test_a_parameter_that_a_key_does_not_cover_is_told(checkout: Path) -> None:
    text = "def run(params, paths):\n    return params.data, params.tracking, params.distill.eta\n"
    _write(checkout, "danceflow.worlds.prepare", text)
    assert found_in(checkout) == [
        (
            "danceflow.stages: stage 'prepare': danceflow.worlds.prepare reads params.distill, "
            "which is not in its params"
        )
    ]


def test_a_wrong_params_file_or_recipe_is_told(checkout: Path) -> None:
    _replace(checkout / "params.yaml", "seed: 0", "sed: 0")
    _replace(checkout / "recipes" / "smoke.yaml", "method: danceopd", "method: dance")
    problems = found_in(checkout)
    assert len(problems) == 3
    assert problems[2].startswith("the flow cannot start: ")
    assert "params.yaml: run.sed: unknown parameter" in problems[0]
    assert "smoke.yaml: distill.method: unknown method 'dance'" in problems[1]


def test_a_flow_that_names_another_stage_is_told(checkout: Path) -> None:
    (checkout / "flows").mkdir()
    code = "nodes = dvc_stage.ancestry(graph, 'teacher')\nother.call('teacher')\n"
    (checkout / "flows" / "pipeline.py").write_text(code)
    assert found_in(checkout) == [
        (
            "flows/pipeline.py: unknown stage 'teacher': did you mean 'teachers'? "
            f"known are {', '.join(sorted(STAGES))}"
        )
    ]


def test_a_graph_that_the_flow_cannot_read_is_told(checkout: Path) -> None:
    with (checkout / "dvc.yaml").open("a") as graph:
        graph.write("vars: [nowhere.yaml]\n")
    (problem,) = found_in(checkout)
    assert problem.startswith("the flow cannot start: ")
    assert "nowhere.yaml" in problem


def test_a_stage_that_the_flow_would_not_run_is_told(checkout: Path) -> None:
    (checkout / "sub").mkdir()
    (checkout / "sub" / "dvc.yaml").write_text("stages:\n  more:\n    cmd: danceflow check\n")
    changed = {name: stage for name, stage in STAGES.items() if name != "report"}
    problems = found_in(checkout, changed)
    assert "the flow would run sub/dvc.yaml:more, which is not in danceflow.stages" in problems
    assert "the flow would run report, which is not in danceflow.stages" in problems
    _replace(checkout / "dvc.yaml", "  report:", "  reports:")
    problems = found_in(checkout)
    assert "the flow would not run report of danceflow.stages" in problems


def test_a_parameter_that_is_in_no_file_is_told(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    changed = {**STAGES, "prepare": replace(STAGES["prepare"], params=("data.sead",))}
    _replace(checkout / "dvc.yaml", "      - data\n", "      - data.sead\n")
    assert found_in(checkout, changed) == [
        "danceflow.stages: stage 'prepare': params.yaml has no 'data.sead'",
        *(
            f"danceflow.stages: stage 'prepare': {recipe.name} has no 'data.sead'"
            for recipe in sorted((checkout / "recipes").glob("*.yaml"))
        ),
    ]
