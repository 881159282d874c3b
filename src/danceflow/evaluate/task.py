"""What every field is asked: paired rows, and the images that are its answers.

Student, start student and teachers get the same prompts, sources and noise, so that their scores
can be compared row by row.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from danceflow.data.ahead import Ahead, pinned_condition
from danceflow.data.buckets import encoded_sources, images_of, rows_of, sources_of
from danceflow.data.shards import MappedTable
from danceflow.data.sizes import Size, by_size, sizes_of
from danceflow.data.write_shards import spilled
from danceflow.errors import WeightsError
from danceflow.evaluate.records import STANDARD, UNKNOWN_WORDS
from danceflow.fields import Condition, VelocityField, normal, sample, seed_for
from danceflow.models.family import ModelFamily
from danceflow.ops.group import current
from danceflow.worlds.world import Sample, World

_LOG = logging.getLogger(__name__)
Conditions = Callable[[Size, Sequence[int]], tuple[Mapping[str, MappedTable], Tensor]]
"""Gives tables of conditions, and which of their rows belong to rows of the data of one size."""
_ROWS_TOGETHER = 64
"""Rows whose prompts and sources are encoded together."""


@dataclass(frozen=True)
class Row:
    """One question: a row of the data with one noise seed.

    Attributes:
        uid: of the row in the data.
        category: of the prompt.
        variant: ``standard``, ``reworded``, ``held_out_pair``, or ``unknown_words`` when the text
            encoder does not know every word of the prompt.
        prompt: what is asked.
        seed: of the noise.
    """

    uid: str
    category: str
    variant: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Part:
    """The tensors of those rows of a task that have one size.

    Attributes:
        places: [B] positions of its rows in the task, ascending.
        family: decodes latents and gives the sigma grid of this size.
        tables: the conditions of its rows, on disk.
        asked: [B] long, the row of the tables that each question has.
        noise: [B, C, H, W] initial states.
        source: [B, 3, H, W] images in [0, 1], or ``None`` for text-to-image.
        further: further images of the edits by place, [B, 3, H, W] each; NaN where a row has none.
        target: [B, 3, H, W] exact answers (for text-to-image, one of many).
    """

    places: tuple[int, ...]
    family: ModelFamily
    tables: Mapping[str, MappedTable]
    asked: Tensor
    noise: Tensor
    source: Tensor | None
    target: Tensor
    further: tuple[Tensor, ...] = ()

    @property
    def condition(self) -> Condition:
        """The conditions, where the noise is."""
        return self.read(len(self.asked), 0).to(self.noise.device)

    def read(self, batch_size: int, number: int) -> Condition:
        """Return the conditions of a batch of questions, in memory that the device reads."""
        at = self.asked[number * batch_size :][:batch_size]
        condition = Condition({name: table[at] for name, table in self.tables.items()})
        return pinned_condition(condition, self.noise.device.type)

    def select(self, index: Sequence[int], places: Sequence[int]) -> "Part":
        """Return the rows at ``index``, which then have other places in a task."""
        at = torch.tensor(list(index), dtype=torch.long)
        return Part(
            places=tuple(places),
            family=self.family,
            tables=self.tables,
            asked=self.asked[at],
            noise=self.noise[at.to(self.noise.device)],
            source=None if self.source is None else self.source[at],
            target=self.target[at],
            further=tuple(images[at] for images in self.further),
        )


@dataclass(frozen=True)
class Task:
    """What every field is asked of one capability.

    Attributes:
        capability: its name.
        world: says what is right.
        rows: B questions.
        samples: [B] what its world knows about them.
        parts: the same rows as tensors, size by size; at least one.
    """

    capability: str
    world: World
    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    parts: tuple[Part, ...]

    @property
    def only(self) -> Part:
        """The tensors of a task whose rows all have one size.

        Raises:
            ValueError: they have several.
        """
        if len(self.parts) > 1:
            raise ValueError(f"{self.capability}: its rows have {len(self.parts)} sizes, not one")
        return self.parts[0]

    @property
    def family(self) -> ModelFamily:
        """The family of the only size."""
        return self.only.family

    @property
    def condition(self) -> Condition:
        """The conditions, of rows of one size."""
        return self.only.condition

    @property
    def noise(self) -> Tensor:
        """The initial states [B, C, H, W], of rows of one size."""
        return self.only.noise

    @property
    def source(self) -> Tensor | None:
        """The images to edit [B, 3, H, W], of rows of one size; ``None`` for text-to-image."""
        return self.only.source

    @property
    def target(self) -> Tensor:
        """The exact answers [B, 3, H, W], of rows of one size."""
        return self.only.target

    @property
    def is_edit(self) -> bool:
        """Whether the rows have images to edit."""
        return self.parts[0].source is not None

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The images to edit, [3, H, W] each; none for text-to-image."""
        if not self.is_edit:
            return ()
        return self._in_order([() if p.source is None else tuple(p.source) for p in self.parts])

    @property
    def further(self) -> tuple[tuple[Tensor, ...], ...]:
        """The further images of the edits by place, [3, H, W] each; white where there is none."""
        places = range(self.num_further)
        found = [self._in_order([tuple(p.further[n]) for p in self.parts]) for n in places]
        return tuple(tuple(image.nan_to_num(1.0) for image in images) for images in found)

    @property
    def pictures(self) -> tuple[tuple[Tensor, ...], ...]:
        """Every row's own images, [3, H, W] each: the one to edit, and the further ones it has."""
        if not self.is_edit:
            return ((),) * self.num_rows
        further = [
            self._in_order([tuple(part.further[n]) for part in self.parts])
            for n in range(self.num_further)
        ]
        return tuple(
            (source, *(image for image in others if not bool(image.isnan().any())))
            for source, *others in zip(self.sources, *further, strict=True)
        )

    @property
    def num_further(self) -> int:
        """How many further images an edit of the capability has at most."""
        return len(self.parts[0].further)

    @property
    def targets(self) -> tuple[Tensor, ...]:
        """The exact answers, [3, H, W] each."""
        return self._in_order([tuple(part.target) for part in self.parts])

    def _in_order(self, images: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        """Return the images of all parts in the order of the rows."""
        found = {
            place: image
            for part, group in zip(self.parts, images, strict=True)
            for place, image in zip(part.places, group, strict=True)
        }
        return tuple(found[place] for place in range(self.num_rows))

    @property
    def num_rows(self) -> int:
        """The number of questions."""
        return len(self.rows)

    def select(self, index: Sequence[int]) -> "Task":
        """Return the questions at ``index``, in that order."""
        index = list(index)
        parts = []
        for part in self.parts:
            at = {place: number for number, place in enumerate(part.places)}
            new = [number for number, place in enumerate(index) if place in at]
            parts.append(part.select([at[index[number]] for number in new], new))
        return replace(
            self,
            rows=tuple(self.rows[i] for i in index),
            samples=tuple(self.samples[i] for i in index),
            parts=tuple(part for part in parts if part.places) or (parts[0],),
        )

    def of_sizes(self, images: Sequence[Tensor]) -> "Iterator[tuple[Task, Tensor]]":
        """Yield, for every size, the questions of that size and their answers [B, 3, H, W].

        Args:
            images: an answer [3, H, W] to every row.
        """
        for part in self.parts:
            task = self if len(self.parts) == 1 else self.select(part.places)
            yield task, torch.stack([images[place] for place in part.places])

    def where(self, *variants: str) -> list[int]:
        """Return the positions of the rows of ``variants``."""
        return [i for i, row in enumerate(self.rows) if row.variant in variants]

    def first_of_each(self, variant: str, num_rows: int) -> list[int]:
        """Return the positions of about ``num_rows`` rows of a variant, category by category.

        All have the first noise seed; every category has as many, at least one.
        """
        found: dict[str, list[int]] = {}
        for place in self.where(variant):
            if self.rows[place].seed == self.rows[0].seed:
                found.setdefault(self.rows[place].category, []).append(place)
        count = max(1, num_rows // max(1, len(found)))
        return [place for places in found.values() for place in places[:count]]

    def images(
        self,
        field: VelocityField,
        num_steps: int,
        batch_size: int,
        on_batch: Callable[[int], object] = int,
    ) -> tuple[Tensor, ...]:
        """Return the field's answer to every row, [3, H, W] float32 in [0, 1] on the CPU.

        Of several processes each answers its share of the batches of every size, and the main one
        gets all answers; the others get none.

        Args:
            field: the field to sample from, by Euler steps on the family's grid for the size.
            num_steps: number of steps.
            batch_size: samples per batch; it does not change what is computed.
            on_batch: called with the number of finished samples after every batch.
        """
        found: list[list[Tensor]] = []
        group = current()
        for part in self.parts:
            device = part.noise.device
            grid = part.family.grid(num_steps).to(device)
            found.append([])
            ahead = Ahead(partial(part.read, batch_size))
            batches = group.share(-(-len(part.places) // batch_size))
            for number in batches:
                start, end = number * batch_size, (number + 1) * batch_size
                condition = ahead.take(number, last=number == batches[-1])
                condition = condition.to(device, non_blocking=True)
                clean = sample(field, part.noise[start:end], condition, grid)
                found[-1] += part.family.decode(clean).cpu()
                on_batch(len(clean))
        parts = group.gathered(found)
        if not group.is_main:
            return ()
        return self._in_order([[*chain(*shares)] for shares in zip(*parts, strict=True)])


def build_task(
    capability: str,
    dataset: Any,
    world: World,
    family: ModelFamily,
    num_per_category: Mapping[str, int],
    seeds: Sequence[int] = (0,),
    *,
    purpose: str = "evaluate",
    device: str = "cpu",
    cached: Conditions | None = None,
) -> Task:
    """Return the first rows of each category of each variant, once for every noise seed.

    A row whose prompt has words that the text encoder does not know is kept, with the variant
    ``unknown_words``, and a warning names the words.

    Args:
        capability: its name.
        dataset: what ``read_bucket`` gives.
        world: of the rows.
        family: makes the conditions.
        num_per_category: rows of each category, by variant; only ``standard`` must have so many.
        seeds: noise seeds; the noise of a row is a function of (seed, purpose, place of the row).
        purpose: keeps the noise of different uses apart.
        device: where to compute.
        cached: gives the conditions of rows of a size, if encoders need not be asked for them.

    Raises:
        DataError: there are fewer rows, or a row has a corrupt image.
    """
    places = [
        place
        for variant, count in num_per_category.items()
        for place in rows_of(dataset, count, variant, at_least=count if variant == STANDARD else 0)
    ]
    samples = [world.sample(row) for row in dataset.select(places)]
    uids = dataset.select(places)["uid"]
    unknown = [family.unknown_words(item.prompt) for item in samples]
    _warn(capability, unknown)
    parts = []
    for size, index in by_size(sizes_of(dataset, places)).items():
        prompts, rows = [samples[i].prompt for i in index], [places[i] for i in index]
        noise_seeds = [seed_for(seed, purpose, 0, row) for seed in seeds for row in rows]
        given = None if cached is None else cached(size, rows)
        part = _part(family.sized(*size), dataset, rows, prompts, noise_seeds, device, given)
        repeats = range(len(seeds))
        parts.append(
            replace(part, places=tuple(r * len(places) + i for r in repeats for i in index))
        )
    return Task(
        capability=capability,
        world=world,
        rows=tuple(
            Row(
                uid,
                item.category,
                UNKNOWN_WORDS if words else item.variant,
                item.prompt,
                seed,
            )
            for seed in seeds
            for uid, item, words in zip(uids, samples, unknown, strict=True)
        ),
        samples=tuple(samples) * len(seeds),
        parts=tuple(parts),
    )


def _part(
    family: ModelFamily,
    dataset: Any,
    rows: Sequence[int],
    prompts: Sequence[str],
    noise_seeds: Sequence[int],
    device: str,
    cached: tuple[Mapping[str, MappedTable], Tensor] | None,
) -> Part:
    """Return rows of one size, as often as there are noise seeds for them."""
    target = images_of(dataset, rows, "target")
    has_source = dataset[rows[0]]["source"] is not None
    images = sources_of(dataset, rows) if has_source else []
    if len(images) > max(1, family.max_sources):
        raise WeightsError(
            f"rows to be evaluated have up to {len(images)} pictures to edit, the model takes "
            f"{family.max_sources}"
        )

    def conditions(some: Sequence[int]) -> Mapping[str, Tensor]:
        here = [image[some].to(device) for image in images]
        latents, pixels = encoded_sources(here, family.encode)
        texts = [prompts[i] for i in some]
        return family.condition(texts, latents or None, pixels or None).tensors

    at = torch.arange(len(noise_seeds)) % len(rows)
    if cached is None:
        tables: Mapping[str, MappedTable] = spilled(
            "conditions", range(len(rows)), conditions, _ROWS_TOGETHER
        )
        asked = at
    else:
        tables, asked = cached[0], cached[1][at]
    return Part(
        places=tuple(range(len(noise_seeds))),
        family=family,
        tables=tables,
        asked=asked,
        noise=normal(family.latent_shape, noise_seeds).to(device),
        source=images[0][at] if images else None,
        target=target[at],
        further=tuple(image[at] for image in images[1:]),
    )


def _warn(capability: str, unknown: Sequence[Sequence[str]]) -> None:
    words = sorted({word for found in unknown for word in found})
    if words:
        _LOG.warning(
            "%s: %d prompts have words that the text encoder does not know (%s); "
            "they are scored apart, as %s",
            capability,
            sum(bool(found) for found in unknown),
            ", ".join(words[:20]),
            UNKNOWN_WORDS,
        )
