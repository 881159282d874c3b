import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from repository import ROOT
from tiny_models import PROMPTS, awake, small_sd3

from danceflow.errors import DataError, TrackingError, UsageError, WeightsError
from danceflow.models.package import load_package, save_package
from danceflow.registry.open import folder_digest, open_folder, open_student
from danceflow.registry.student import TOGETHER, Row, Student, UnwantedError


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_prompt_becomes_an_image(student_folder):
    red, blue = open_student(student_folder).generate(["red", "blue"])
    assert red.size == (8, 8)
    assert pixels(red).reshape(-1, 3).mean(0).tolist() == [128, 0, 0]
    assert pixels(blue).reshape(-1, 3).mean(0).tolist() == [0, 0, 128]


def test_words_that_the_model_does_not_know_are_told(student_folder, caplog):
    with caplog.at_level("WARNING"):
        open_student(student_folder).generate(["red zebra", "blue"])
    assert "'zebra'" in caplog.text
    assert "blue" not in caplog.text


def test_what_is_cut_of_a_prompt_is_told_for_each_row_in_its_own_layout(student_folder, caplog):
    student, white = open_student(student_folder), Image.new("RGB", (8, 8), "white")
    prompts = ["red", "red green blue blue", "red green blue", "blue green red green"]
    student.run(prompts, [None, None, white, white])
    told = [r.getMessage() for r in caplog.records if " is cut: " in r.getMessage()]
    assert told == [
        (
            "prompt 1 is cut: text_encoder reads 2 of its 4 tokens: kept 'red green', "
            "dropped 'blue blue'"
        ),
        (
            "prompt 3 is cut: text_encoder reads 3 of its 4 tokens: kept 'blue green red', "
            "dropped 'green'"
        ),
    ]
    caplog.clear()
    student.generate(["red green", "blue"])
    student.edit([white], ["red green blue"])
    assert " is cut: " not in caplog.text


def test_an_edit_sees_its_own_source_and_instruction(student_folder):
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    first, second = open_student(student_folder).edit([white, black], ["red", "green"])
    assert pixels(first)[0, 0].tolist() == [255, 128, 128]
    assert pixels(second)[0, 0].tolist() == [0, 128, 0]


def test_rows_with_and_without_a_source_mix(student_folder):
    white = Image.new("RGB", (8, 8), "white")
    results = open_student(student_folder).run(["red", "red"], [None, white])
    assert [pixels(image)[0, 0].tolist() for image in results] == [[128, 0, 0], [255, 128, 128]]


def test_another_size_is_cropped_around_its_centre(student_folder):
    wide = Image.new("RGB", (48, 16), "black")
    wide.paste("white", (16, 0, 32, 16))
    (result,) = open_student(student_folder).edit([wide], ["red"])
    assert pixels(result)[3:5, 3:5].reshape(-1, 3).min(0).tolist() == [255, 128, 128]


def test_a_picture_of_any_mode_is_edited_upright_and_on_paper(student_folder):
    student = open_student(student_folder)
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    turned = Image.new("RGB", (8, 8), "black")
    turned.paste("white", (0, 0, 8, 4))
    turned.getexif()[0x0112] = 6  # its top is to be at the right
    on_paper, upright = student.edit([clear, turned], ["red", "red"])
    assert (pixels(on_paper) == [255, 128, 128]).all()
    assert pixels(upright)[0, 7].tolist() == [255, 128, 128]
    assert pixels(upright)[0, 0].tolist() == [128, 0, 0]
    assert turned.getexif()[0x0112] == 6
    assert student.framed(upright) is upright


def test_a_picture_that_cannot_be_framed_is_told_by_its_place(student_folder):
    good, bad = Image.new("RGB", (8, 8)), Image.new("F", (8, 8))
    with pytest.raises(DataError, match="image 1: is a picture whose gray levels"):
        open_student(student_folder).edit([good, bad], ["red", "red"])


