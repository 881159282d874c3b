"""The rows of an update: drawn by (seed, step, sample), read from the caches one update ahead."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from danceflow.capability import Capability
from danceflow.data.ahead import Ahead, pinned, pinned_condition
from danceflow.data.cached_rows import ConditionCache
from danceflow.data.sizes import Size
from danceflow.fields import Condition, seed_for
from danceflow.method import Method
from danceflow.ops.group import current
from danceflow.train.distill.router import Router

if TYPE_CHECKING:
    from danceflow.params.sections import DistillParams


def sizes_by_rows(caches: Iterable[ConditionCache]) -> list[Size]:
    """Return the sizes that all caches hold, those of most rows first."""
    counts: Counter[Size] = Counter()
    for cache in caches:
        counts.update(cache.counts)
    return [size for size, _ in counts.most_common()]


@dataclass(frozen=True)
class Drawn:
    """Rows of one capability in an update, of one size.

    Attributes:
        capability: its name.
        share: of the update's loss.
        size: of their pictures.
        num_samples: of the capability in the update, on all processes.
        samples: which B of them these are.
        rows: [B] long, places among the cached rows of that size.
        condition: B rows, on the CPU; None: B is 0.
        clean: the clean latents [B, C, H, W] that the method's states start from, if any; of an
            on-policy method those of its noised samples alone.
        noised: which samples' states are noised clean latents though the method rolls out.
    """

    capability: str
    share: float
    size: Size
    num_samples: int
    samples: range
    rows: Tensor
    condition: Condition | None
    clean: Tensor | None
    noised: tuple[bool, ...]


def is_noised(index: int, share: float) -> bool:
    """Return whether a sample of a capability is one of the noised ones: floor(n share) of n."""
    return floor((index + 1) * share) > floor(index * share)


class UpdateRows:
    """The rows of every update."""

    def __init__(
        self,
        config: "DistillParams",
        method: Method,
        router: Router,
        caches: Mapping[str, ConditionCache],
        device: str,
    ) -> None:
        """Take what decides which rows are drawn; nothing is read yet.

        Args:
            config: the section ``distill``.
            method: what it trains by.
            router: says which capabilities an update trains.
            caches: of every capability.
            device: where the rows will be needed; for a GPU they are read into pinned memory.
        """
        self.config, self.method, self.router = config, method, router
        self.caches, self.device, self.group = caches, device, current()
        self._ahead = Ahead(self.read)

    @property
    def waited(self) -> float:
        """Seconds that updates have waited for their rows so far."""
        return self._ahead.waited

    def take(self, step: int) -> list[Drawn]:
        """Return the rows of an update, and let a thread read those of the next one.

        Raises:
            WeightsError: if a row has no teacher sample that is needed.
        """
        return self._ahead.take(step, last=step + 1 >= self.config.num_updates)

    def read(self, step: int) -> list[Drawn]:
        """Return the rows of an update, a function of its number.

        Every process has its share of all samples of the update, in one piece.
        """
        route = self.router.route(step)
        counts = [self.method.num_samples(self.config.batch_size, share) for _, share in route]
        mine, drawn, start = self.group.share(sum(counts)), [], 0
        for (capability, share), count in zip(route, counts, strict=True):
            first, last = (min(max(end - start, 0), count) for end in (mine.start, mine.stop))
            drawn.append(self.draw(capability, share, step, count, range(first, last)))
            start += count
        return drawn

    def draw(
        self, capability: Capability, share: float, step: int, num_samples: int, samples: range
    ) -> Drawn:
        """Return rows of a capability's cache; a group of samples shares one row."""
        name, group, kind = capability.name, self.method.group_size, self.method.states.clean_kind
        seeds = [
            seed_for(self.config.seed, f"row/{name}", step, index // group) for index in samples
        ]
        size_seed = seed_for(self.config.seed, f"size/{name}", step, 0)
        cached, rows = self.caches[name].draw(kind, size_seed, seeds)
        condition = clean = None
        noised_share = self.config.noised.get(name, 0.0) if self.method.rolls_out else 0.0
        noised = tuple(is_noised(index, noised_share) for index in samples)
        if samples:
            condition = pinned_condition(cached.condition(rows), self.device)
            if kind in ("data", "teacher"):
                clean = pinned(cached.clean(kind, rows), self.device)
            elif any(noised):
                clean = pinned(cached.clean("data", rows[torch.tensor(noised)]), self.device)
        return Drawn(
            capability=name,
            share=share,
            size=cached.size,
            num_samples=num_samples,
            samples=samples,
            rows=rows,
            condition=condition,
            clean=clean,
            noised=noised,
        )
