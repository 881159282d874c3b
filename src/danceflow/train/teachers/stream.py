"""An endless, counter-based stream of training batches from a world's pool of rows."""

import torch
from torch import Tensor

from danceflow.data.sizes import by_size, draw_group
from danceflow.errors import WeightsError
from danceflow.fields import SOURCE, Condition, seed_for, uniform, with_source
from danceflow.models.family import ModelFamily
from danceflow.worlds.world import Pool

_PROMPTS_AT_ONCE = 512


class PoolStream:
    """Batches of (clean latents, condition) of a pool's rows; pictures are made or read late.

    A batch has pictures of one size. A size is drawn as often as it has rows, so that every row is
    drawn as often as in a pool of a single size.
    """

    def __init__(self, family: ModelFamily, pool: Pool, seed: int) -> None:
        """Encode the distinct prompts once.

        Args:
            family: encodes prompts and pictures.
            pool: the rows to draw from.
            seed: decides which rows a batch has.

        Raises:
            WeightsError: the pool holds edits and the family takes no source image, or pictures
                of a size that the family cannot make.
        """
        self.family, self.pool, self.seed = family, pool, seed
        groups = by_size(pool.sizes)
        for size in groups:
            family.sized(*size)
        self.groups = [torch.tensor(rows) for rows in groups.values()]
        prompts = sorted(set(pool.prompts))
        places = {prompt: place for place, prompt in enumerate(prompts)}
        self.prompt_rows = torch.tensor([places[prompt] for prompt in pool.prompts])
        parts = [
            family.condition(prompts[start : start + _PROMPTS_AT_ONCE])
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE)
        ]
        self.takes_source = SOURCE in parts[0].tensors
        if pool.has_source and not self.takes_source:
            raise WeightsError("the bucket holds edits, but the model takes no source image")
        names = [name for name in parts[0].tensors if name != SOURCE]
        self.texts = {n: torch.cat([part.tensors[n] for part in parts]) for n in names}

    def batch(self, step: int, samples: range) -> tuple[Tensor, Condition]:
        """Return clean latents [B, C, H, W] and their condition.

        Sample i is a function of (seed, step, i), the batch's size of (seed, step).

        Args:
            step: the update.
            samples: B of the update's samples, at least one.

        Raises:
            DataError: naming the row whose image is missing or corrupt.
        """
        seeds = [seed_for(self.seed, "batch", step, index) for index in samples]
        counts = [len(group) for group in self.groups]
        group = self.groups[draw_group(counts, seed_for(self.seed, "size", step, 0))]
        index = group[(uniform(seeds) * len(group)).long()]
        rows = index.tolist()
        tensors = {name: table[self.prompt_rows[index]] for name, table in self.texts.items()}
        clean = self.family.encode(self.pool.targets(rows))
        source = self.family.encode(self.pool.sources(rows)) if self.pool.has_source else None
        shape = clean.shape[1:]
        return clean, with_source(tensors, source, shape, takes_source=self.takes_source)
