"""What lies damaged in the store is sent again from the checkout."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from danceflow.errors import DataError, WeightsError
from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.params.read import load_params
from danceflow.paths import Paths
from danceflow.registry.evidence import EVIDENCE_TAG, current
from danceflow.registry.open import open_student
from danceflow.registry.register import register_student
from danceflow.report.evidence import read_evidence
from flows.promote import read_summary
from flows.sync import sync


def change_one_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_one_changed_byte_of_weights_and_of_evidence_is_refused_and_mended(
    reported, tmp_path, mlflow_template
) -> None:
    paths = Paths(tmp_path / "project")
    shutil.copytree(reported[1].root, paths.root)
    paths.params.write_text(paths.params.read_text().replace("enabled: false", "enabled: true"))
    shutil.copyfile(mlflow_template, paths.root / "mlflow.db")
    settings = TrackingSettings.of(paths.root, load_params(paths.params).tracking)
    store, name = open_store(settings), settings.registered_model
    with start_run(settings, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        run_id = str(tracker.run_id)
    summary = read_summary(paths.summary)
    evidence = read_evidence(paths, summary["capabilities"], summary)
    register_student(store, lambda: run_id, paths.student, name, evidence)
    version = store.client.get_model_version(name, "1")

    place = Path(urlsplit(store.client.get_model_version_download_uri(name, "1")).path)
    weights = next((place / "artifacts" / "student").rglob("*.safetensors"))
    kept = Path(urlsplit(store.client.get_run(run_id).info.artifact_uri).path)
    for file in (weights, kept / version.tags[EVIDENCE_TAG]):
        change_one_byte(file)
    with pytest.raises(WeightsError, match="its content is not what was registered"):
        open_student(f"models:/{name}/1", settings)
    with pytest.raises(DataError, match="its content is not what was written"):
        current(store, version)
    assert sync(paths.root) == ()
    open_student(f"models:/{name}/1", settings)
    assert current(store, version) == evidence