@pytest.fixture
def shaped_folder(student_folder):
    """A student that makes 8x8, 12x6 and 6x12 pixels (width first)."""
    meta = {"image_sizes": [[8, 8], [6, 12], [12, 6]]}
    (student_folder / "weights.json").write_text(json.dumps({"strength": 0.5, "meta": meta}))
    return student_folder


def test_images_have_the_usual_size_or_the_one_asked_for(shaped_folder):
    student = open_student(shaped_folder)
    assert student.image_sizes == ((8, 8), (6, 12), (12, 6))
    assert [image.size for image in student.generate(["red", "blue"])] == [(8, 8)] * 2
    assert student.generate(["red"], size=(6, 12))[0].size == (12, 6)
    with pytest.raises(UsageError, match="no images of 6x8 pixels, but of 8x8, 12x6, 6x12"):
        student.generate(["red"], size=(8, 6))


def test_an_edit_has_the_size_of_nearest_aspect_whatever_is_beside_it(shaped_folder):
    student = open_student(shaped_folder)
    shapes = [(30, 20), (20, 20), (21, 20), (10, 30), (9, 16)]
    sources = [Image.new("RGB", shape, "white") for shape in shapes]
    together = student.run(["red"] * 6, [*sources, None])
    expected = [(12, 6), (8, 8), (8, 8), (6, 12), (6, 12), (8, 8)]
    assert [image.size for image in together] == expected
    # Each is what it is in a call of its own size alone.
    for place, source in enumerate(sources):
        alone = student.run(["red"] * (place + 1), [*[None] * place, source])
        assert np.array_equal(pixels(alone[-1]), pixels(together[place]))
    assert not np.array_equal(pixels(together[1]), pixels(together[2]))


def test_guidance_reaches_the_field(student_folder):
    (plain,) = open_student(student_folder).generate(["red"], guidance=1.0)
    (strong,) = open_student(student_folder).generate(["red"], guidance=1.5)
    assert pixels(strong)[0, 0, 0] > pixels(plain)[0, 0, 0]


@pytest.fixture
def noisy_folder(student_folder):
    (student_folder / "weights.json").write_text('{"strength": 0.5}')
    return student_folder


def test_a_sample_depends_on_seed_and_place_only(noisy_folder):
    student = open_student(noisy_folder)
    many = student.generate(["red"] * 20, seed=3)
    few = student.generate(["red", "red"], seed=3)
    other = student.generate(["red"], seed=4)
    assert np.array_equal(pixels(many[1]), pixels(few[1]))
    assert not np.array_equal(pixels(many[0]), pixels(many[1]))
    assert not np.array_equal(pixels(many[0]), pixels(other[0]))


def test_the_number_of_steps_comes_from_the_student_or_the_caller(noisy_folder):
    student = open_student(noisy_folder)
    (default,), (same,) = student.generate(["red"]), student.generate(["red"], num_steps=4)
    (other,) = student.generate(["red"], num_steps=2)
    assert np.array_equal(pixels(default), pixels(same))
    assert not np.array_equal(pixels(default), pixels(other))


