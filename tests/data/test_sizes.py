"""Rows of several sizes: each is known by its head, drawn as often as any other, cached whole."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from shaped_rows import CAPABILITIES, COUNTS, SQUARE, WIDE, prepared, shaped_data
from tiny_project import write_teachers
from user_rows import encoded, picture

from danceflow.data import cache, write_shards
from danceflow.data.buckets import BucketWriter, images_of, read_bucket
from danceflow.data.cached_rows import ConditionCache
from danceflow.data.sizes import by_size, draw_group, read_size, shown, sizes_of
from danceflow.errors import DataError, UsageError, WeightsError
from danceflow.fields import normal, sample, seed_for
from danceflow.models.teachers import Teachers
from danceflow.paths import Paths
from danceflow.train.teachers.stream import PoolStream
from danceflow.worlds.rows import RowPool


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Buckets of two sizes with teachers and caches, in shards of three rows."""
    paths = Paths(tmp_path_factory.mktemp("made"))
    params = prepared(paths.root, shaped_data())
    write_teachers(params, paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_shards, "ROWS_PER_SHARD", 3)
        for capability in CAPABILITIES:
            cache.run(params, paths, capability)
    return params, paths


def rows_by_size(paths: Paths, bucket: str = "t2i", split: str = "train"):
    dataset = read_bucket(paths.bucket(bucket), split)
    return dataset, by_size(sizes_of(dataset, range(len(dataset))))


def test_the_size_in_the_head_is_the_pictures(made) -> None:
    _, paths = made
    dataset, groups = rows_by_size(paths)
    assert list(groups) == [WIDE, SQUARE]
    assert [len(rows) for rows in groups.values()] == [4, 8]
    assert sorted(row for rows in groups.values() for row in rows) == list(range(12))
    for size, rows in groups.items():
        assert images_of(dataset, rows, "target").shape == (len(rows), 3, *size)
    assert sizes_of(dataset, [7, 0, 7]) == [SQUARE, WIDE, SQUARE]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (None, "there is no image"),
        ({"bytes": b"\x89PNG\r\n\x1a\n", "path": None}, "the image is corrupt"),
        ({"bytes": encoded(picture(1), "JPEG"), "path": None}, "the image is corrupt"),
    ],
)
def test_a_row_without_a_size_is_named(tmp_path: Path, cell, words: str) -> None:
    good = {"bytes": encoded(picture(0)), "path": None}
    with BucketWriter(tmp_path / "train") as writer:
        for name, target in (("first", good), ("second", cell)):
            row = dict.fromkeys(("category", "variant", "prompt", "spec"), "x")
            writer.add({"uid": name, **row, "source": None, "target": target})
    dataset = read_bucket(tmp_path, "train")
    assert sizes_of(dataset, [0]) == [(20, 20)]
    with pytest.raises(DataError, match=rf"row 1 \(second\), target: {words}"):
        sizes_of(dataset, [0, 1])


def test_a_group_is_drawn_as_often_as_it_has_rows() -> None:
    seeds = [seed_for(0, "test", step, 0) for step in range(4000)]
    found = Counter(draw_group([3, 0, 5, 2], seed) for seed in seeds)
    assert set(found) == {0, 2, 3}
    for group, share in ((0, 0.3), (2, 0.5), (3, 0.2)):
        assert found[group] / 4000 == pytest.approx(share, abs=0.03)
    assert {draw_group([7], seed) for seed in seeds} == {0}


def test_sizes_are_written_width_first() -> None:
    assert (shown((32, 48)), read_size("48x32")) == ("48x32", (32, 48))
    for text in ("48", "x32", "48x0", "48x32x3", " 48x32"):
        with pytest.raises(UsageError, match="such as 768x512"):
            read_size(text)


def test_a_batch_for_teachers_has_one_size_and_no_row_is_favoured(made) -> None:
    _, paths = made
    dataset, groups = rows_by_size(paths, "local_edit")
    family = Teachers(paths.teachers, "sd3", [], "cpu").family
    stream = PoolStream(family, RowPool(dataset, "local_edit", {}), 0)
    targets = {size: images_of(dataset, rows, "target") for size, rows in groups.items()}
    sources = {size: images_of(dataset, rows, "source") for size, rows in groups.items()}
    found: Counter[int] = Counter()
    for step in range(300):
        clean, condition = stream.batch(step, range(8))
        pictures, size = family.decode(clean), tuple(clean.shape[2:])
        for number, image in enumerate(pictures):
            near = (targets[size] - image).abs().flatten(1).amax(1)
            assert float(near.min()) < 1e-5
            source = family.decode(condition.tensors["source"][number][None])[0]
            assert torch.allclose(source, sources[size][int(near.argmin())], atol=1e-5)
            found[groups[size][int(near.argmin())]] += 1
    assert found.total() == 2400
    assert len(found) == 12
    # A batch of 8 is of one size: the share of a size varies more than that of a row within it.
    shares = {size: sum(found[row] for row in rows) / 2400 for size, rows in groups.items()}
    assert shares[WIDE] == pytest.approx(1 / 3, abs=0.1)
    for size, rows in groups.items():
        for row in rows:
            within = found[row] / 2400 / shares[size]
            assert within == pytest.approx(1 / len(rows), abs=0.05)


