"""An endless, counter-based stream of training batches from a bucket on disk."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from danceflow.data.buckets import images_of
from danceflow.data.sizes import by_size, draw_group, sizes_of
from danceflow.errors import ConfigError, WeightsError, unknown_name
from danceflow.fields import Condition, seed_for, uniform
from danceflow.models.family import ModelFamily

_PROMPTS_AT_ONCE = 512


class BucketStream:
    """Batches of (clean latents, condition) of a bucket's rows; pictures stay on disk.

    A batch has pictures of one size. A size is drawn as often as it has rows, so that every row is
    drawn as often as in a bucket of a single size.
    """

    def __init__(
        self,
        family: ModelFamily,
        dataset: Any,
        num_samples: int,
        seed: int,
        category_weights: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Encodes the distinct prompts once.

        Args:
            family: encodes prompts and pictures.
            dataset: what ``read_bucket`` gives.
            num_samples: rows to draw from, the first ones; all if there are fewer.
            seed: decides which rows a batch has.
            category_weights: how often rows of a category are drawn, 1 where it is not named.

        Raises:
            ConfigError: if a weight is for a category that the bucket does not have.
            DataError: naming the row whose image is missing or corrupt.
            WeightsError: if the bucket holds edits and the family takes no source image, or
                pictures of a size that the family cannot make.
        """
        self.family, self.seed = family, seed
        self.dataset = dataset.select(range(min(num_samples, len(dataset))))
        categories = self.dataset["category"]
        for name in category_weights:
            if name not in categories:
                raise ConfigError(unknown_name("category of the bucket", name, set(categories)))
        counts = torch.tensor([category_weights.get(name, 1) for name in categories])
        rows = torch.arange(len(categories)).repeat_interleave(counts)
        sizes = sizes_of(self.dataset, range(len(categories)))
        groups = by_size(sizes[row] for row in rows.tolist())
        for size in groups:
            family.sized(*size)
        self.groups = [rows[places] for places in groups.values()]
        self.has_source = self.dataset[0]["source"] is not None
        texts: Sequence[str] = self.dataset["prompt"]
        prompts = sorted(set(texts))
        places = {prompt: place for place, prompt in enumerate(prompts)}
        self.prompt_rows = torch.tensor([places[prompt] for prompt in texts])
        parts = [
            family.condition(prompts[start : start + _PROMPTS_AT_ONCE])
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE)
        ]
        self.takes_source = "source" in parts[0].tensors
        if self.has_source and not self.takes_source:
            raise WeightsError("the bucket holds edits, but the model takes no source image")
        names = [name for name in parts[0].tensors if name != "source"]
        self.texts = {n: torch.cat([part.tensors[n] for part in parts]) for n in names}

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Condition]:
        """Returns clean latents [B, C, H, W] and their condition, a function of (seed, step).

        Raises:
            DataError: naming the row whose image is missing or corrupt.
        """
        seeds = [seed_for(self.seed, "batch", step, index) for index in range(batch_size)]
        counts = [len(group) for group in self.groups]
        group = self.groups[draw_group(counts, seed_for(self.seed, "size", step, 0))]
        index = group[(uniform(seeds) * len(group)).long()]
        rows = index.tolist()
        tensors = {name: table[self.prompt_rows[index]] for name, table in self.texts.items()}
        clean = self.family.encode(images_of(self.dataset, rows, "target"))
        if self.has_source:
            tensors["source"] = self.family.encode(images_of(self.dataset, rows, "source"))
        elif self.takes_source:
            tensors["source"] = torch.zeros_like(clean)
        return clean, Condition(tensors)
