"""Stage ``prepare``: reads the source, checks every row, splits it and writes the buckets."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from danceflow.data import prepare_rows
from danceflow.data.buckets import encode_png, sample_spec, write_bucket, write_framing
from danceflow.errors import DataError
from danceflow.fields import seed_for
from danceflow.ops.files import atomic_directory, write_json
from danceflow.scenes.prompts import BUCKET_RENDERINGS, CATEGORIES, Sample, Variant, draw_sample
from danceflow.scenes.render import FLAT, render_codes
from danceflow.scenes.world import SPLITS, Split

if TYPE_CHECKING:
    from danceflow.paths import Paths
    from danceflow.schema import BucketParams, Params

_LOG = logging.getLogger(__name__)
_HELD_OUT: tuple[Variant, ...] = ("reworded", "held_out_pair")
_CHUNK = 512


def run(params: "Params", paths: "Paths") -> None:
    """Writes ``data/buckets`` and ``reports/data.json``.

    Raises:
        DataError: if a bucket is unknown, a scene stands in two splits, or what a user brought
            cannot be used.
    """
    data = params.data
    if data.source != "scenes":
        prepare_rows.run(params, paths)
        return
    report: dict[str, Any] = {"source": data.source, "seed": data.seed, "buckets": {}}
    scenes: dict[Split, set[tuple[int, ...]]] = {split: set() for split in SPLITS}
    with atomic_directory(paths.buckets) as folder:
        for name, sizes in data.buckets.items():
            if name not in CATEGORIES:
                raise DataError(f"data.buckets.{name}: the scenes world has no such bucket")
            report["buckets"][name] = {}
            for split in SPLITS:
                samples = _draw(name, split, sizes, data.seed)
                scenes[split] |= {tuple((s.source or s.target).codes()) for s in samples}
                write_bucket(folder / name / split, _rows(name, split, samples, data.image_size))
                report["buckets"][name][split] = _describe(samples)
        _check_leaks(scenes)
        write_framing(folder, data)
    report["scenes"] = {split: len(found) for split, found in scenes.items()}
    write_json(paths.data_report, report)
    _LOG.info("wrote %s", paths.buckets)


def _draw(bucket: str, split: Split, sizes: "BucketParams", seed: int) -> list[Sample]:
    """Returns a split's samples, categories in turn; tests end with a third of each variant."""
    number = {"train": sizes.num_train, "validation": sizes.num_validation, "test": sizes.num_test}
    variants: list[Variant] = ["standard"] * number[split]
    if split == "test":
        variants += [v for v in _HELD_OUT for _ in range(number[split] // 3)]
    categories, rendering = CATEGORIES[bucket], BUCKET_RENDERINGS.get(bucket, FLAT)
    return [
        replace(
            draw_sample(
                Random(seed_for(seed, f"{bucket}/{split}", 0, i)),
                categories[i % len(categories)],
                split,
                variant,
            ),
            rendering=rendering,
        )
        for i, variant in enumerate(tqdm(variants, desc=f"{bucket} {split}", mininterval=2))
    ]


def _rows(
    bucket: str, split: str, samples: list[Sample], image_size: int
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(samples), _CHUNK):
        chunk = samples[start : start + _CHUNK]
        targets = render_codes(
            torch.tensor([s.target.codes() for s in chunk]), image_size, chunk[0].rendering
        )
        sources = render_codes(
            torch.tensor([(s.source or s.target).codes() for s in chunk]), image_size
        )
        for i, sample in enumerate(chunk):
            yield {
                "uid": f"{bucket}-{split}-{start + i:05d}",
                "category": sample.category,
                "variant": sample.variant,
                "prompt": sample.prompt,
                "source": None if sample.source is None else encode_png(sources[i]),
                "target": encode_png(targets[i]),
                "spec": sample_spec(sample),
            }


def _describe(samples: list[Sample]) -> dict[str, Any]:
    counts = Counter((s.variant, s.category) for s in samples)
    return {
        "num_samples": len(samples),
        "num_prompts": len({s.prompt for s in samples}),
        "categories": {f"{v}/{c}": n for (v, c), n in sorted(counts.items())},
    }


def _check_leaks(scenes: dict[Split, set[tuple[int, ...]]]) -> None:
    for i, first in enumerate(SPLITS):
        for second in SPLITS[i + 1 :]:
            if shared := scenes[first] & scenes[second]:
                raise DataError(
                    f"{len(shared)} scenes stand in both {first} and {second}; "
                    f"the first is {sorted(shared)[0]}"
                )
