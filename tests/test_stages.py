"""The stage table and the one way to run an entry of it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from params_files import dump_yaml
from repository import ROOT

from danceflow import stages
from danceflow.errors import ConfigError, DiskSpaceError, StageError, UsageError
from danceflow.ops import determinism
from danceflow.params.read import override
from danceflow.params.yaml12 import read_yaml
from danceflow.stages import STAGES, Stage, run_stage

CODE = """
import json, pathlib

def run(params, paths, *item):
    target = paths.root / "out.json"
    target.write_text(json.dumps([params.run.seed, *item]))

def full(params, paths):
    raise RuntimeError("I/O error: No space left on device (os error 28)")
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with stages of its own; the surroundings of this process stay as they are."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root / name)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "some_stages.py").write_text(CODE)
    (modules / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setattr(determinism, "prepare", lambda run: None)
    monkeypatch.chdir(root)

    def add(name: str, function: str, **more: Any) -> None:
        monkeypatch.setitem(STAGES, name, Stage(name, function, ("run",), (), (), **more))

    add("plain", "some_stages:run")
    add("each", "some_stages:run", matrix="capabilities", axis="capability")
    add("full", "some_stages:full")
    add("no_function", "some_stages:walk")
    add("no_module", "no_such_module:run")
    add("no_package", "needs_more:run")
    return root


def test_the_stages_are_those_of_the_design_in_their_order() -> None:
    assert list(STAGES) == ["prepare", "teachers", "cache", "distill", "evaluate", "report"]
    assert [name for name, stage in STAGES.items() if stage.frozen] == ["teachers"]
    assert [name for name, stage in STAGES.items() if stage.matrix] == ["cache", "evaluate"]


def test_commands_name_no_interpreter() -> None:
    assert STAGES["distill"].command == "danceflow stage distill"
    assert STAGES["cache"].command == "danceflow stage cache --capability {item}"


def test_the_table_needs_nothing_heavy() -> None:
    code = (
        "import sys, danceflow.stages, danceflow.check\n"
        "heavy = {'torch', 'mlflow', 'prefect', 'dvc', 'diffusers', 'transformers', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stage_gets_parameters_and_paths(checkout: Path) -> None:
    run_stage("plain")
    assert (checkout / "out.json").read_text() == "[0]"


def test_a_stage_finds_its_checkout_from_below(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = checkout / "data"
    below.mkdir()
    monkeypatch.chdir(below)
    run_stage("plain")
    assert (checkout / "out.json").is_file()


def test_an_item_is_passed_on(checkout: Path) -> None:
    run_stage("each", "local_edit", checkout)
    assert (checkout / "out.json").read_text() == '[0, "local_edit"]'


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("destill", None, "unknown stage 'destill': did you mean 'distill'"),
        ("each", None, "stage 'each' needs --capability: one of t2i, local_edit, global_edit"),
        ("each", "t2", "unknown capability 't2': did you mean 't2i'"),
        ("plain", "t2i", "stage 'plain' takes no item, found 't2i'"),
    ],
)
def test_a_wrong_call_is_told(checkout: Path, name: str, item: str | None, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_stage(name, item)
    assert message in str(caught.value)
    assert not (checkout / "out.json").exists()


def test_wrong_parameters_are_told_before_the_stage_is_loaded(checkout: Path) -> None:
    params = checkout / "params.yaml"
    params.write_text(params.read_text().replace("num_threads", "num_thread"))
    with pytest.raises(ConfigError, match="did you mean 'num_threads'") as caught:
        run_stage("no_module")
    assert str(params) in str(caught.value)


def test_weights_that_are_missing_are_told_before_the_stage_is_loaded(checkout: Path) -> None:
    params = checkout / "params.yaml"
    text = params.read_text()
    named = text.replace("    lpips: null", "    lpips: weights/alexnet.pth")
    params.write_text(named.replace("    clip: null", "    clip: /no/such/clip"))
    with pytest.raises(ConfigError) as caught:
        run_stage("no_module")
    missing = "there is no such file or folder"
    assert str(caught.value).splitlines() == [
        f"{params}: 2 problems",
        f"  evaluate.weights.clip: /no/such/clip: {missing}",
        f"  evaluate.weights.lpips: {checkout}/weights/alexnet.pth: {missing}",
    ]
    params.write_text(named)
    (checkout / "weights").mkdir()
    (checkout / "weights" / "alexnet.pth").touch()
    run_stage("plain")
    assert (checkout / "out.json").is_file()


ALONE = {  # the start alone is trained, without guidance
    "capabilities.t2i.weight": 0.0,
    "capabilities.local_edit.guidance": 1.0,
    "capabilities.global_edit.weight": 0.0,
}


@pytest.mark.parametrize("name", ["prepare", "teachers", "cache", "distill"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill.query": "logit_normal"}, "distill: method 'danceopd': query"),
        ({"distill.warm_start": 99}, "distill: warm_start is 99"),
        (ALONE, "distill.init: the student would start as 'local'"),
    ],
)
def test_a_distillation_that_cannot_start_is_told_by_the_first_stage(
    checkout: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    params, before = checkout / "params.yaml", sorted(checkout.iterdir())
    params.write_text(dump_yaml(override(read_yaml(params), changes)))
    with pytest.raises(ConfigError, match=f"^{params}: {message}"):
        run_stage(name, "t2i" if STAGES[name].matrix else None)
    assert sorted(checkout.iterdir()) == before


def test_a_stage_that_is_not_there_is_told(checkout: Path) -> None:
    with pytest.raises(StageError, match="there is no some_stages:walk"):
        run_stage("no_function")
    with pytest.raises(StageError, match="there is no no_such_module:run"):
        run_stage("no_module")


def test_a_package_that_a_stage_misses_is_not_hidden(checkout: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        run_stage("no_package")


def test_a_full_disk_is_told_before_and_while_a_stage_runs(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DiskSpaceError, match="no space left"):
        run_stage("full")
    monkeypatch.setattr(stages, "_FREE_BYTES", 10**18)
    with pytest.raises(DiskSpaceError, match="of disk space"):
        run_stage("plain")
    assert not (checkout / "out.json").exists()


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_what_dvc_cannot_bring_back_stays_until_it_is_replaced(stage: Stage) -> None:
    """Small metrics apart, which are committed and come with what was made."""
    lost = [out.path for out in stage.outs if not (out.cached or out.persists or out.is_metric)]
    assert lost == []
