"""The scenes: drawn from seeds, so that prompts, answers and scores are exact.

GenEval's yes or no for text-to-image, VIEScore's SC, PQ and O for edits.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from danceflow.data.buckets import encode_png, write_bucket, write_framing
from danceflow.data.sizes import Size, sizes_of
from danceflow.errors import ConfigError, DataError, unknown_name
from danceflow.fields import seed_for
from danceflow.ops.files import atomic_directory
from danceflow.scenes.prompts import (
    BUCKET_RENDERINGS,
    BUCKETS,
    CATEGORIES,
    CORNERS,
    RELATIONS,
    Request,
    Variant,
    draw_sample,
    vocabulary,
)
from danceflow.scenes.prompts import Sample as SceneSample
from danceflow.scenes.realism import score_realism
from danceflow.scenes.render import FLAT, SHADED, render_codes
from danceflow.scenes.score import edited_cell, score_edits, score_text_to_image
from danceflow.scenes.world import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    GRID_SIZE,
    HELD_OUT_PAIRS,
    NUM_CELLS,
    SHAPES,
    SPLITS,
    STYLES,
    Scene,
    Split,
)
from danceflow.worlds.marks import REALISM, SCORE
from danceflow.worlds.world import Lesson, Marks, Reading, Sample, World

if TYPE_CHECKING:
    from danceflow.params.sections import BucketParams, DataParams
    from danceflow.paths import Paths

GENEVAL_SCALE, VIESCORE_SCALE = 1.0, 10.0
_HELD_OUT: tuple[Variant, ...] = ("reworded", "held_out_pair")
_CHUNK = 512
_NUM_READ, _NUM_CHECKED = 40_000, 2_000

_LABELS: Mapping[str, tuple[str | int | None, ...]] = {
    "operation": ("create", "add", "remove", "replace", "recolor", "background", "style"),
    "first_color": (None, *COLOR_NAMES),
    "first_shape": (None, *SHAPES),
    "second_color": (None, *COLOR_NAMES),
    "second_shape": (None, *SHAPES),
    "count": (1, 2, 3, 4),
    "relation": (None, *RELATIONS),
    "corner": (None, *CORNERS),
    "background": (None, *BACKGROUND_NAMES),
    "style": (None, *STYLES),
}


class Scenes(World):
    """Scenes of one to four objects on a grid; a sample's facts are its exact scenes."""

    name = "scenes"
    buckets = tuple(BUCKETS)

    def write(self, data: "DataParams", paths: "Paths") -> dict[str, Any]:
        """Write ``data/buckets`` and return what the data report tells of it.

        Raises:
            DataError: a bucket is unknown, or a scene stands in two splits.
        """
        report: dict[str, Any] = {}
        scenes: dict[Split, set[tuple[int, ...]]] = {split: set() for split in SPLITS}
        with atomic_directory(paths.buckets) as folder:
            for name, sizes in data.buckets.items():
                if name not in BUCKETS:
                    raise DataError(f"data.buckets.{name}: the scenes world has no such bucket")
                report[name] = {}
                for split in SPLITS:
                    samples = _draw(name, split, sizes, data.seed)
                    scenes[split] |= {tuple((s.source or s.target).codes()) for s in samples}
                    write_bucket(
                        folder / name / split, _rows(name, split, samples, data.image_size)
                    )
                    report[name][split] = _describe(samples)
            _check_leaks(scenes)
            write_framing(folder, data)
        return {
            "buckets": report,
            "scenes": {split: len(found) for split, found in scenes.items()},
        }

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Return what a row asks for, with its exact scenes.

        Raises:
            DataError: the row has none.
        """
        facts = scene_sample(row)
        return Sample(facts.category, facts.variant, facts.prompt, facts.source is not None, facts)

    def pool(
        self, dataset: Any, bucket: str, count: int, seed: int, weights: Mapping[str, int]
    ) -> "ScenePool":
        """Return fresh scenes of the train split; the bucket's own rows are not used.

        Raises:
            ConfigError: a weight is for a category that the bucket does not have.
        """
        for name in weights:
            if name not in BUCKETS[bucket]:
                raise ConfigError(unknown_name(f"category of {bucket}", name, BUCKETS[bucket]))
        categories = [c for c in BUCKETS[bucket] for _ in range(weights.get(c, 1))]
        (size,) = sizes_of(dataset, [0])
        return ScenePool(bucket, draw_pool(categories, "train", count, seed), size)

    def words(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Return every word that a prompt of the scenes can have."""
        del prompts
        return tuple(vocabulary())

    def reading(self, prompts: Sequence[str], seed: int) -> Reading:
        """Return drawn prompts, with every field of the request behind each."""
        del prompts
        categories = list(dict.fromkeys(c for group in CATEGORIES.values() for c in group))
        return Reading(
            num_classes=tuple(len(names) for names in _LABELS.values()),
            train=_lesson(categories, _NUM_READ, seed, "train"),
            validation=_lesson(categories, _NUM_CHECKED, seed + 1, "validation"),
        )

    def scale(self, *, is_edit: bool) -> float:
        """Return 10 for edits, as VIEScore, and 1 for text-to-image, as GenEval."""
        return VIESCORE_SCALE if is_edit else GENEVAL_SCALE

    def marks(
        self, samples: Sequence[Sample], images: Tensor, sources: Tensor | None, targets: Tensor
    ) -> Marks:
        """Return GenEval's 1 or 0; of edits ``sc``, ``pq`` and their root of the product."""
        asked = [item.facts for item in samples]
        if sources is None:
            return {SCORE: [float(right) for right in score_text_to_image(images, asked)]}
        scores = score_edits(images, asked)
        return {
            SCORE: [item.overall for item in scores],
            "sc": [item.sc for item in scores],
            "pq": [item.pq for item in scores],
        }

    def preserved(self, samples: Sequence[Sample], sources: Tensor, targets: Tensor) -> Tensor:
        """Return which pixels edits must preserve, [B, H, W] bool.

        All cells but the edited one for a local edit, the objects for a new background, and
        everything, against the exact target, for a new style.
        """
        side = targets.shape[-1]
        return torch.stack([preserved_pixels(item.facts, side) for item in samples])

    def further(self, samples: Sequence[Sample], images: Tensor) -> Marks:
        """Return ``realism``, the share of the exact shading, where all rows ask for shading."""
        if all(item.facts.rendering == SHADED for item in samples):
            return {REALISM: score_realism(images)}
        return {}


