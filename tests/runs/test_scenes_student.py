"""The embedded default's own family, untrained and as small as it gets, through the registry."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scored import evidence_of

from danceflow.errors import WeightsError
from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.registry.open import open_student
from danceflow.registry.register import register_student

CONFIG = {
    "prediction": "clean",
    "sigma_min": 0.05,
    "shift": 1.0,
    "transformer": {
        "num_layers": 1,
        "num_heads": 1,
        "head_dim": 16,
        "patch_size": 4,
        "sample_size": 8,
        "in_channels": 7,
        "out_channels": 3,
    },
    "text_encoder": {"num_layers": 1, "num_heads": 1, "width": 16, "max_length": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from danceflow.models.families.sd3 import Sd3Family
    from danceflow.models.package import save_package

    family = Sd3Family.new(CONFIG, ["a", "red", "circle", "make", "it", "blue"], seed=0)
    path = tmp_path_factory.mktemp("scenes") / "student"
    path.mkdir()
    save_package(path, family, family.new_backbone(0), {"image_sizes": [[8, 8]], "num_steps": 2})
    return path


def test_a_student_of_the_default_family_is_used_from_folder_and_registry(
    folder, tracking: TrackingSettings, tmp_path
):
    white = Image.new("RGB", (8, 8), "white")
    student = open_student(folder)
    made = student.generate(["a red circle"], seed=1)
    edited = student.edit([white], ["make it blue"], seed=1)
    assert made[0].size == edited[0].size == (8, 8)

    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        pass
    store = open_store(tracking)
    register_student(store, lambda: tracker.run_id, folder, "student", evidence_of(1.0))
    registered = open_student("models:/student/1", tracking)
    for first, second in [
        (made, registered.generate(["a red circle"], seed=1)),
        (edited, registered.edit([white], ["make it blue"], seed=1)),
        (made, registered.run(["a red circle", "make it blue"], [None, white], seed=1)),
    ]:
        assert np.array_equal(np.asarray(first[0]), np.asarray(second[0]))


@pytest.mark.parametrize(
    "name", ["manifest.json", "transformer/diffusion_pytorch_model.safetensors"]
)
def test_weights_that_are_missing_or_cut_are_named(folder, tmp_path, name):
    import shutil

    for damage in ("missing", "cut"):
        broken = tmp_path / damage
        shutil.copytree(folder, broken)
        path = broken / name
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(WeightsError, match=path.name):
            open_student(broken)
