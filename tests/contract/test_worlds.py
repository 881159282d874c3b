"""What every world must hold, from its written rows to its marks."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from worlds_data import write_world

from danceflow.data.buckets import images_of, read_bucket
from danceflow.data.sizes import by_size, sizes_of
from danceflow.errors import ConfigError
from danceflow.params.names import WORLD_BUCKETS
from danceflow.worlds.world import SCORE, WORLDS, Sample, World, open_world


@dataclass(frozen=True)
class Made:
    """A world that wrote its rows, and the test rows of one bucket, of one size."""

    world: World
    bucket: str
    train: object
    samples: list[Sample]
    sources: Tensor | None
    targets: Tensor


@pytest.fixture(scope="module", params=list(WORLDS))
def written(request, tmp_path_factory):
    """A world, where it wrote, and the names of its buckets."""
    root = tmp_path_factory.mktemp(request.param)
    data, paths, report = write_world(request.param, root)
    return open_world(request.param), paths, list(data.buckets), report


@pytest.fixture(params=["create", "edit"])
def made(request, written) -> Made:
    world, paths, buckets, _ = written
    bucket = next(name for name in buckets if ("edit" in name) == (request.param == "edit"))
    dataset = read_bucket(paths.bucket(bucket), "test")
    rows = next(iter(by_size(sizes_of(dataset, range(len(dataset)))).values()))
    samples = [world.sample(dataset[row]) for row in rows]
    sources = images_of(dataset, rows, "source") if samples[0].is_edit else None
    targets = images_of(dataset, rows, "target")
    train = read_bucket(paths.bucket(bucket), "train")
    return Made(world, bucket, train, samples, sources, targets)


def test_the_table_names_the_world_as_it_calls_itself(written) -> None:
    world = written[0]
    assert WORLDS[world.name].endswith(f":{type(world).__name__}")
    assert WORLD_BUCKETS[world.name] == world.buckets
    assert list(WORLD_BUCKETS) == list(WORLDS)


def test_every_split_of_every_bucket_is_written_and_told(written) -> None:
    _, paths, buckets, report = written
    assert list(report["buckets"]) == buckets
    for bucket in buckets:
        for split in ("train", "validation", "test"):
            told = report["buckets"][bucket][split]["num_samples"]
            assert told == len(read_bucket(paths.bucket(bucket), split)) > 0


def test_a_sample_tells_what_its_row_says(made: Made) -> None:
    for item in made.samples:
        assert item.prompt
        assert item.category
        assert item.is_edit == (made.sources is not None)


def test_the_target_has_the_best_score_and_another_rows_target_a_worse_one(made: Made) -> None:
    world, best = made.world, made.world.scale(is_edit=made.sources is not None)
    marks = world.marks(made.samples, made.targets, made.sources, made.targets)
    assert all(len(values) == len(made.samples) for values in marks.values())
    exact = torch.tensor(marks[SCORE])
    assert float(exact.mean()) > 0.85 * best
    assert float(exact.max()) <= best + 1e-4
    shifted = world.marks(made.samples, made.targets.roll(1, 0), made.sources, made.targets)
    assert float(torch.tensor(shifted[SCORE]).mean()) < float(exact.mean())


def test_marks_are_rows_of_their_own(made: Made) -> None:
    """A row's mark is the same alone and beside others."""
    together = made.world.marks(made.samples, made.targets, made.sources, made.targets)
    for row, item in enumerate(made.samples[:3]):
        part = slice(row, row + 1)
        source = None if made.sources is None else made.sources[part]
        alone = made.world.marks([item], made.targets[part], source, made.targets[part])
        assert alone[SCORE][0] == pytest.approx(together[SCORE][row], abs=1e-4)


def test_what_must_stay_is_a_mask_for_every_edit(made: Made) -> None:
    if made.sources is None:
        assert made.world.scale(is_edit=False) > 0
        return
    kept = made.world.preserved(made.samples, made.sources, made.targets)
    assert kept.shape == (len(made.samples), *made.targets.shape[2:])
    assert kept.dtype == torch.bool
    assert bool(kept.flatten(1).any(1).all())


def test_further_marks_have_a_value_for_every_row(made: Made) -> None:
    for values in made.world.further(made.samples, made.targets).values():
        assert len(values) == len(made.samples)


def test_a_pool_gives_pictures_of_the_rows_that_are_asked_for(made: Made) -> None:
    pool = made.world.pool(made.train, made.bucket, 6, 0, {})
    assert len(pool.prompts) == len(pool.sizes) == 6
    assert pool.has_source == (made.sources is not None)
    rows = next(iter(by_size(pool.sizes).values()))
    size = pool.sizes[rows[0]]
    images = pool.targets(rows)
    assert images.shape == (len(rows), 3, *size)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(pool.targets(rows[-1:])[0], images[-1])
    if pool.has_source:
        assert pool.sources(rows).shape == images.shape


def test_a_weight_of_a_category_that_is_not_there_is_told(made: Made) -> None:
    with pytest.raises(ConfigError, match="unknown category of"):
        made.world.pool(made.train, made.bucket, 6, 0, {"no such category": 2})


def test_what_is_read_has_classes_within_their_number(written) -> None:
    world, paths, buckets, _ = written
    trains = [read_bucket(paths.bucket(name), "train") for name in buckets]
    prompts = sorted({prompt for dataset in trains for prompt in dataset["prompt"]})
    words = world.words(prompts)
    assert {word for prompt in prompts for word in prompt.lower().split()} <= set(words)
    reading = world.reading(prompts, 0)
    for lesson in (reading.train, reading.validation):
        assert lesson.labels.shape == (len(lesson.prompts), len(reading.num_classes))
        assert bool((lesson.labels >= 0).all())
        assert bool((lesson.labels < torch.tensor(reading.num_classes)).all())


def test_an_unknown_world_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown world 'scens': did you mean 'scenes'"):
        open_world("scens")


def test_the_written_bytes_are_the_same_every_time(written, tmp_path: Path) -> None:
    world, paths, buckets, _ = written
    _, again, _ = write_world(world.name, tmp_path)
    for bucket in buckets:
        for split in ("train", "validation", "test"):
            one = next(paths.bucket(bucket).joinpath(split).glob("*.arrow"))
            other = next(again.bucket(bucket).joinpath(split).glob("*.arrow"))
            assert one.read_bytes() == other.read_bytes()