class ScenePool:
    """Drawn scenes, rendered when they are asked for."""

    def __init__(self, bucket: str, samples: Sequence[SceneSample], size: Size) -> None:
        """Keep the scenes as codes."""
        self.prompts = [item.prompt for item in samples]
        self.sizes = [size] * len(samples)
        self.has_source = samples[0].source is not None
        self._rendering = BUCKET_RENDERINGS.get(bucket, FLAT)
        self._targets = torch.tensor([item.target.codes() for item in samples])
        self._sources = torch.tensor([(item.source or item.target).codes() for item in samples])

    def targets(self, rows: Sequence[int]) -> Tensor:
        """Return the exact answers, [B, 3, H, W] float32 in [0, 1]."""
        return render_codes(self._targets[list(rows)], self.sizes[0][1], self._rendering)

    def sources(self, rows: Sequence[int]) -> Tensor:
        """Return the scenes to edit, [B, 3, H, W] float32 in [0, 1]."""
        return render_codes(self._sources[list(rows)], self.sizes[0][1])


def draw_pool(
    categories: Sequence[str], split: Split, num_samples: int, seed: int
) -> list[SceneSample]:
    """Return ``num_samples`` samples that cycle through ``categories``, each from its own seed."""
    return [
        draw_sample(Random(seed_for(seed, f"{split}/{category}", 0, index)), category, split)
        for index in range(num_samples)
        for category in (categories[index % len(categories)],)
    ]


def scene_spec(sample: SceneSample) -> str:
    """Return the exact request and scenes of a sample as JSON."""
    source = None if sample.source is None else sample.source.codes()
    content = {
        "request": asdict(sample.request),
        "source": source,
        "target": sample.target.codes(),
        "rendering": sample.rendering,
    }
    return json.dumps(content, separators=(",", ":"))


