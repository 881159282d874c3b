"""Buckets come back as they were written, and what is wrong with one is told with its place."""

import random
from pathlib import Path

import pytest
import torch

from danceflow.data.buckets import (
    COLUMNS,
    encode_png,
    images_of,
    read_bucket,
    rows_of,
    write_bucket,
)
from danceflow.errors import DataError
from danceflow.scenes.prompts import CATEGORIES, draw_sample
from danceflow.scenes.render import render_codes
from danceflow.worlds.scenes import scene_sample, scene_spec

SIZE = 32


def rows(bucket: str, count: int, variant: str = "standard") -> list[dict]:
    categories = CATEGORIES[bucket]
    made = []
    for index in range(count):
        category = categories[index % len(categories)]
        sample = draw_sample(random.Random(index), category, "test", variant)
        codes = [(scene or sample.target).codes() for scene in (sample.source, sample.target)]
        source, target = (encode_png(image) for image in render_codes(torch.tensor(codes), SIZE))
        made.append(
            {
                "uid": f"{bucket}-test-{index:05d}",
                "category": category,
                "variant": variant,
                "prompt": sample.prompt,
                "source": None if sample.source is None else source,
                "target": target,
                "spec": scene_spec(sample),
            }
        )
    return made


@pytest.mark.parametrize("bucket", CATEGORIES)
def test_a_bucket_comes_back(tmp_path: Path, bucket: str) -> None:
    written = rows(bucket, 6)
    write_bucket(tmp_path / "test", written)
    dataset = read_bucket(tmp_path, "test")
    assert dataset.column_names == list(COLUMNS)
    assert dataset["uid"] == [row["uid"] for row in written]
    for index, row in enumerate(written):
        sample = scene_sample(dataset[index])
        expected = draw_sample(random.Random(index), row["category"], "test")
        assert sample == expected
        columns = {"target": expected.target, "source": expected.source}
        for column, scene in columns.items():
            if scene is not None:
                exact = render_codes(torch.tensor([scene.codes()]), SIZE)
                (image,) = images_of(dataset, [index], column)
                torch.testing.assert_close(image, exact[0], rtol=0, atol=0.5 / 255 + 1e-6)


def test_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    write_bucket(tmp_path / "test", rows("t2i", 6))
    dataset = read_bucket(tmp_path, "test")
    images = images_of(dataset, [4, 0], "target")
    assert images.shape == (2, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(images[0], images_of(dataset, [4], "target")[0])


def test_an_image_is_kept_to_a_level_of_256() -> None:
    image = torch.tensor([-1.0, 0.0, 0.5, 2.0]).expand(3, 2, 4)
    cell = encode_png(image)
    assert cell["path"] is None
    assert cell["bytes"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (b"", "the image is corrupt"),
        (b"no image", "the image is corrupt"),
        ("half", "the image is corrupt"),
        (None, "there is no image"),
    ],
)
@pytest.mark.parametrize("column", ["source", "target"])
def test_a_corrupt_image_is_told_with_row_and_column(
    tmp_path: Path, damage: bytes | str | None, message: str, column: str
) -> None:
    content = rows("local_edit", 4)
    whole = content[2][column]["bytes"]
    spoilt = whole[: len(whole) // 2] if damage == "half" else damage
    content[2][column] = None if spoilt is None else {"bytes": spoilt, "path": None}
    write_bucket(tmp_path / "test", content)
    dataset = read_bucket(tmp_path, "test")
    with pytest.raises(DataError) as caught:
        images_of(dataset, range(4), column)
    assert str(caught.value).startswith(f"row 2 (local_edit-test-00002), {column}: {message}")
    assert len(images_of(dataset, [0, 1, 3], column)) == 3


def test_an_empty_bucket_is_told(tmp_path: Path) -> None:
    write_bucket(tmp_path / "t2i" / "train", [])
    with pytest.raises(DataError, match="t2i/train: this bucket is empty"):
        read_bucket(tmp_path / "t2i", "train")


def test_a_missing_a_damaged_and_a_strange_split_are_told(tmp_path: Path) -> None:
    from datasets import Dataset

    write_bucket(tmp_path / "test", rows("t2i", 2))
    with pytest.raises(DataError, match=f"{tmp_path}/train: cannot be read as a data set"):
        read_bucket(tmp_path, "train")
    (file,) = (tmp_path / "test").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{tmp_path}/test: cannot be read as a data set"):
        read_bucket(tmp_path, "test")
    Dataset.from_dict({"uid": ["a"], "prompt": ["b"]}).save_to_disk(str(tmp_path / "train"))
    with pytest.raises(DataError, match=r"has columns \['uid', 'prompt'\], expected"):
        read_bucket(tmp_path, "train")


def test_a_row_without_exact_scenes_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="photo-7: this row has no exact scenes"):
        scene_sample({"uid": "photo-7", "spec": ""})


def test_the_first_rows_of_every_category_and_variant_are_found(tmp_path: Path) -> None:
    write_bucket(tmp_path / "test", rows("global_edit", 6) + rows("global_edit", 3, "reworded"))
    dataset = read_bucket(tmp_path, "test")
    assert rows_of(dataset, 2, "standard", at_least=2) == [0, 1, 2, 3]
    assert rows_of(dataset, 1, "reworded", at_least=1) == [6, 7]
    assert rows_of(dataset, 9, "reworded", at_least=0) == [6, 7, 8]
    assert rows_of(dataset, 1, "held_out_pair", at_least=0) == []
    with pytest.raises(DataError, match="4 rows per category were asked for"):
        rows_of(dataset, 4, "standard", at_least=4)
    with pytest.raises(DataError, match="but the bucket has fewer"):
        rows_of(dataset, 1, "held_out_pair", at_least=1)