def test_rows_of_one_call_take_the_steps_of_their_kind(tmp_path):
    family = small_sd3()
    meta = {"num_steps": {"generate": 3, "edit": 1}, "image_sizes": [[16, 16]]}
    save_package(tmp_path, family, awake(family), meta)
    student = open_folder(tmp_path, None, "cpu")
    prompts, sources = ["red", "blue"], [None, Image.new("RGB", (16, 16), "red")]
    assert (student.steps(is_edit=False), student.steps(is_edit=True)) == (3, 1)
    found = student.run(prompts, sources)
    for place, steps in enumerate((3, 1)):
        expected = student.run(prompts, sources, num_steps=steps)[place]
        other = student.run(prompts, sources, num_steps=4 - steps)[place]
        assert np.array_equal(pixels(found[place]), pixels(expected))
        assert not np.array_equal(pixels(found[place]), pixels(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["red", " "]}, "prompt 1 is empty"),
        ({"prompts": ["red", "red \ud800"]}, "prompt 1 holds half a character"),
        ({"prompts": ["red"], "num_steps": 0}, "at least 1"),
        ({"prompts": ["red"], "guidance": -1.0}, "guidance"),
        ({"prompts": ["red"], "guidance": float("nan")}, "guidance"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(student_folder, arguments, message):
    with pytest.raises(UsageError, match=message):
        open_student(student_folder).generate(**arguments)


def test_images_and_instructions_pair_up(student_folder):
    with pytest.raises(UsageError, match="1 images and 2 prompts"):
        open_student(student_folder).edit([Image.new("RGB", (8, 8))], ["red", "red"])


def test_a_missing_student_is_named(tmp_path):
    with pytest.raises(WeightsError, match="there is no student here"):
        open_student(tmp_path / "student")


def test_other_content_than_the_registered_one_is_refused(student_folder):
    digest = folder_digest(student_folder)
    open_folder(student_folder, digest, "cpu")
    path = student_folder / "weights.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="is not what was registered"):
        open_folder(student_folder, digest, "cpu")


def test_the_digest_covers_names_and_contents(student_folder):
    first = folder_digest(student_folder)
    (student_folder / "weights.json").rename(student_folder / "other.json")
    renamed = folder_digest(student_folder)
    (student_folder / "part").mkdir()
    (student_folder / "part" / "more.json").write_text("{}")
    assert len({first, renamed, folder_digest(student_folder)}) == 3


@pytest.mark.parametrize("source", ["champion", "models:/student@champion", "runs:/abc"])
def test_a_store_is_needed_for_what_is_in_one(source, tracking, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="tracking is off"):
        open_student(source, replace(tracking, enabled=False))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"holds dvc\.yaml and params\.yaml"):
        open_student(source)


def test_without_settings_the_checkout_says_where_to_look(tracking, monkeypatch):
    params = (ROOT / "params.yaml").read_text()
    (tracking.root / "params.yaml").write_text(params)
    (tracking.root / "dvc.yaml").write_text("stages: {}")
    monkeypatch.chdir(tracking.root)
    with pytest.raises(TrackingError, match=f"danceflow-scenes yet in .*{tracking.root}/mlflow.db"):
        open_student("champion")


def test_no_bit_of_a_picture_depends_on_the_rows_beside_it(tmp_path):
    """Floats, not levels: batches of other sizes would round sums in another order."""
    family = small_sd3()
    meta = {"num_steps": 2, "image_sizes": [[16, 16]]}
    save_package(tmp_path, family, awake(family), meta)
    student = open_folder(tmp_path, None, "cpu")
    rng = Random(0)
    red = Image.new("RGB", (16, 16), "red")
    rows = [
        Row(rng.choice(PROMPTS), red if place % 3 == 0 else None, place % 5, place % 4, (16, 16))
        for place in range(24)
    ]
    alone = [student.tensors([row], 2, 1.5)[0] for row in rows]
    for _ in range(40):
        chosen = rng.sample(range(24), rng.randint(1, 7))
        found = student.tensors([rows[place] for place in chosen], 2, 1.5)
        for place, tensor in zip(chosen, found, strict=True):
            assert torch.equal(tensor, alone[place])


def test_batches_are_of_one_size_and_large_pictures_are_alone(tmp_path):
    family = small_sd3()
    meta = {"num_steps": 2, "image_sizes": [[16, 16]]}
    save_package(tmp_path, family, awake(family), meta)
    assert open_folder(tmp_path, None, "cpu").together == TOGETHER
    assert open_folder(tmp_path, None, "cpu", 7).together == 7
    package = replace(load_package(tmp_path), meta={**meta, "image_sizes": [[16, 16], [72, 64]]})
    assert Student(package).together == 1


def test_what_nobody_wants_any_more_is_not_finished(tmp_path):
    family = small_sd3()
    save_package(tmp_path, family, awake(family), {"num_steps": 2, "image_sizes": [[16, 16]]})
    student = open_folder(tmp_path, None, "cpu")
    asked = []

    def wanted() -> bool:
        asked.append(None)
        return len(asked) < 4

    with pytest.raises(UnwantedError):
        student.make([Row("a", None, 0, 0, (16, 16))], 9, wanted=wanted)
    assert len(asked) == 4