def scene_sample(row: Mapping[str, Any]) -> SceneSample:
    """Return the exact scenes of a row.

    Raises:
        DataError: it has none.
    """
    if not row["spec"]:
        raise DataError(f"{row['uid']}: this row has no exact scenes to score against")
    spec = json.loads(row["spec"])
    request = spec["request"] | {
        "first": tuple(spec["request"]["first"]),
        "second": tuple(spec["request"]["second"]),
    }
    return SceneSample(
        category=row["category"],
        variant=row["variant"],
        prompt=row["prompt"],
        request=Request(**request),
        source=None if spec["source"] is None else Scene.from_codes(spec["source"]),
        target=Scene.from_codes(spec["target"]),
        rendering=spec["rendering"],
    )


def asks_for_held_out_pair(sample: SceneSample) -> bool:
    """Return whether prompt or source hold a colour and shape pair that training never shows."""
    asked = {sample.request.first, sample.request.second}
    if sample.request.operation == "recolor":  # the result's colour goes with the subject's shape
        asked.add((sample.request.second[0], sample.request.first[1]))
    source = sample.source is not None and sample.source.has_held_out_pair
    return source or not asked.isdisjoint(HELD_OUT_PAIRS)


def preserved_pixels(sample: SceneSample, image_size: int) -> Tensor:
    """Return which pixels an edit must preserve, [H, W] bool.

    Raises:
        ValueError: the sample is no edit.
    """
    source, target = sample.source, sample.target
    if source is None:
        raise ValueError(f"{sample.prompt!r} is no edit")
    cells = torch.ones(NUM_CELLS, dtype=torch.bool)
    if source.style == target.style and source.background != target.background:
        cells[:] = False
        cells[[item.cell for item in source.objects]] = True
    elif source.style == target.style:
        cells[edited_cell(source, target)] = False
    side = image_size // GRID_SIZE
    return cells.view(GRID_SIZE, GRID_SIZE).repeat_interleave(side, 0).repeat_interleave(side, 1)


def request_labels(request: Request) -> list[int]:
    """Return the class of every field of a request, in the order of the questions."""
    values = {
        "operation": request.operation,
        "first_color": request.first[0],
        "first_shape": request.first[1],
        "second_color": request.second[0],
        "second_shape": request.second[1],
        "count": request.count,
        "relation": request.relation,
        "corner": request.corner,
        "background": request.background,
        "style": request.style,
    }
    return [_LABELS[name].index(value) for name, value in values.items()]


def _lesson(categories: Sequence[str], count: int, seed: int, split: Split) -> Lesson:
    samples = [
        draw_sample(Random(seed_for(seed, "prompts", 0, i)), categories[i % len(categories)], split)
        for i in range(count)
    ]
    labels = torch.tensor([request_labels(item.request) for item in samples])
    return Lesson([item.prompt for item in samples], labels)


def _draw(bucket: str, split: Split, sizes: "BucketParams", seed: int) -> list[SceneSample]:
    """Return a split's samples, categories in turn; tests end with a third of each variant.

    A row of the variant ``held_out_pair`` whose prompt and source hold no such pair ("a photo of
    a ring") asks for nothing new and is left out.
    """
    number = {"train": sizes.num_train, "validation": sizes.num_validation, "test": sizes.num_test}
    variants: list[Variant] = ["standard"] * number[split]
    if split == "test":
        variants += [v for v in _HELD_OUT for _ in range(number[split] // 3)]
    categories, rendering = BUCKETS[bucket], BUCKET_RENDERINGS.get(bucket, FLAT)
    drawn = (
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
    )
    return [s for s in drawn if s.variant != "held_out_pair" or asks_for_held_out_pair(s)]


def _rows(
    bucket: str, split: str, samples: Sequence[SceneSample], image_size: int
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
                "spec": scene_spec(sample),
            }


def _describe(samples: Sequence[SceneSample]) -> dict[str, Any]:
    counts = Counter((s.variant, s.category) for s in samples)
    return {
        "num_samples": len(samples),
        "num_prompts": len({s.prompt for s in samples}),
        "categories": {f"{v}/{c}": n for (v, c), n in sorted(counts.items())},
    }


def _check_leaks(scenes: Mapping[Split, set[tuple[int, ...]]]) -> None:
    for i, first in enumerate(SPLITS):
        for second in SPLITS[i + 1 :]:
            if shared := scenes[first] & scenes[second]:
                raise DataError(
                    f"{len(shared)} scenes stand in both {first} and {second}; "
                    f"the first is {sorted(shared)[0]}"
                )
