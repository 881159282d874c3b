"""Training batches are a function of (seed, step), and show what the scenes hold."""

import pytest
import torch
from tiny_models import small_sd3

from danceflow.data.scene_stream import SceneStream, draw_pool
from danceflow.errors import ConfigError, WeightsError
from danceflow.scenes.prompts import CATEGORIES, vocabulary
from danceflow.scenes.render import render
from danceflow.scenes.world import split_of

POOL = 40


@pytest.fixture(scope="module")
def family():
    return small_sd3(words=vocabulary())


@pytest.fixture(scope="module", params=list(CATEGORIES))
def bucket(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def stream(family, bucket) -> SceneStream:
    return SceneStream(family, bucket, POOL, seed=0)


def equal(one, other) -> bool:
    (clean, condition), (clean_2, condition_2) = one, other
    tensors, tensors_2 = condition.tensors, condition_2.tensors
    return torch.equal(clean, clean_2) and all(
        torch.equal(value, tensors_2[name]) for name, value in tensors.items()
    )


def test_a_batch_has_the_latents_and_conditions_of_its_family(family, stream) -> None:
    clean, condition = stream.batch(0, 5)
    assert clean.shape == (5, *family.latent_shape)
    assert clean.dtype == torch.float32
    expected = family.condition(["a"] * 5).tensors
    assert condition.tensors.keys() == expected.keys()
    for name, value in condition.tensors.items():
        assert value.shape == expected[name].shape


def test_batches_are_a_function_of_seed_and_step(family, bucket, stream) -> None:
    again = SceneStream(family, bucket, POOL, seed=0)
    again.batch(9, 3)
    torch.manual_seed(1)
    for step in (4, 0):
        assert equal(stream.batch(step, 6), again.batch(step, 6))
    assert not equal(stream.batch(0, 6), stream.batch(1, 6))
    assert not equal(stream.batch(0, 6), SceneStream(family, bucket, POOL, seed=1).batch(0, 6))


def test_a_sample_does_not_depend_on_the_batch_size(stream) -> None:
    clean, condition = stream.batch(5, 16)
    for size in (1, 3, 8):
        few, few_condition = stream.batch(5, size)
        assert torch.equal(few, clean[:size])
        assert equal_rows(few_condition, condition, size)


def equal_rows(few, many, size: int) -> bool:
    return all(torch.equal(few.tensors[n], t[:size]) for n, t in many.tensors.items())


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
    clean, condition = stream.batch(3, 8)
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
    _, condition = SceneStream(family, "t2i", 6, 0).batch(0, 2)
    assert "source" not in condition.tensors
    with pytest.raises(WeightsError, match="'local_edit' holds edits, but the model takes no"):
        SceneStream(family, "local_edit", 6, 0)


def test_a_category_comes_as_often_as_its_weight_says(family) -> None:
    weights = {"colors": 3}
    stream = SceneStream(family, "t2i", 16, seed=0, category_weights=weights)
    categories = [c for c in CATEGORIES["t2i"] for _ in range(weights.get(c, 1))]
    assert categories.count("colors") == 3
    assert len(categories) == 8
    expected = [s.target.codes() for s in draw_pool(categories, "train", 16, 0)]
    assert stream.targets.tolist() == expected


def test_a_weight_of_an_unknown_category_is_told(family) -> None:
    with pytest.raises(ConfigError, match=r"unknown category of t2i 'color'.*'colors'"):
        SceneStream(family, "t2i", 8, seed=0, category_weights={"color": 2})
