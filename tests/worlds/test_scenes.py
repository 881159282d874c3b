"""Scenes: splits that share none, the same bytes every time, what is read and preserved."""

import hashlib
import json
from pathlib import Path
from random import Random

import pytest
import torch
from tiny_project import small_data, small_params

from danceflow.data.buckets import FRAMING, images_of, read_bucket, read_framing
from danceflow.errors import ConfigError, DataError
from danceflow.params.read import parse_params
from danceflow.paths import Paths
from danceflow.scenes.prompts import CATEGORIES, Request, draw_sample
from danceflow.scenes.prompts import Sample as SceneSample
from danceflow.scenes.render import render
from danceflow.scenes.world import SPLITS, split_of
from danceflow.worlds import prepare
from danceflow.worlds import scenes as module
from danceflow.worlds.scenes import (
    Scenes,
    asks_for_held_out_pair,
    draw_pool,
    preserved_pixels,
    request_labels,
    scene_sample,
)

BUCKETS = ("t2i", "local_edit", "global_edit")
SIZES = {"num_train": 24, "num_validation": 12, "num_test": 18}


def params(**changes):
    data = {f"data__buckets__{name}": SIZES for name in BUCKETS}
    return small_params(BUCKETS, **data, **changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(tmp_path_factory.mktemp("prepared"))
    prepare.run(params(), paths)
    return paths


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("bucket", BUCKETS)
def test_splits_have_their_sizes_with_categories_in_turn(prepared: Paths, bucket: str) -> None:
    categories = CATEGORIES[bucket]
    for split in SPLITS:
        dataset = read_bucket(prepared.bucket(bucket), split)
        expected = ["standard"] * SIZES[f"num_{split}"]
        if split == "test":
            expected += ["reworded"] * 6
        whole = len(expected)
        assert dataset["variant"][:whole] == expected
        in_turn = [categories[i % len(categories)] for i in range(whole)]
        assert dataset["category"][:whole] == in_turn
        # Those that ask for nothing new are left out.
        assert set(dataset["variant"][whole:]) <= {"held_out_pair"}
        assert len(dataset) - whole in (range(1, 7) if split == "test" else (0,))
        assert len(set(dataset["uid"])) == len(dataset)
        has_source = [cell is not None for cell in dataset["source"]]
        assert has_source == [bucket != "t2i"] * len(dataset)


def test_pictures_that_are_drawn_are_edited_on_white_paper(prepared: Paths) -> None:
    assert read_framing(prepared.buckets) == {"fit": "crop", "paper": "#ffffff"}


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"\xff"])
def test_a_framing_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FRAMING).write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path}/framing.json: .*; run the stage prepare"):
        read_framing(tmp_path)


def test_no_scene_stands_in_two_splits(prepared: Paths) -> None:
    scenes = {split: set() for split in SPLITS}
    for bucket in BUCKETS:
        for split in SPLITS:
            for row in read_bucket(prepared.bucket(bucket), split):
                sample = scene_sample(row)
                scene = sample.source or sample.target
                assert split_of(scene) == split
                scenes[split].add(tuple(scene.codes()))
    assert all(scenes.values())
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or not scenes[first] & scenes[second]


def test_realism_has_the_prompts_of_text_to_image_and_shaded_targets(tmp_path: Path) -> None:
    data = small_data(("t2i",))
    data["data"]["buckets"] = {"realism": SIZES}
    data["teachers"]["base"]["bucket"] = "realism"
    prepare.run(parse_params(data | {"capabilities": shaded(data)}, "test"), Paths(tmp_path))
    dataset = read_bucket(Paths(tmp_path).bucket("realism"), "test")
    assert set(dataset["category"]) == set(CATEGORIES["t2i"])
    samples = [scene_sample(row) for row in dataset]
    assert {sample.rendering for sample in samples} == {"shaded"}
    images = images_of(dataset, range(len(dataset)), "target")
    expected = render([sample.target for sample in samples], 32, "shaded")
    assert (images - expected).abs().max() <= 0.5 / 255 + 1e-6


def shaded(data: dict) -> dict:
    return {"t2i": data["capabilities"]["t2i"] | {"bucket": "realism"}}


def test_the_report_counts_what_was_written(prepared: Paths) -> None:
    report = json.loads(prepared.data_report.read_text())
    assert report["world"] == "scenes"
    assert list(report["buckets"]) == list(BUCKETS)
    test = report["buckets"]["global_edit"]["test"]
    assert test["num_samples"] == 30
    assert test["categories"] == {
        f"{variant}/{category}": count
        for variant, count in (("held_out_pair", 3), ("reworded", 3), ("standard", 9))
        for category in CATEGORIES["global_edit"]
    }
    assert set(report["scenes"]) == set(SPLITS)


