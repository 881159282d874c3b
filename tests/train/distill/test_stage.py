"""The stage ``distill``: its key, what it packages, and a killed one that goes on."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from params_files import dump_yaml
from tiny_project import small_data, small_params, write_project
from training_record import read_metrics

from danceflow.capability import asked
from danceflow.data import cache
from danceflow.errors import ConfigError, DataError, WeightsError
from danceflow.models.bases import FROZEN_FOLDER
from danceflow.models.frozen.part import FROZEN_FILE
from danceflow.models.package import load_package, read_manifest
from danceflow.models.start import start_backbone
from danceflow.models.teachers import Teachers
from danceflow.ops import keys as ops_keys
from danceflow.ops.files import sha256
from danceflow.params.read import override
from danceflow.paths import MANIFEST, Paths
from danceflow.registry.open import open_student
from danceflow.train.distill import stage as distill
from danceflow.train.distill.trainer import Trainer
from danceflow.train.state import load_checkpoint
from danceflow.worlds import prepare

CAPABILITIES = ("t2i", "local_edit")

pytestmark = pytest.mark.usefixtures("as_a_stage")


def test_a_killed_stage_goes_on_bit_for_bit(project: Paths, made: Paths, tmp_path: Path) -> None:
    options = {"distill__num_updates": 60, "distill__checkpoint_every": 1}
    reference = Paths(tmp_path / "reference")
    shutil.copytree(made.root, reference.root)
    params = small_params(**options)
    distill.run(params, reference)

    project.params.write_text(dump_yaml(small_data(CAPABILITIES, **options)))
    command = [Path(sys.executable).with_name("danceflow"), "stage", "distill"]
    process = subprocess.Popen(command, cwd=project.root, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 200
        record = distill.training_key(params, project).folder(project)
        while not ((record / "checkpoint.safetensors").exists() and len(_lines(record)) > 8):
            assert process.poll() is None, "the stage ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    checkpoint = load_checkpoint(record / "checkpoint.safetensors")
    assert checkpoint is not None
    assert 0 < checkpoint["step"] < 60
    assert not project.student.exists()
    assert not project.distill_report.exists()

    again = subprocess.run(command, cwd=project.root, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "resuming at update" in again.stderr
    assert read_manifest(project.student) == read_manifest(reference.student)
    assert read_metrics(project.distill_metrics) == read_metrics(reference.distill_metrics)
    assert list(project.root.rglob("*.partial")) == []


def _lines(work: Path) -> list[str]:
    file = work / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def test_the_stage_writes_student_and_record(project: Paths) -> None:
    params = small_params(distill__grid_every=4)
    distill.run(params, project)
    package = load_package(project.student)
    assert package.meta["method"] == "danceopd"
    assert package.meta["teachers_digest"] == sha256(project.teachers / MANIFEST)
    assert (package.image_sizes, package.meta["num_steps"]) == (((32, 32),), 2)
    names = sorted(file.name for file in project.distill_report.iterdir())
    assert names == ["curves.csv", "grids", "metrics.jsonl", "run.json"]
    grids = sorted(file.name for file in (project.distill_report / "grids").iterdir())
    assert grids == sorted(f"{c}-{s:06d}.png" for c in CAPABILITIES for s in (0, 4, 6))
    scored = [row for row in read_metrics(project.distill_metrics) if "scores" in row]
    assert [row["step"] for row in scored] == [0, 6]
    assert all(set(row["scores"]) == set(CAPABILITIES) for row in scored)
    lines = [json.loads(line) for line in project.distill_metrics.read_text().splitlines()]
    assert all(0 <= row["row_wait_share"] <= 1 for row in lines if "loss" in row)
    manifest = read_manifest(project.student)
    record = project.distill_metrics.read_bytes()
    distill.run(params, project)
    assert read_manifest(project.student) == manifest
    assert project.distill_metrics.read_bytes() == record


def test_a_damaged_shard_is_named_before_anything_is_trained(project: Paths) -> None:
    shard = project.cache("local_edit") / "latents-32x32-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"{shard}: this shard is not what was written; run the st"):
        distill.run(small_params(), project)
    assert not project.student.exists()
    assert list(project.root.rglob("metrics.jsonl")) == []


def test_a_merge_needs_no_update(project: Paths, teachers: Teachers) -> None:
    params = small_params(distill__method="merge")
    distill.run(params, project)
    mean = start_backbone(teachers, asked(params).start).state_dict()
    saved = teachers.family.load_backbone(project.student / "transformer").state_dict()
    for name, value in mean.items():
        torch.testing.assert_close(saved[name], value.float(), rtol=2e-3, atol=2e-3)
    assert (project.distill_report / "curves.csv").read_text() == "step,capability,loss\n"


@pytest.mark.parametrize("former", [False, True])
def test_a_failing_stage_leaves_no_half_a_student(
    project: Paths, monkeypatch: pytest.MonkeyPatch, former: bool
) -> None:
    if former:
        project.student.mkdir(parents=True)
        (project.student / "former").write_text("whole")
    package = Trainer.package

    def failing(self, folder: Path, meta) -> None:
        package(self, folder, meta)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "package", failing)
    params = small_params()
    with pytest.raises(Exception, match="no space left on the disk"):
        distill.run(params, project)
    assert project.student.exists() == former
    assert not former or (project.student / "former").read_text() == "whole"
    assert not project.distill_report.exists()
    assert list(project.root.rglob("*.partial")) == []
    monkeypatch.undo()
    distill.run(params, project)
    assert read_manifest(project.student)["num_updates"] == 6


def test_the_key_stands_for_parameters_teachers_and_caches(project: Paths) -> None:
    params = small_params()
    keys = [distill.training_key(params, project)]
    keys.append(distill.training_key(small_params(distill__learning_rate=0.5), project))
    assert distill.training_key(small_params(), project) == keys[0]
    steps = small_params(cache__num_steps=3)
    cache.run(steps, project, "t2i")
    keys.append(distill.training_key(params, project))
    manifest = project.teachers / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    keys.append(distill.training_key(params, project))
    assert len(set(keys)) == 4


def test_code_that_changed_trains_anew(
    project: Paths, made: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = small_params()
    distill.run(params, project)
    before = _lines(project.distill_report)
    updates: list[int] = []
    update = Trainer._update

    def counted(self, progress: float) -> float:
        updates.append(self.step)
        return update(self, progress)

    monkeypatch.setattr(Trainer, "_update", counted)
    distill.run(params, project)
    assert updates == []
    monkeypatch.setattr(ops_keys, "code_digest", lambda *modules: "other code")
    distill.run(params, project)
    assert updates == list(range(params.distill.num_updates))
    assert len(_lines(project.distill_report)) == len(before)


def test_another_number_of_steps_is_packaged_and_not_trained(
    project: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Manifest, served default and the scores that follow go by ``evaluate.num_steps`` alone."""
    params = small_params()
    distill.run(params, project)
    weights = project.student / "transformer" / "diffusion_pytorch_model.safetensors"
    before, trained_student = weights.read_bytes(), read_manifest(project.student)
    assert trained_student["num_steps"] == params.evaluate.num_steps == 2
    scored = [row for row in map(json.loads, _lines(project.distill_report)) if "scores" in row]
    assert scored
    assert {row["num_steps"] for row in scored} == {2}

    def refused(self, progress: float) -> float:
        raise AssertionError("an update was made")

    monkeypatch.setattr(Trainer, "_update", refused)
    distill.run(small_params(evaluate__num_steps=5), project)
    packaged = read_manifest(project.student)
    assert (packaged.pop("num_steps"), trained_student.pop("num_steps")) == (5, 2)
    assert packaged == trained_student
    assert weights.read_bytes() == before
    assert open_student(project.student).run(["a red circle"], [None], seed=0, num_steps=None)
    assert open_student(project.student).meta["num_steps"] == 5


