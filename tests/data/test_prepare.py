"""Splits of the asked sizes that share no scene, the same bytes every time."""

import hashlib
import json
from pathlib import Path

import pytest
from tiny_project import small_data, small_params

from danceflow.config import parse_params
from danceflow.data import prepare
from danceflow.data.buckets import FRAMING, images_of, read_bucket, read_framing, row_sample
from danceflow.errors import DataError
from danceflow.paths import Paths
from danceflow.scenes.prompts import CATEGORIES
from danceflow.scenes.render import render
from danceflow.scenes.world import SPLITS, split_of

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
            expected += ["reworded"] * 6 + ["held_out_pair"] * 6
        assert dataset["variant"] == expected
        in_turn = [categories[i % len(categories)] for i in range(len(dataset))]
        assert dataset["category"] == in_turn
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
                sample = row_sample(row)
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
    samples = [row_sample(row) for row in dataset]
    assert {sample.rendering for sample in samples} == {"shaded"}
    images = images_of(dataset, range(len(dataset)), "target")
    expected = render([sample.target for sample in samples], 32, "shaded")
    assert (images - expected).abs().max() <= 0.5 / 255 + 1e-6


def shaded(data: dict) -> dict:
    return {"t2i": data["capabilities"]["t2i"] | {"bucket": "realism"}}


def test_the_report_counts_what_was_written(prepared: Paths) -> None:
    report = json.loads(prepared.data_report.read_text())
    assert report["source"] == "scenes"
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
    real = prepare._draw

    def leaking(bucket, split, sizes, seed):
        other = "train" if split == "test" else split
        return real(bucket, other, sizes, seed)

    monkeypatch.setattr(prepare, "_draw", leaking)
    with pytest.raises(DataError, match=r"\d+ scenes stand in both train and test; the first is"):
        prepare.run(params(), Paths(tmp_path))
    assert list(tmp_path.rglob("*.arrow")) == []
    assert not (tmp_path / "reports").exists()