def test_the_same_parameters_give_the_same_bytes(
    prepared: Paths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.run(params(), Paths(tmp_path))
    progress = capsys.readouterr().err
    assert all(f"{bucket} {split}: 100%|" in progress for bucket in BUCKETS for split in SPLITS)
    assert digests(tmp_path) == digests(prepared.root)
    prepare.run(params(), Paths(tmp_path))
    assert digests(tmp_path) == digests(prepared.root)


def test_another_seed_and_another_size_change_only_what_they_should(
    prepared: Paths, tmp_path: Path
) -> None:
    prepare.run(params(data__seed=1), Paths(tmp_path / "seed"))
    one, other = (
        read_bucket(place.bucket("t2i"), "train") for place in (prepared, Paths(tmp_path / "seed"))
    )
    assert one["spec"] != other["spec"]
    more = params(data__buckets__t2i__num_train=30)
    prepare.run(more, Paths(tmp_path / "more"))
    longer = read_bucket(Paths(tmp_path / "more").bucket("t2i"), "train")
    assert longer["spec"][:24] == one["spec"]


def test_an_unknown_bucket_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    good = params()
    bad = good.model_copy(
        update={
            "data": good.data.model_copy(
                update={"buckets": {"t3i": next(iter(good.data.buckets.values()))}}
            )
        }
    )
    (tmp_path / "data" / "buckets").mkdir(parents=True)
    (tmp_path / "data" / "buckets" / "former").write_text("whole")
    with pytest.raises(DataError, match=r"data\.buckets\.t3i: the scenes world has no such bucket"):
        prepare.run(bad, Paths(tmp_path))
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["buckets"]
    assert (tmp_path / "data" / "buckets" / "former").read_text() == "whole"


def test_a_scene_in_two_splits_is_found_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._draw

    def leaking(bucket, split, sizes, seed):
        other = "train" if split == "test" else split
        return real(bucket, other, sizes, seed)

    monkeypatch.setattr(module, "_draw", leaking)
    with pytest.raises(DataError, match=r"\d+ scenes stand in both train and test; the first is"):
        prepare.run(params(), Paths(tmp_path))
    assert list(tmp_path.rglob("*.arrow")) == []
    assert not (tmp_path / "reports").exists()


def drawn(bucket: str) -> list[SceneSample]:
    categories = CATEGORIES[bucket]
    return [draw_sample(Random(i), categories[i % len(categories)], "train") for i in range(24)]


def test_preserved_pixels() -> None:
    for item in drawn("local_edit"):
        assert int(preserved_pixels(item, 32).sum()) == 15 * 64
    for item in drawn("global_edit"):
        whole = item.request.operation == "style"
        expected = 16 if whole else len(item.source.objects)
        assert int(preserved_pixels(item, 64).sum()) == expected * 256
    with pytest.raises(ValueError, match="is no edit"):
        preserved_pixels(drawn("t2i")[0], 32)


@pytest.mark.parametrize("bucket", CATEGORIES)
def test_a_pool_cycles_through_the_categories_of_the_split(bucket: str) -> None:
    categories = CATEGORIES[bucket]
    samples = draw_pool(categories, "validation", 12, 0)
    assert [s.category for s in samples] == [categories[i % len(categories)] for i in range(12)]
    assert {split_of(s.source or s.target) for s in samples} == {"validation"}
    assert {s.variant for s in samples} == {"standard"}
    small = draw_pool(categories, "train", 7, 0)
    assert draw_pool(categories, "train", 11, 0)[:7] == small


def test_a_category_comes_as_often_as_its_weight_says(prepared: Paths) -> None:
    dataset, weights = read_bucket(prepared.bucket("t2i"), "train"), {"colors": 3}
    pool = Scenes().pool(dataset, "t2i", 16, 0, weights)
    categories = [c for c in CATEGORIES["t2i"] for _ in range(weights.get(c, 1))]
    assert categories.count("colors") == 3
    expected = draw_pool(categories, "train", 16, 0)
    assert pool.prompts == [item.prompt for item in expected]
    assert torch.equal(pool.targets(range(16)), render([item.target for item in expected]))
    with pytest.raises(ConfigError, match=r"unknown category of t2i 'color'.*'colors'"):
        Scenes().pool(dataset, "t2i", 8, 0, {"color": 2})


def test_held_out_rows_that_ask_for_nothing_new_are_not_written(prepared: Paths) -> None:
    for bucket in BUCKETS:
        rows = list(read_bucket(prepared.bucket(bucket), "test"))
        held_out = [scene_sample(r) for r in rows if r["variant"] == "held_out_pair"]
        assert held_out
        assert all(asks_for_held_out_pair(item) for item in held_out)


def test_labels_name_every_field_of_a_request() -> None:
    request = Request("add", ("red", "ring"), ("blue", "cross"), relation="above")
    labels = zip(module._LABELS.values(), request_labels(request), strict=True)
    values = [names[place] for names, place in labels]
    assert values == ["add", "red", "ring", "blue", "cross", 1, "above", None, None, None]


def test_every_request_has_labels_and_they_tell_requests_apart() -> None:
    by_labels = {}
    categories = [name for group in CATEGORIES.values() for name in group]
    for index in range(400):
        request = draw_sample(Random(index), categories[index % len(categories)], "train").request
        assert by_labels.setdefault(tuple(request_labels(request)), request) == request
    assert len(by_labels) > 200


def test_what_is_read_is_of_training_and_what_is_asked_afterwards_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_NUM_READ", 60)
    monkeypatch.setattr(module, "_NUM_CHECKED", 30)
    seen = []

    def watched(rng, category, split, variant="standard"):
        seen.append((split, variant))
        return draw_sample(rng, category, split, variant)

    monkeypatch.setattr(module, "draw_sample", watched)
    reading = Scenes().reading((), seed=0)
    assert seen == [("train", "standard")] * 60 + [("validation", "standard")] * 30
    assert reading.train.labels.shape == (60, len(reading.num_classes))
