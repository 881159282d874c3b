"""A small paired batch of one bucket's rows: sample a field on it, score it, draw it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from danceflow.evaluate import score as marks
from danceflow.evaluate.measurement import category_means
from danceflow.evaluate.records import STANDARD
from danceflow.evaluate.task import Conditions, Task, build_task
from danceflow.fields import VelocityField
from danceflow.models.family import ModelFamily
from danceflow.worlds.marks import SCORE
from danceflow.worlds.world import World


@dataclass(frozen=True)
class QuickBatch:
    """Some rows with their conditions and noise; every field sees the same ones."""

    task: Task

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [row.prompt for row in self.task.rows]

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The images to edit, [3, H, W] in [0, 1] each; none for text-to-image."""
        return self.task.sources

    @property
    def targets(self) -> tuple[Tensor, ...]:
        """The exact results, [3, H, W] in [0, 1] each (for text-to-image, one of many)."""
        return self.task.targets

    def head(self, count: int) -> "QuickBatch":
        """Return the first ``count`` rows, or all if there are fewer."""
        return QuickBatch(self.task.select(range(min(count, self.task.num_rows))))

    def sample(self, field: VelocityField, num_steps: int, batch_size: int) -> tuple[Tensor, ...]:
        """Return the field's images, [3, H, W] in [0, 1] each, by Euler steps."""
        return self.task.images(field, num_steps, batch_size)

    def score(self, images: Sequence[Tensor]) -> dict[str, Any]:
        """Return the overall score (the mean over categories) and each category's.

        Beside them stands what the world measures further, such as ``realism``.
        """
        found = {item.name: item for item in marks.score(self.task, images)}[SCORE]
        names = (row.category for row in self.task.rows)
        return {
            "overall": found.value,
            "categories": category_means(zip(names, found.rows or (), strict=True)),
            "num_samples": self.task.num_rows,
            **{item.name: item.value for item in marks.further(self.task, images)},
        }


def quick_batch(
    dataset: Any,
    world: World,
    family: ModelFamily,
    num_per_category: int,
    seed: int,
    device: str = "cpu",
    cached: Conditions | None = None,
) -> QuickBatch:
    """Return the first rows of each category of a bucket's split.

    Args:
        dataset: what ``read_bucket`` gives.
        world: of the rows.
        family: makes the conditions.
        num_per_category: rows of each category.
        seed: decides the noise.
        device: where to compute.
        cached: gives the rows' conditions, if the encoders are not to be asked.

    Raises:
        DataError: if there are fewer rows, or an image is corrupt.
    """
    counts = {STANDARD: num_per_category}
    task = build_task(
        "quick batch",
        dataset,
        world,
        family,
        counts,
        (seed,),
        purpose="quick",
        device=device,
        cached=cached,
    )
    return QuickBatch(task)
