"""What is seen of a student while it trains: scores on validation rows and image grids."""

from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.data.buckets import VALIDATION, read_bucket
from danceflow.evaluate.grids import image_grid
from danceflow.evaluate.quick import quick_batch
from danceflow.fields import VelocityField
from danceflow.models.steps import on_grid
from danceflow.models.teachers import Teachers
from danceflow.ops.files import atomic_file
from danceflow.ops.group import current
from danceflow.ops.tracking import Tracker
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from danceflow.data.cached_rows import ConditionCache
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_GRID_ROWS = 6


class Observer:
    """Scores and draws the student of a run; the test split is never looked at."""

    def __init__(
        self,
        params: "Params",
        paths: "Paths",
        teachers: Teachers,
        caches: "Mapping[str, ConditionCache]",
        work: Path,
        tracker: Tracker,
    ) -> None:
        """Read the validation rows and sample the teachers' images for the grids once.

        Their conditions are in the caches, so that no encoder is loaded.
        """
        self.params, self.tracker = params, tracker
        self.is_main = current().is_main
        self.folder = work / "grids"
        self.batches = {
            name: quick_batch(
                read_bucket(paths.bucket(config.bucket), VALIDATION),
                open_world(params.data.world),
                on_grid(teachers.family, params.distill.shift),
                params.distill.evaluate_samples,
                params.run.seed,
                params.run.device,
                caches[name].validation,
            )
            for name, config in params.capabilities.items()
        }
        self.teacher_images = {
            name: self.batches[name]
            .head(_GRID_ROWS)
            .sample(
                teachers.field(config.teacher, config.guidance),
                params.evaluate.teacher_steps(name),
                _GRID_ROWS,
            )
            for name, config in params.capabilities.items()
        }

    def observe(
        self, student: VelocityField, step: int, *, score: bool, draw: bool
    ) -> dict[str, float]:
        """Return the student's score per capability if asked, and write image grids if asked."""
        scores = {}
        for name, rows in self.batches.items():
            batch = rows if score else rows.head(_GRID_ROWS)
            steps = self.params.evaluate.steps(name)
            images = batch.sample(student, steps, self.params.distill.batch_size)
            if not self.is_main:  # the others have answered their share
                continue
            if score:
                scores[name] = float(batch.score(images)["overall"])
            if draw:
                self._draw(name, step, images[:_GRID_ROWS])
        if scores:
            self.tracker.log_metrics({f"validation/{n}": v for n, v in scores.items()}, step)
        return scores

    def _draw(self, name: str, step: int, images: "Sequence[Tensor]") -> None:
        part = self.batches[name].head(_GRID_ROWS)
        columns: dict[str, Sequence[Tensor]] = {"source": part.sources} if part.sources else {}
        columns |= {"teacher": self.teacher_images[name], "student": images}
        picture = image_grid(columns, part.prompts)
        with atomic_file(self.folder / f"{name}-{step:06d}.png") as partial:
            picture.save(partial, format="PNG")
        self.tracker.log_image(f"grid/{name}", picture, step)
