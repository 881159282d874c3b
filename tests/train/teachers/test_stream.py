"""Training batches are functions of (seed, step, sample), and show what the pool holds."""

from pathlib import Path

import pytest
import torch
from tiny_models import small_sd3
from user_rows import encoded, picture

from danceflow.data.buckets import BucketWriter, images_of, read_bucket
from danceflow.errors import ConfigError, WeightsError
from danceflow.scenes.prompts import CATEGORIES, vocabulary
from danceflow.scenes.render import render
from danceflow.scenes.world import split_of
from danceflow.train.teachers.stream import PoolStream
from danceflow.worlds.rows import RowPool
from danceflow.worlds.scenes import ScenePool, draw_pool

POOL = 40
COUNT = 12
PROMPTS = ("a red circle", "add the square", "remove the blue square")


def scene_pool(bucket: str, count: int = POOL) -> ScenePool:
    return ScenePool(bucket, draw_pool(CATEGORIES[bucket], "train", count, 0), (16, 16))


@pytest.fixture(scope="module")
def family():
    return small_sd3(words=vocabulary())


@pytest.fixture(scope="module", params=list(CATEGORIES))
def bucket(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stream(family, bucket) -> PoolStream:
    return PoolStream(family, scene_pool(bucket), seed=0)


def equal(one, other) -> bool:
    (clean, condition), (clean_2, condition_2) = one, other
    tensors, tensors_2 = condition.tensors, condition_2.tensors
    return torch.equal(clean, clean_2) and all(
        torch.equal(value, tensors_2[name]) for name, value in tensors.items()
    )


def test_a_batch_has_the_latents_and_conditions_of_its_family(family, stream) -> None:
    clean, condition = stream.batch(0, range(5))
    assert clean.shape == (5, *family.latent_shape)
    assert clean.dtype == torch.float32
    expected = family.condition(["a"] * 5).tensors
    assert condition.tensors.keys() == expected.keys()
    for name, value in condition.tensors.items():
        assert value.shape == expected[name].shape


def test_batches_are_a_function_of_seed_and_step(family, bucket, stream) -> None:
    again = PoolStream(family, scene_pool(bucket), seed=0)
    again.batch(9, range(3))
    torch.manual_seed(1)
    for step in (4, 0):
        assert equal(stream.batch(step, range(6)), again.batch(step, range(6)))
    assert not equal(stream.batch(0, range(6)), stream.batch(1, range(6)))
    assert not equal(
        stream.batch(0, range(6)), PoolStream(family, scene_pool(bucket), seed=1).batch(0, range(6))
    )
    # A larger batch begins with the smaller one.
    assert torch.equal(stream.batch(5, range(9))[0][:4], stream.batch(5, range(4))[0])


def test_every_row_is_one_sample_of_the_pool(family, bucket, stream) -> None:
    samples = draw_pool(CATEGORIES[bucket], "train", POOL, 0)
    size = family.latent_shape[-1]
    rendering = "shaded" if bucket == "realism" else "flat"
    targets = family.encode(render([s.target for s in samples], size, rendering))
    embeds = family.condition([s.prompt for s in samples]).tensors["pooled"]
    has_source = samples[0].source is not None
    sources = (
        family.encode(render([s.source for s in samples if s.source is not None], size))
        if has_source
        else torch.zeros_like(targets)
    )
    clean, condition = stream.batch(3, range(8))
    for row in range(8):
        assert any(
            torch.equal(clean[row], targets[i])
            and torch.equal(condition.tensors["source"][row], sources[i])
            and torch.allclose(condition.tensors["pooled"][row], embeds[i], atol=1e-5)
            for i in range(POOL)
        )


def test_a_pool_cycles_through_the_categories_of_the_split(bucket) -> None:
    categories = CATEGORIES[bucket]
    samples = draw_pool(categories, "validation", 12, 0)
    assert [s.category for s in samples] == [categories[i % len(categories)] for i in range(12)]
    assert {split_of(s.source or s.target) for s in samples} == {"validation"}
    assert {s.variant for s in samples} == {"standard"}


def test_a_larger_pool_begins_with_the_smaller_one(bucket) -> None:
    small = draw_pool(CATEGORIES[bucket], "train", 7, 0)
    assert draw_pool(CATEGORIES[bucket], "train", 11, 0)[:7] == small


def test_a_model_without_source_creates_and_cannot_edit() -> None:
    family = small_sd3(source=False, words=vocabulary())
    _, condition = PoolStream(family, scene_pool("t2i", 6), 0).batch(0, range(2))
    assert "source" not in condition.tensors
    with pytest.raises(WeightsError, match="holds edits, but the model takes no source"):
        PoolStream(family, scene_pool("local_edit", 6), 0)


def written(folder: Path, *, edits: bool):
    with BucketWriter(folder / "train") as writer:
        for number in range(COUNT):
            cells = [
                {"bytes": encoded(picture(seed, (16, 16))), "path": None}
                for seed in (number, 100 + number)
            ]
            writer.add(
                {
                    "uid": str(number),
                    "category": "rare" if number == 0 else "usual",
                    "variant": "standard",
                    "prompt": PROMPTS[number % 3],
                    "source": cells[0] if edits else None,
                    "target": cells[1],
                    "spec": "",
                }
            )
    return read_bucket(folder, "train")


@pytest.mark.parametrize("edits", [False, True])
def test_every_row_of_a_batch_is_a_row_of_the_bucket(tmp_path: Path, edits: bool) -> None:
    family, dataset = small_sd3(), written(tmp_path, edits=edits)
    stream = PoolStream(family, RowPool(dataset.select(range(8)), "rows", {}), seed=0)
    targets = family.encode(images_of(dataset, range(8), "target"))
    seen = set()
    for step in range(6):
        clean, condition = stream.batch(step, range(5))
        assert clean.shape == (5, *family.latent_shape)
        for row in range(5):
            number = next(i for i in range(8) if torch.equal(clean[row], targets[i]))
            seen.add(number)
            expected = family.condition([PROMPTS[number % 3]]).tensors
            for name in ("prompt_embeds", "pooled"):
                found = condition.tensors[name][row]
                assert torch.allclose(found, expected[name][0], atol=1e-5)
            source = condition.tensors["source"][row]
            if edits:
                assert torch.equal(source, family.encode(images_of(dataset, [number], "source"))[0])
            else:
                assert not source.any()
    assert len(seen) > 5  # of the eight rows that may be drawn


def test_rows_of_a_category_are_drawn_more_often(tmp_path: Path) -> None:
    family, dataset = small_sd3(), written(tmp_path, edits=False)
    rare = family.encode(images_of(dataset, [0], "target"))[0]
    shares = []
    for weights in ({}, {"rare": 11}):
        clean, _ = PoolStream(family, RowPool(dataset, "rows", weights), 0).batch(0, range(400))
        shares.append(float((clean == rare).all((1, 2, 3)).float().mean()))
    assert shares[0] == pytest.approx(1 / 12, abs=0.05)
    assert shares[1] == pytest.approx(11 / 22, abs=0.08)
    with pytest.raises(ConfigError, match="did you mean 'rare'"):
        RowPool(dataset, "rows", {"rarer": 2})
