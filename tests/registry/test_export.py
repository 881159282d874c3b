"""Adapters are registered and opened on one base, and every export has its card."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from adapter_students import SIDE, write_published, write_student, write_teachers
from model_service import write_student as write_whole_student
from PIL import Image
from scored import evidence_of

from danceflow.errors import UsageError, WeightsError
from danceflow.models import pack
from danceflow.models.bases import BASES_VARIABLE
from danceflow.models.teachers import Teachers
from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.registry.about import TAG, About
from danceflow.registry.export import CARD, card, export_student
from danceflow.registry.open import open_student
from danceflow.registry.register import register_student

NAME = "students"
pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    pipeline = write_published(tmp_path_factory.mktemp("published"))
    folder = write_teachers(tmp_path_factory.mktemp("bases") / "teachers", pipeline)
    return Teachers(folder, "sd3", ["base"], "cpu")


@pytest.fixture
def registered(
    teachers: Teachers, tracking: TrackingSettings, tmp_path: Path, monkeypatch
) -> TrackingSettings:
    """Two versions of adapters whose base lies in a configured folder."""
    monkeypatch.setattr(pack, "PACKED_BYTES", 0)
    monkeypatch.setenv(BASES_VARIABLE, str(teachers.folder.parent))
    store = open_store(tracking)
    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        run_id = tracker.run_id
    for seed in (1, 2):
        folder = tmp_path / str(seed) / "student"
        write_student(teachers, folder, seed)
        register_student(store, lambda: run_id, folder, NAME, evidence_of(0.5, 0.9))
    return tracking


def test_versions_of_one_base_are_served_on_it(registered, teachers, tmp_path, monkeypatch) -> None:
    first, second = (open_student(f"models:/{NAME}/{number}", registered) for number in (1, 2))
    fields = [student._package.field for student in (first, second)]
    assert fields[0].backbone is fields[1].backbone
    (one,), (other,) = (s.generate(["a red circle"], seed=0) for s in (first, second))
    assert one.size == (SIDE, SIDE)
    assert one.tobytes() != other.tobytes()
    assert first.generate(["a red circle"], seed=0)[0].tobytes() == one.tobytes()
    (of_the_folder,) = open_student(tmp_path / "1" / "student").generate(["a red circle"], seed=0)
    assert of_the_folder.tobytes() == one.tobytes()
    version = open_store(registered).client.get_model_version(NAME, "1")
    assert json.loads(version.tags[TAG])["where"] == "hf://somebody/small-sd3@main"
    with contextlib.chdir(tmp_path):
        monkeypatch.setenv(BASES_VARIABLE, str(tmp_path / "1"))
        with pytest.raises(WeightsError, match="not in the cache.*`hf download somebody/sm"):
            del first, second, fields
            open_student(f"models:/{NAME}/1", registered)


def test_a_student_is_used_when_its_folder_is_gone(teachers, tmp_path: Path) -> None:
    """As what comes from the registry, or what a later training has replaced."""
    write_student(teachers, tmp_path / "packed", 1)
    write_whole_student(tmp_path / "whole")
    picture = Image.new("RGB", (SIDE, SIDE), "#aa2200")
    for name in ("packed", "whole"):
        folder = tmp_path / name
        first, later = open_student(folder), open_student(folder)
        (usual,) = first.edit([picture], ["a red circle"], seed=0)
        shutil.rmtree(folder)
        assert later.edit([picture], ["a red circle"], seed=0)[0].tobytes() == usual.tobytes()


def test_the_page_of_a_version_tells_base_licences_and_data(registered) -> None:
    version = open_store(registered).client.get_model_version(NAME, "2")
    text = "\n".join(About.of_tags(version.tags).lines())
    assert "from hf://somebody/small-sd3@main; it must be there" in text
    assert "Teachers: base (openrail)" in text
    assert "t2i rows-of-2" in text


def test_an_export_of_a_version_has_its_card(registered, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export_student(f"models:/{NAME}/1", "lora", out, registered) == out
    assert (out / "pytorch_lora_weights.safetensors").is_file()
    text = (out / CARD).read_text()
    _, head, body = text.split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["base_model"], told["license"]) == ("somebody/small-sd3", "openrail")
    for part in (
        "| t2i (of 1) | 0.5 | 0.5556 | 90.0% | 90% to 90% |",
        "Teachers: base (openrail)",
        "t2i rows-of-1",
        "DiffusionPipeline.from_pretrained('somebody/small-sd3')",
        "no stock pipeline has",
        "## Limits",
    ):
        assert part in body, part
    with pytest.raises(UsageError, match="holds something already"):
        export_student(f"models:/{NAME}/1", "lora", out, registered)


@pytest.mark.parametrize(
    ("licence", "head"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("Some Terms: v2\nof [us]", {"license": "other", "license_name": "some-terms-v2-of-us"}),
    ],
)
def test_a_card_has_a_head_that_the_hub_takes_and_no_place_of_this_machine(
    tmp_path: Path, licence: str, head: dict[str, str]
) -> None:
    base = {"network": "5" * 64, "where": str(tmp_path / "stock"), "teacher": "base"}
    meta = {"family": "sd3", "files": {}, "base": base, "licences": {"base": licence}}
    _, found, body = card(meta, "lora", tmp_path, None).split("---\n", 2)
    told = yaml.safe_load(found)
    assert {name: told[name] for name in told if name.startswith("license")} == head
    assert "from stock; it must be there" in body
    assert str(tmp_path) not in body


def test_an_export_of_a_folder_says_that_nobody_evaluated_it(tmp_path: Path) -> None:
    folder = write_whole_student(tmp_path / "student")
    export_student(str(folder), "diffusers", tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_text()
    assert "No scores of it are known here." in text
    assert "Base: none, its network is its own" in text
    assert 'SD3Transformer2DModel.from_pretrained("<this folder>", subfolder="transformer")' in text
    with pytest.raises(UsageError, match="unknown format 'difusers': did you mean 'diffusers'"):
        export_student(str(folder), "difusers", tmp_path / "other")
    with pytest.raises(WeightsError, match="has no adapter"):
        export_student(str(folder), "lora", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_card_says_the_shift_of_a_grid_that_the_base_does_not_have(tmp_path: Path) -> None:
    meta = {"family": "sd3", "files": {}, "image_sizes": [[16, 16]], "num_steps": 4, "shift": 2.0}
    said = "Set the shift of its scheduler to 2:"
    for kind, is_said in (("diffusers", True), ("pipeline", False)):
        assert (said in card(meta, kind, tmp_path, None)) == is_said
    assert said not in card({**meta, "shift": None}, "diffusers", tmp_path, None)
