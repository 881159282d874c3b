"""The digits recipe, made small: the same stages from raw files to the gate's verdict."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from params_files import dump_yaml
from tiny_project import ROOT, SMALL

from danceflow.data.buckets import read_bucket
from danceflow.digits.raw import write_digits
from danceflow.evaluate.records import read_evaluation
from danceflow.models.package import load_package, read_manifest
from danceflow.params.read import load_params, override
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.stages import run_stage

CAPABILITIES = ("make", "local_edit", "global_edit")
NUM_DIGITS = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """Every stage of the recipe on some of the digits, with networks of no size."""
    root = tmp_path_factory.mktemp("digits") / "project"
    root.mkdir()
    shutil.copyfile(ROOT / "dvc.yaml", root / "dvc.yaml")
    small = {
        name: value for name, value in SMALL.items() if name != "family.text_encoder.num_layers"
    }
    data = override(read_yaml(ROOT / "recipes" / "digits.yaml"), small)
    data["family"]["text_encoder"]["num_updates"] = 30
    for teacher in data["teachers"].values():
        teacher |= {"num_updates": 12, "batch_size": 8, "warmup": 2}
    data["distill"]["init"] = "local"
    (root / "params.yaml").write_text(dump_yaml(data))
    paths = Paths(root)
    write_digits(paths.raw_digits, NUM_DIGITS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        threads = torch.get_num_threads()
        run_stage("prepare")
        run_stage("teachers")
        for capability in CAPABILITIES:
            run_stage("cache", capability)
        run_stage("distill")
        for capability in CAPABILITIES:
            run_stage("evaluate", capability)
        run_stage("report")
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    return paths


def test_the_splits_are_those_of_the_scans(run: Paths) -> None:
    from danceflow.digits.world import load_digits

    splits = {f"{d.index:04d}": d.split for d in load_digits()[:NUM_DIGITS]}
    for bucket in CAPABILITIES:
        for split in ("train", "validation", "test"):
            for uid in read_bucket(run.bucket(bucket), split)["uid"]:
                assert splits[uid.split("-")[1]] == split
    report = json.loads(run.data_report.read_text())
    assert report["rows"]["bad"] == report["rows"]["in_two_splits"] == 0
    assert set(report["buckets"]) == set(CAPABILITIES)


def test_the_teachers_are_trained_on_the_rows(run: Paths) -> None:
    manifest = read_manifest(run.teachers)
    assert manifest["teachers"] == ["base", "local", "global"]
    teachers = json.loads(run.teachers_report.read_text())["teachers"]
    for teacher in teachers.values():
        assert set(teacher["scores"]) == set(CAPABILITIES)
        assert len(teacher["curve"]) >= 1
    assert {path.name for path in run.teachers_images.glob("*.png")} == {
        f"{name}.png" for name in CAPABILITIES
    }


def test_the_student_knows_the_words(run: Paths) -> None:
    package = load_package(run.student)
    assert package.image_sizes == ((16, 16),)
    assert package.family.unknown_words("turn the digit upside down") == []
    assert package.family.unknown_words("a red circle") == ["red", "circle"]


def test_every_capability_is_scored_and_judged_by_the_gate(run: Paths) -> None:
    categories = {
        "make": {"digit"},
        "local_edit": {"erase", "stroke"},
        "global_edit": {"invert", "thicken", "rotate"},
    }
    for capability, expected in categories.items():
        found = read_evaluation(run.evaluation(capability), capability)
        assert found.scale == (1 if capability == "make" else 10)
        for result in found.fields.values():
            assert set(result.categories) == expected
            for metric in ("psnr", "ssim"):
                assert (metric in result.metrics) == (capability != "make")
        assert "reworded" in found.fields["student"].variants
        assert "unknown_words" not in found.fields["student"].variants
    gate = json.loads(run.gate.read_text())
    assert {check["capability"] for check in gate["checks"]} == set(CAPABILITIES)
    page = run.report_page.read_text()
    assert "CLIPScore: not measured" in page
    assert "Thicken" in page


def test_the_recipe_is_whole() -> None:
    params = load_params(ROOT / "recipes" / "digits.yaml")
    assert (params.data.world, params.data.source) == ("digits", "table")
    assert Path(params.data.input.path) == Path("data/raw/digits/digits.csv")
    assert tuple(params.capabilities) == CAPABILITIES
