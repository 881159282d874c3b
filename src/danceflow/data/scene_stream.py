"""An endless, counter-based stream of training batches from the scenes world."""

from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType

import torch
from torch import Tensor

from danceflow.errors import ConfigError, WeightsError, unknown_name
from danceflow.fields import Condition, seed_for, uniform
from danceflow.models.family import ModelFamily
from danceflow.scenes.prompts import BUCKET_RENDERINGS, CATEGORIES, Sample, draw_sample
from danceflow.scenes.render import FLAT, render_codes
from danceflow.scenes.world import Split


def draw_pool(categories: Sequence[str], split: Split, num_samples: int, seed: int) -> list[Sample]:
    """Returns ``num_samples`` samples that cycle through ``categories``, each from its own seed."""
    return [
        draw_sample(Random(seed_for(seed, f"{split}/{category}", 0, index)), category, split)
        for index in range(num_samples)
        for category in (categories[index % len(categories)],)
    ]


class SceneStream:
    """Batches of (clean latents, condition) of one bucket's train split."""

    def __init__(
        self,
        family: ModelFamily,
        bucket: str,
        num_samples: int,
        seed: int,
        category_weights: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Draws the pool and encodes its distinct prompts once.

        Args:
            family: encodes prompts and images.
            bucket: whose categories are drawn.
            num_samples: samples of the pool.
            seed: decides the pool and the batches.
            category_weights: how often a category is drawn, 1 where it is not named.

        Raises:
            ConfigError: if a weight is for a category that the bucket does not have.
            WeightsError: if the bucket holds edits and the family takes no source image.
        """
        for name in category_weights:
            if name not in CATEGORIES[bucket]:
                raise ConfigError(unknown_name(f"category of {bucket}", name, CATEGORIES[bucket]))
        categories = [c for c in CATEGORIES[bucket] for _ in range(category_weights.get(c, 1))]
        samples = draw_pool(categories, "train", num_samples, seed)
        self.family = family
        self.seed = seed
        self.image_size = family.latent_shape[-1]
        self.rendering = BUCKET_RENDERINGS.get(bucket, FLAT)
        self.targets = torch.tensor([s.target.codes() for s in samples])
        self.sources = (
            torch.tensor([s.source.codes() for s in samples if s.source is not None])
            if samples[0].source is not None
            else None
        )
        prompts = sorted({s.prompt for s in samples})
        rows = {prompt: row for row, prompt in enumerate(prompts)}
        self.prompt_rows = torch.tensor([rows[s.prompt] for s in samples])
        parts = [
            family.condition(prompts[start : start + 512]) for start in range(0, len(prompts), 512)
        ]
        self.takes_source = "source" in parts[0].tensors
        if self.sources is not None and not self.takes_source:
            raise WeightsError(
                f"bucket {bucket!r} holds edits, but the model takes no source image"
            )
        names = [name for name in parts[0].tensors if name != "source"]
        self.texts = {n: torch.cat([part.tensors[n] for part in parts]) for n in names}

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Condition]:
        """Returns clean latents [B, C, H, W] and their condition.

        Sample i is a function of (seed, step, i), whatever the batch size.
        """
        seeds = [seed_for(self.seed, "batch", step, index) for index in range(batch_size)]
        index = (uniform(seeds) * len(self.targets)).long()
        tensors = {name: table[self.prompt_rows[index]] for name, table in self.texts.items()}
        images = render_codes(self.targets[index], self.image_size, self.rendering)
        clean = self.family.encode(images)
        if self.sources is not None:
            images = render_codes(self.sources[index], self.image_size)
            tensors["source"] = self.family.encode(images)
        elif self.takes_source:
            tensors["source"] = torch.zeros_like(clean)
        return clean, Condition(tensors)