def test_validation_rows_are_part_of_the_key(project: Paths) -> None:
    """They decide the curves, which lie in the work folder with the weights."""
    params = small_params()
    before = distill.training_key(params, project)
    place = project.bucket("t2i") / "validation"
    shutil.rmtree(place)
    shutil.copytree(project.bucket("t2i") / "test", place)
    assert distill.training_key(params, project) != before


def test_a_capability_of_weight_0_is_looked_at_and_never_trained(project: Paths) -> None:
    data = small_data(("t2i", "local_edit", "global_edit"))
    params = write_project(project.root, override(data, {"capabilities.local_edit.weight": 0.0}))
    prepare.run(params, project)
    for capability in params.capabilities:
        cache.run(params, project, capability)
    distill.run(params, project)
    record = read_metrics(project.distill_metrics)
    assert {row["capability"] for row in record if "loss" in row} == {"t2i", "global_edit"}
    assert set(record[0]["scores"]) == {"t2i", "local_edit", "global_edit"}
    meta = read_manifest(project.student)
    assert meta["field_evaluations"]["training"] == 3 * 4 * meta["num_updates"]
    merged = params.model_copy(
        update={"distill": params.distill.model_copy(update={"method": "merge"})}
    )
    distill.run(merged, project)
    assert read_manifest(project.student)["field_evaluations"]["training"] == 0
    teachers = Teachers(project.teachers, "sd3", ["base", "local", "global"], "cpu")
    found = load_package(project.student)
    z, sigma = torch.ones(1, 3, 32, 32), torch.ones(1)
    condition = teachers.family.condition(["a red circle"])
    answer = found.field(z, sigma, condition)

    def merge_of(*names: str) -> torch.Tensor:
        backbone = teachers.family.new_backbone(0).eval()
        backbone.load_state_dict(teachers.merged(dict.fromkeys(names, 1.0)))
        with torch.no_grad():
            return teachers.family.field(backbone)(z, sigma, condition)

    assert torch.allclose(answer, merge_of("base", "global"), atol=0.01)
    assert not torch.allclose(answer, merge_of("base", "local", "global"), atol=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": 5}, "num_queries is 5, but a rollout of num_steps 4 has"),
        ({"method": "danceop"}, "unknown method 'danceop': did you mean 'danceopd'"),
        ({"query": "lowest"}, "unknown query 'lowest': did you mean 'low'"),
        ({"objective": "mze"}, "unknown objective 'mze': did you mean 'mse'"),
        ({"query": "logit_normal"}, "leaves the grid, which a rollout cannot"),
        ({"objective": "flowopd"}, "must come from an on-policy rollout with dynamics 'sde'"),
        ({"dynamics": "ode", "eta": 0.5}, "eta is 0.5, but dynamics 'ode' has no noise"),
        ({"method": "joint", "dynamics": "sde"}, "dynamics and eta apply only to rollouts"),
        ({"group_size": 3}, "batch_size 4 is no multiple of the group size 3"),
        ({"updates_per_rollout": 3}, "batch_size 4 is no multiple of group size 1 times updates"),
        ({"coupling": "antithetic", "num_queries": 2}, "num_queries is 2"),
        ({"warm_start": 4}, "warm_start is 4, but a rollout of num_steps 4 has its last"),
        ({"method": "flowopd"}, "batch_size 4 is no multiple of the group size 16"),
    ],
)
def test_parts_that_do_not_fit_are_told_before_weights_load(
    tmp_path: Path, changes, message: str
) -> None:
    params = small_params()
    params = params.model_copy(update={"distill": params.distill.model_copy(update=changes)})
    with pytest.raises(ConfigError) as caught:
        distill.run(params, Paths(tmp_path))
    assert str(caught.value).startswith("distill")
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_not_there_is_named(project: Paths) -> None:
    shutil.rmtree(project.cache("local_edit"))
    with pytest.raises(DataError, match=r"data/cache/local_edit/index\.json: cannot be read"):
        distill.run(small_params(), project)
    assert not project.student.exists()


def test_a_shift_that_the_family_refuses_is_told_before_networks_are_read(
    made: Paths, tmp_path: Path
) -> None:
    paths = Paths(tmp_path / "project")
    shutil.copytree(made.root, paths.root)
    settings = paths.teachers / FROZEN_FOLDER / FROZEN_FILE
    told = json.loads(settings.read_text()) | {"scheduler": {"use_dynamic_shifting": True}}
    settings.write_text(json.dumps(told))  # the digests of the manifest no longer hold either
    with pytest.raises(WeightsError, match=r"set distill\.shift to null"):
        distill.run(small_params(distill__shift=2.0), paths)
