"""Rows that a team brings: pictures and prompts, and a target picture for each.

An edit is scored on VIEScore's scale against its one target. Of a picture that was made from a
prompt the target is one right answer of many, so its likeness is a weak score: a judge
(``evaluate.judge``) or facts about the answer say more. A team with an exact score of its own
subclasses ``Rows`` and replaces ``marks``.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from danceflow.data.buckets import images_of, source_columns
from danceflow.data.intake.write import write as write_rows
from danceflow.data.sizes import sizes_of
from danceflow.errors import ConfigError, DataError, unknown_name
from danceflow.worlds.marks import SCORE
from danceflow.worlds.world import Lesson, Marks, Reading, Sample, World

if TYPE_CHECKING:
    from danceflow.params.sections import DataParams
    from danceflow.paths import Paths

LIKENESS_SCALE, EDIT_SCALE = 1.0, 10.0
_CHANGE = 1 / 16
_MIN_KEPT = 0.05
"""Share of a picture below which an edit counts as one of the whole picture."""


class Rows(World):
    """Rows of a table, a folder or a data set; a sample's facts are its ``spec`` column."""

    name = "rows"
    buckets = None

    def write(self, data: "DataParams", paths: "Paths") -> dict[str, Any]:
        """Write ``data/buckets`` from what was brought and return what the report tells of it.

        Raises:
            DataError: it cannot be read, too many rows are bad, or none is left for a split.
        """
        return write_rows(data, paths, self.trouble)

    def trouble(self, facts: Mapping[str, Any], is_edit: bool) -> str | None:
        """Return why the facts about a row cannot be used, None where they can.

        Args:
            facts: what its ``spec`` column says, empty where it says nothing.
            is_edit: whether it has a picture to edit.
        """
        del facts, is_edit
        return None

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """Return what a row asks for."""
        facts = json.loads(row["spec"]) if row["spec"] else {}
        return Sample(
            row["category"], row["variant"], row["prompt"], row["source"] is not None, facts
        )

    def pool(
        self, dataset: Any, bucket: str, count: int, seed: int, weights: Mapping[str, int]
    ) -> "RowPool":
        """Return the first rows of the train split, those of a weighted category several times.

        Raises:
            ConfigError: a weight is for a category that the bucket does not have.
        """
        del seed
        return RowPool(dataset.select(range(min(count, len(dataset)))), bucket, weights)

    def words(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Return every word of the prompts, in lower case and sorted."""
        return tuple(sorted({word for prompt in prompts for word in prompt.lower().split()}))

    def reading(self, prompts: Sequence[str], seed: int) -> Reading:
        """Return the prompts, with which words each of them holds."""
        del seed
        words = self.words(prompts)
        places = {word: place for place, word in enumerate(words)}
        holds = torch.zeros(len(prompts), len(words), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            holds[row, [places[word] for word in prompt.lower().split()]] = 1
        lesson = Lesson(prompts, holds)
        return Reading((2,) * len(words), lesson, lesson)

    def scale(self, *, is_edit: bool) -> float:
        """Return 10 for edits and 1 for text-to-image."""
        return EDIT_SCALE if is_edit else LIKENESS_SCALE

    def marks(
        self, samples: Sequence[Sample], images: Tensor, sources: Tensor | None, targets: Tensor
    ) -> Marks:
        """Return the structural similarity to the target, from 0 to 1; of edits three marks.

        All are from 0 to 10: ``sc`` is the share of the way from source to target that the image
        went, in mean squared error over the pixels that change; ``pq`` the structural similarity
        over the pixels that stay, of an edit that leaves hardly any over the whole picture;
        ``score`` = sqrt(sc * pq).
        """
        maps = similarity_maps(images, targets)
        if sources is None:
            return {SCORE: [float(part.mean().clamp(0, 1)) for part in maps]}
        done, kept = [], []
        for source, target, image, part in zip(sources, targets, images, maps, strict=True):
            done.append(_done(source, target, image, changed_pixels(source, target)))
            kept.append(float(part[kept_pixels(source, target)].mean().clamp(0, 1)))
        sc, pq = torch.tensor(done) * EDIT_SCALE, torch.tensor(kept) * EDIT_SCALE
        return {SCORE: (sc * pq).sqrt().tolist(), "sc": sc.tolist(), "pq": pq.tolist()}

    def preserved(self, samples: Sequence[Sample], sources: Tensor, targets: Tensor) -> Tensor:
        """Return where source and target agree, [B, H, W] bool."""
        return torch.stack(
            [kept_pixels(source, target) for source, target in zip(sources, targets, strict=True)]
        )


class RowPool:
    """Rows of a bucket on disk; pictures are read when they are asked for."""

    def __init__(self, dataset: Any, bucket: str, weights: Mapping[str, int]) -> None:
        """Repeat the rows of weighted categories.

        Raises:
            ConfigError: a weight is for a category that the bucket does not have.
        """
        categories = dataset["category"]
        for name in weights:
            if name not in categories:
                raise ConfigError(unknown_name(f"category of {bucket}", name, set(categories)))
        self._dataset = dataset
        self._rows = [
            row for row, name in enumerate(categories) for _ in range(weights.get(name, 1))
        ]
        prompts, sizes = dataset["prompt"], sizes_of(dataset, range(len(categories)))
        self.prompts = [prompts[row] for row in self._rows]
        self.sizes = [sizes[row] for row in self._rows]
        self.has_source = dataset[0]["source"] is not None
        if len(source_columns(dataset)) > 1:
            raise DataError(
                f"{bucket}: its rows have several pictures to edit; teachers are trained here on "
                "one, bring them along (danceflow bring-teachers)"
            )

    def targets(self, rows: Sequence[int]) -> Tensor:
        """Return the target pictures, [B, 3, H, W] float32 in [0, 1].

        Raises:
            DataError: naming the row whose image is missing or corrupt.
        """
        return images_of(self._dataset, [self._rows[row] for row in rows], "target")

    def sources(self, rows: Sequence[int]) -> Tensor:
        """Return the pictures to edit, [B, 3, H, W] float32 in [0, 1].

        Raises:
            DataError: naming the row whose image is missing or corrupt.
        """
        return images_of(self._dataset, [self._rows[row] for row in rows], "source")


def similarity_maps(images_B3HW: Tensor, target_B3HW: Tensor) -> Tensor:
    """Return the structural similarity around every pixel, mean over colours, [B, H, W] float64.

    In float32 the variance of plain areas would drown in rounding.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _, similarity = structural_similarity_index_measure(
        images_B3HW.double(), target_B3HW.double(), data_range=1.0, return_full_image=True
    )
    maps: Tensor = similarity.mean(1)
    return maps


def changed_pixels(source_3HW: Tensor, target_3HW: Tensor) -> Tensor:
    """Return where an edit changes the picture by more than noise, [H, W] bool."""
    return (source_3HW - target_3HW).abs().amax(0) > _CHANGE


def kept_pixels(source_3HW: Tensor, target_3HW: Tensor) -> Tensor:
    """Return where source and target agree, [H, W] bool; all pixels if that is hardly anywhere."""
    kept = ~changed_pixels(source_3HW, target_3HW)
    return kept if float(kept.float().mean()) >= _MIN_KEPT else torch.ones_like(kept)


def _done(source: Tensor, target: Tensor, image: Tensor, changed: Tensor) -> float:
    """Return how much of the change was made, from 0 to 1."""
    if not bool(changed.any()):
        return 1.0
    whole = (source - target)[:, changed].square().mean()
    left = (image - target)[:, changed].square().mean()
    return float((1 - left / whole).clamp(0, 1))