def test_a_size_that_the_model_cannot_make_is_told_at_once(tmp_path: Path) -> None:
    params = prepared(tmp_path, shaped_data(("1:1", "3:1")))
    paths = Paths(tmp_path)
    write_teachers(params, paths)
    dataset, _ = rows_by_size(paths)
    family = Teachers(paths.teachers, "sd3", [], "cpu").family
    with pytest.raises(WeightsError, match="up to 32 pixels, not 12 x 40"):
        PoolStream(family, RowPool(dataset, "t2i", {}), 0)
    with pytest.raises(WeightsError, match="up to 32 pixels, not 12 x 40"):
        cache.run(params, paths, "t2i")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_what_is_cached_is_every_row_of_its_size(made, capability: str) -> None:
    _, paths = made
    cached = ConditionCache(paths.cache(capability))
    dataset, groups = rows_by_size(paths, capability)
    family = Teachers(paths.teachers, "sd3", [], "cpu").family
    assert [group.size for group in cached.groups] == list(groups)
    assert cached.counts == {WIDE: 4, SQUARE: 8}
    assert len(cached) == COUNTS["train"]
    for group, rows in zip(cached.groups, groups.values(), strict=True):
        at = torch.arange(len(group))
        target = family.encode(images_of(dataset, rows, "target"))
        assert torch.equal(group.clean("data", at), target)
        source = torch.zeros_like(target)
        if capability == "local_edit":
            source = family.encode(images_of(dataset, rows, "source"))
        fresh = family.condition([dataset[row]["prompt"] for row in rows], source).tensors
        found = group.condition(at).tensors
        assert found.keys() == fresh.keys()
        for name, value in fresh.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_teacher_samples_are_those_of_the_first_rows_whatever_their_size(made) -> None:
    params, paths = made
    cached = ConditionCache(paths.cache("local_edit"))
    _, groups = rows_by_size(paths, "local_edit")
    config = params.capabilities["local_edit"]
    teachers = Teachers(paths.teachers, "sd3", [config.teacher], "cpu")
    field = teachers.field(config.teacher, config.guidance)
    counts = []
    for group, rows in zip(cached.groups, groups.values(), strict=True):
        first = [row for row in rows if row < params.cache.num_samples]
        family = teachers.family.sized(*group.size)
        seeds = [seed_for(params.run.seed, "cache/local_edit", 0, row) for row in first]
        again = sample(
            field,
            normal(family.latent_shape, seeds),
            group.condition(torch.arange(len(first))),
            family.grid(params.cache.num_steps),
        )
        clean = group.clean("teacher", torch.arange(len(first)))
        torch.testing.assert_close(clean, again, rtol=0, atol=1e-4)
        counts.append(group.num_rows("teacher"))
    assert counts == [2, 4]


@pytest.mark.parametrize("kind", [None, "teacher"])
def test_every_cached_row_is_as_likely_as_any_other(made, kind: str | None) -> None:
    cached = ConditionCache(made[1].cache("t2i"))
    found: Counter[tuple[tuple[int, int], int]] = Counter()
    for step in range(3000):
        seeds = [seed_for(1, "row", step, index) for index in range(2)]
        group, rows = cached.draw(kind, seed_for(1, "size", step, 0), seeds)
        found.update((group.size, row) for row in rows.tolist())
    likely = [(group.size, n) for group in cached.groups for n in range(group.num_rows(kind))]
    assert set(found) == set(likely)
    for count in found.values():
        assert count / 6000 == pytest.approx(1 / len(likely), rel=0.25)


def test_an_interrupted_stage_goes_on_and_the_index_tells_the_sizes(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, whole = made
    monkeypatch.setattr(write_shards, "ROWS_PER_SHARD", 3)
    shutil.copytree(
        whole.root, tmp_path / "again", ignore=shutil.ignore_patterns("cache", ".danceflow")
    )
    paths, save, saved = Paths(tmp_path / "again"), write_shards._save, []

    def noted(path: Path, tensors) -> None:
        if path.name == "latents-24x24-00001.safetensors" and path.name not in saved:
            saved.append(path.name)
            raise KeyboardInterrupt
        saved.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(write_shards, "_save", noted)
    with pytest.raises(KeyboardInterrupt):
        cache.run(params, paths, "local_edit")
    cache.run(params, paths, "local_edit")
    twice = {name for name, count in Counter(saved).items() if count > 1}
    assert twice == {"latents-24x24-00001.safetensors"}
    for file in whole.cache("local_edit").iterdir():
        assert (paths.cache("local_edit") / file.name).read_bytes() == file.read_bytes()
    entries = json.loads((paths.cache("local_edit") / "index.json").read_text())["sizes"]
    assert [(tuple(e["image_size"]), e["num_rows"]) for e in entries] == [(WIDE, 4), (SQUARE, 8)]
    assert [len(entry["latents"]) for entry in entries] == [1, 2]


def test_a_cache_of_an_older_layout_is_told(made, tmp_path: Path) -> None:
    shutil.copytree(made[1].cache("t2i"), tmp_path / "t2i")
    index = tmp_path / "t2i" / "index.json"
    content = json.loads(index.read_text())
    del content["sizes"]
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match="has no 'sizes'; run the stage: dvc repro cache@t2i"):
        ConditionCache(tmp_path / "t2i")
