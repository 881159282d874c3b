"""A small paired batch of one bucket's rows: sample a field on it, score it, draw it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from danceflow.data.buckets import images_of, row_sample, rows_of
from danceflow.fields import Condition, VelocityField, normal, sample, seed_for
from danceflow.models.family import ModelFamily
from danceflow.scenes.prompts import Sample
from danceflow.scenes.score import score_edits, score_text_to_image


@dataclass(frozen=True)
class QuickBatch:
    """Rows with their conditions and noise; every field sees the same ones.

    Attributes:
        family: decodes and gives the grid.
        samples: the exact requests and scenes.
        condition: B rows.
        noise: [B, C, H, W].
        source: [B, 3, H, W] images in [0, 1], or ``None`` for text-to-image.
        target: [B, 3, H, W] exact results (for text-to-image, one of many).
    """

    family: ModelFamily
    samples: Sequence[Sample]
    condition: Condition
    noise: Tensor
    source: Tensor | None
    target: Tensor

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [sample.prompt for sample in self.samples]

    def head(self, count: int) -> "QuickBatch":
        """Returns the first ``count`` rows."""
        return replace(
            self,
            samples=self.samples[:count],
            condition=self.condition.select(slice(count)),
            noise=self.noise[:count],
            source=None if self.source is None else self.source[:count],
            target=self.target[:count],
        )

    def sample(self, field: VelocityField, num_steps: int, batch_size: int) -> Tensor:
        """Returns the field's images, [B, 3, H, W] in [0, 1], by Euler steps."""
        grid = self.family.grid(num_steps).to(self.noise.device)
        parts = [
            self.family.decode(
                sample(
                    field,
                    self.noise[start : start + batch_size],
                    self.condition.select(slice(start, start + batch_size)),
                    grid,
                )
            )
            for start in range(0, len(self.noise), batch_size)
        ]
        return torch.cat(parts).cpu()

    def score(self, images: Tensor) -> dict[str, Any]:
        """Returns the overall score (the mean over categories) and each category's."""
        if self.source is None:
            values = [float(right) for right in score_text_to_image(images, self.samples)]
        else:
            values = [score.overall for score in score_edits(images, self.samples)]
        by_category: dict[str, list[float]] = {}
        for item, value in zip(self.samples, values, strict=True):
            by_category.setdefault(item.category, []).append(value)
        categories = {name: sum(v) / len(v) for name, v in by_category.items()}
        return {
            "overall": sum(categories.values()) / len(categories),
            "categories": categories,
            "num_samples": len(values),
        }


def quick_batch(
    dataset: Any, family: ModelFamily, num_per_category: int, seed: int, device: str = "cpu"
) -> QuickBatch:
    """Returns the first rows of each category of a bucket's split.

    Args:
        dataset: what ``read_bucket`` gives.
        family: makes the conditions.
        num_per_category: rows of each category.
        seed: decides the noise.
        device: where to compute.

    Raises:
        DataError: if there are fewer rows, or an image is corrupt.
    """
    rows = rows_of(dataset, num_per_category, ("standard",))
    samples = [row_sample(row) for row in dataset.select(rows)]
    has_source = samples[0].source is not None
    source = images_of(dataset, rows, "source") if has_source else None
    latents = None if source is None else family.encode(source)
    condition = family.condition([s.prompt for s in samples], latents).to(device)
    noise = normal(family.latent_shape, [seed_for(seed, "quick", 0, row) for row in rows])
    return QuickBatch(
        family, samples, condition, noise.to(device), source, images_of(dataset, rows, "target")
    )
