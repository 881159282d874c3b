"""The stage: every field, the same questions, files that describe themselves, clear errors."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tiny_project import small_data
from training_record import CAPABILITIES

from danceflow.errors import DataError, WeightsError
from danceflow.evaluate import asked as asking
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.records import read_evaluation
from danceflow.evaluate.task import STANDARD
from danceflow.models.families.sd3 import Sd3Family
from danceflow.models.package import FROZEN_FOLDER
from danceflow.ops import keys
from danceflow.ops.files import sha256
from danceflow.params.read import parse_params
from danceflow.paths import MANIFEST, Paths
from danceflow.report.page.tiles import read_tiles

FIELDS = ["student", "start", "teacher:base", "teacher:local", "teacher:global"]
NUM_CATEGORIES = {"t2i": 6, "local_edit": 4, "global_edit": 2}


@pytest.fixture
def copy(prepared, tmp_path: Path):
    """A copy of the project that a test may damage; nothing is evaluated in it."""
    params, paths = prepared
    shutil.copytree(paths.root, tmp_path / "copy")
    for folder in ("reports/evaluate", ".danceflow"):
        shutil.rmtree(tmp_path / "copy" / folder, ignore_errors=True)
    return params, Paths(tmp_path / "copy")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_field_is_asked_the_same(reported, capability: str) -> None:
    _, paths = reported
    found = read_evaluation(paths.evaluation(capability), capability)
    assert list(found.fields) == FIELDS
    own = {"t2i": "base", "local_edit": "local", "global_edit": "global"}[capability]
    assert found.teacher == f"teacher:{own}"
    assert found.scale == (1 if capability == "t2i" else 10)
    asked = {
        name: [(row.uid, row.seed) for row in result.rows if row.variant == STANDARD]
        for name, result in found.fields.items()
    }
    assert len(asked["student"]) == 2 * NUM_CATEGORIES[capability]
    assert all(rows == asked["student"] for rows in asked.values())
    for name, result in found.fields.items():
        full = name in ("student", found.teacher)
        assert set(result.variants) == (
            {STANDARD, "reworded", "held_out_pair"} if full else {STANDARD}
        )
        assert len(result.categories) == NUM_CATEGORIES[capability]
        mean = sum(result.categories.values()) / len(result.categories)
        assert result.score == pytest.approx(mean)
        assert result.score == result.variants[STANDARD]
        assert {"fid_conv64", "kid_conv64"} <= set(result.metrics)
        assert ("psnr" in result.metrics) == (capability != "t2i")
        assert ("all" in result.field_gap) == (name in ("student", "start"))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_pictures_of_every_kind_are_drawn(reported, capability: str) -> None:
    _, paths = reported
    folder = paths.evaluation_images(capability)
    assert {"grid.png", "reworded.png", "held_out_pair.png", "tiles.png", "tiles.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert min(path.name for path in folder.glob("*.png")) == "grid.png"
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 800
    rows = read_tiles(folder)
    assert {row.kind for row in rows} >= {"standard", "reworded", "held_out_pair"}
    of_edits = {"source", "difference"} if capability != "t2i" else set()
    pictures = set(FIELDS) | {"target"} | of_edits
    for row in rows:
        assert row.prompt
        assert set(row.scores) <= set(FIELDS)
        expected = pictures if row.kind in ("standard", "lost") else set(row.pictures)
        assert set(row.pictures) == expected
        assert len({picture.size for picture in row.pictures.values()}) == 1
    standard = next(row for row in rows if row.kind == "standard")
    assert set(standard.scores) == set(FIELDS)


def test_the_same_files_come_out_again(reported, copy) -> None:
    _, paths = reported
    params, other = copy
    evaluate.run(params, other, "local_edit")
    one, two = (p.evaluation("local_edit").read_text().splitlines() for p in (paths, other))
    assert [line for line in one if "seconds" not in line] == [
        line for line in two if "seconds" not in line
    ]
    pictures = [p.evaluation_images("local_edit") / "tiles.png" for p in (paths, other)]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_answers_without_the_student_are_given_once(copy, monkeypatch) -> None:
    params, paths = copy
    evaluate.run(params, paths, "t2i")
    whole = paths.evaluation("t2i").read_text().splitlines()
    asked: list[str] = []
    images = asking.finite_images

    def noted(task, field, config, name, on_batch):
        asked.append(name)
        return images(task, field, config, name, on_batch)

    monkeypatch.setattr(asking, "finite_images", noted)
    evaluate.run(params, paths, "t2i")
    assert asked == ["student"]
    again = paths.evaluation("t2i").read_text().splitlines()
    assert [x for x in again if "seconds" not in x] == [x for x in whole if "seconds" not in x]

    def changed(**changes):
        asked.clear()
        evaluate.run(parse_params(small_data(CAPABILITIES, **changes), "test"), paths, "t2i")
        return [name for name in asked if name != "student"]

    assert changed(distill__learning_rate=0.5, distill__seed=3) == []
    assert changed(distill__init="base") == ["start"]
    assert changed(evaluate__guidance=2.0) == ["start"]
    assert changed(capabilities__t2i__guidance=2.5) == ["start", *FIELDS[2:]]
    assert changed(evaluate__num_steps=3) == ["start", *FIELDS[2:]]
    monkeypatch.setattr(keys, "code_digest", lambda *modules: "other code")
    assert changed() == ["start", *FIELDS[2:]]
    with (paths.bucket("t2i") / "test" / "note").open("w") as file:
        file.write("the rows are others now")
    assert changed() == ["start", *FIELDS[2:]]


def test_damaged_answers_are_told(copy) -> None:
    params, paths = copy
    evaluate.run(params, paths, "t2i")
    for file in paths.work("any").parent.glob("evaluation-*/images.safetensors"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="evaluation-.*is damaged .*; delete it to start over"):
        evaluate.run(params, paths, "t2i")


def test_the_student_is_scored_with_the_guidance_that_was_asked_for(reported, copy) -> None:
    _, paths = copy
    plain = read_evaluation(reported[1].evaluation("t2i"), "t2i")
    guided = parse_params(small_data(CAPABILITIES, evaluate__guidance=3.0), "test")
    evaluate.run(guided, paths, "t2i")
    found = read_evaluation(paths.evaluation("t2i"), "t2i")
    assert found.fields["student"].metrics != plain.fields["student"].metrics
    assert found.fields["start"].metrics != plain.fields["start"].metrics
    assert found.fields["teacher:base"] == plain.fields["teacher:base"]


def test_a_start_that_is_a_teacher_takes_no_network(copy, monkeypatch) -> None:
    _, paths = copy
    made: list[str] = []
    for name in ("new_backbone", "load_backbone"):
        whole = getattr(Sd3Family, name)

        def noted(family, *args, whole=whole, name=name, **options):
            made.append(name)
            return whole(family, *args, **options)

        monkeypatch.setattr(Sd3Family, name, noted)

    def networks(**changes) -> dict[str, int]:
        made.clear()
        evaluate.run(parse_params(small_data(CAPABILITIES, **changes), "test"), paths, "t2i")
        return dict(Counter(made))

    assert networks(distill__init="base") == {"load_backbone": 4}  # the student and three teachers
    assert networks(distill__init="merge") == {"load_backbone": 4, "new_backbone": 1}
    alone = small_data(("t2i",), distill__init="local")
    alone["teachers"]["local"] = alone["teachers"]["base"]
    made.clear()
    evaluate.run(parse_params(alone, "test"), paths, "t2i")
    assert made == ["load_backbone"] * 3  # the student, the capability's teacher and the start


def test_frozen_parts_of_the_same_teachers_are_loaded_once(reported, copy, monkeypatch) -> None:
    params, paths = copy
    opened: list[Path] = []
    whole = Sd3Family.from_folder

    def noted(folder: Path, settings: Path | None = None) -> Sd3Family:
        opened.append(folder)
        return whole(folder, settings)

    monkeypatch.setattr(Sd3Family, "from_folder", noted)
    own = [paths.teachers / FROZEN_FOLDER]
    manifest = paths.student / MANIFEST
    meta = json.loads(manifest.read_text())
    digest = sha256(paths.teachers / MANIFEST)
    expected = read_evaluation(reported[1].evaluation("local_edit"), "local_edit")
    for recorded, folders in (
        (digest, own),
        ("of other teachers", [*own, paths.student / FROZEN_FOLDER]),
    ):
        manifest.write_text(json.dumps(meta | {"teachers_digest": recorded}))
        opened.clear()
        shutil.rmtree(paths.work("any").parent, ignore_errors=True)
        evaluate.run(params, paths, "local_edit")
        assert opened == folders
        found = read_evaluation(paths.evaluation("local_edit"), "local_edit")
        assert found.fields == expected.fields


def test_unknown_words_are_scored_apart(copy, monkeypatch) -> None:
    params, paths = copy
    package = evaluate.load_package

    def with_small_vocabulary(*args):
        loaded = package(*args)
        monkeypatch.setattr(
            loaded.family, "unknown_words", lambda prompt: [w for w in prompt.split() if w == "it"]
        )
        return loaded

    monkeypatch.setattr(evaluate, "load_package", with_small_vocabulary)
    evaluate.run(params, paths, "global_edit")
    found = read_evaluation(paths.evaluation("global_edit"), "global_edit")
    uids = {r.uid for r in found.fields["student"].rows if r.variant == "unknown_words"}
    if uids:
        assert "unknown_words" in found.fields["student"].variants
        assert "unknown_words" not in found.fields["start"].variants
    assert not uids & {r.uid for r in found.fields["start"].rows}


def test_a_missing_student_is_told(copy) -> None:
    params, paths = copy
    shutil.rmtree(paths.student)
    with pytest.raises(WeightsError, match=r"models/student/manifest\.json: cannot be read"):
        evaluate.run(params, paths, "t2i")
    assert not paths.evaluations.exists()


def test_a_truncated_student_is_told(copy) -> None:
    params, paths = copy
    weights = next(paths.student.rglob("diffusion_pytorch_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(WeightsError, match="models/student/.*truncated or was changed"):
        evaluate.run(params, paths, "t2i")
    assert not paths.evaluations.exists()


def test_a_truncated_teacher_is_told(copy) -> None:
    params, paths = copy
    weights = next(paths.teacher("local").rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(WeightsError, match="models/teachers/local/.*truncated or was changed"):
        evaluate.run(params, paths, "t2i")


def test_a_student_of_another_size_is_told(copy) -> None:
    params, paths = copy
    manifest = paths.student / "manifest.json"
    meta = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(meta | {"image_sizes": [[16, 16], [24, 40]]}))
    with pytest.raises(WeightsError, match="images of 16x16, 40x24 pixels, the data has 32x32;"):
        evaluate.run(params, paths, "t2i")


def test_a_missing_bucket_is_told(copy) -> None:
    params, paths = copy
    shutil.rmtree(paths.bucket("t2i") / "test")
    with pytest.raises(DataError, match="data/buckets/t2i/test"):
        evaluate.run(params, paths, "t2i")


def test_a_bucket_with_too_few_rows_is_told(copy) -> None:
    _, paths = copy
    params = parse_params(small_data(CAPABILITIES, evaluate__num_samples=50), "test")
    with pytest.raises(DataError, match="50 rows per category were asked for"):
        evaluate.run(params, paths, "t2i")


def test_a_field_that_breaks_down_is_told(copy, monkeypatch) -> None:
    params, paths = copy
    package = evaluate.load_package

    def broken(*args):
        loaded = package(*args)
        object.__setattr__(loaded, "field", lambda z, sigma, condition: z * float("nan"))
        return loaded

    monkeypatch.setattr(evaluate, "load_package", broken)
    with pytest.raises(WeightsError, match="student: its images of t2i are not finite"):
        evaluate.run(params, paths, "t2i")
    assert not paths.evaluation("t2i").exists()
