"""Batches from a bucket on disk are a function of (seed, step) and hold what its rows hold."""

from pathlib import Path

import pytest
import torch
from tiny_models import small_sd3
from user_rows import encoded, picture

from danceflow.data.bucket_stream import BucketStream
from danceflow.data.buckets import BucketWriter, images_of, read_bucket
from danceflow.errors import ConfigError, WeightsError

COUNT = 12
PROMPTS = ("a red circle", "add the square", "remove the blue square")


def bucket(folder: Path, *, edits: bool):
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
    family, dataset = small_sd3(), bucket(tmp_path, edits=edits)
    stream = BucketStream(family, dataset, 8, seed=0)
    targets = family.encode(images_of(dataset, range(8), "target"))
    seen = set()
    for step in range(6):
        clean, condition = stream.batch(step, 5)
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


def test_batches_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    family, dataset = small_sd3(), bucket(tmp_path, edits=True)
    one, again = (BucketStream(family, dataset, 100, seed=3) for _ in range(2))
    again.batch(0, 7)
    assert torch.equal(one.batch(5, 4)[0], again.batch(5, 4)[0])
    assert not torch.equal(one.batch(5, 4)[0], one.batch(6, 4)[0])
    other = BucketStream(family, dataset, 100, seed=4)
    assert not torch.equal(one.batch(5, 4)[0], other.batch(5, 4)[0])
    # A larger batch begins with the smaller one.
    assert torch.equal(one.batch(5, 9)[0][:4], one.batch(5, 4)[0])


def test_a_model_without_source_channels_cannot_learn_edits(tmp_path: Path) -> None:
    family = small_sd3(source=False)
    with pytest.raises(WeightsError, match="holds edits, but the model takes no source"):
        BucketStream(family, bucket(tmp_path / "edits", edits=True), 8, 0)
    _, condition = BucketStream(family, bucket(tmp_path / "t2i", edits=False), 8, 0).batch(0, 2)
    assert "source" not in condition.tensors


def test_rows_of_a_category_are_drawn_more_often(tmp_path: Path) -> None:
    family, dataset = small_sd3(), bucket(tmp_path, edits=False)
    rare = family.encode(images_of(dataset, [0], "target"))[0]
    shares = []
    for weights in ({}, {"rare": 11}):
        clean, _ = BucketStream(family, dataset, COUNT, 0, weights).batch(0, 400)
        shares.append(float((clean == rare).all((1, 2, 3)).float().mean()))
    assert shares[0] == pytest.approx(1 / 12, abs=0.05)
    assert shares[1] == pytest.approx(11 / 22, abs=0.08)
    with pytest.raises(ConfigError, match="did you mean 'rare'"):
        BucketStream(family, dataset, COUNT, 0, {"rarer": 2})
