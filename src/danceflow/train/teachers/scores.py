"""Scores and draws teachers on the validation split of every capability, as students are scored."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.data.buckets import VALIDATION, read_bucket
from danceflow.evaluate.grids import image_grid
from danceflow.evaluate.quick import QuickBatch, quick_batch
from danceflow.models.memory import exported_memory
from danceflow.models.teachers import Teachers
from danceflow.ops.files import atomic_directory
from danceflow.ops.group import current
from danceflow.worlds.world import open_world

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_GUIDANCE = (1.0, 1.5, 2.0, 3.0)
_GRID_ROWS = 8


def score_teachers(params: "Params", paths: "Paths", data: "Paths", report: dict[str, Any]) -> None:
    """Score every teacher on every capability, its own one at several guidance scales.

    Args:
        params: names them.
        paths: where the teachers lie, and where grids go.
        data: where the buckets lie.
        report: gets what it lacks.
    """
    teachers = Teachers(
        paths.teachers, params.family.name, list(params.teachers), exported_memory(params.run)
    )
    for name, backbone in teachers.backbones.items():
        entry = {
            "num_parameters": sum(p.numel() for p in backbone.parameters()),
            "num_updates": params.teachers[name].num_updates,
            "scores": {},
        }
        report["teachers"].setdefault(name, entry)
    with _pictures(paths.teachers_images) as folder:
        for capability, config in params.capabilities.items():
            scores = {name: report["teachers"][name]["scores"] for name in teachers.backbones}
            missing = [name for name, found in scores.items() if capability not in found]
            if not missing:
                continue
            dataset = read_bucket(data.bucket(config.bucket), VALIDATION)
            batch = quick_batch(
                dataset,
                open_world(params.data.world),
                teachers.family,
                params.evaluate.num_samples,
                params.run.seed,
                params.run.device,
            )
            for name in missing:
                scales = _GUIDANCE if name == config.teacher else (config.guidance,)
                scores[name][capability] = {
                    f"{scale:g}": _scored(params, teachers, batch, name, scale, capability)
                    for scale in scales
                }
            _draw(params, teachers, batch, capability, folder)


@contextmanager
def _pictures(place: Path) -> Iterator[Path | None]:
    """Give the folder that becomes ``place``, with what is there; None where another writes it."""
    if not current().is_main:
        yield None
        return
    with atomic_directory(place) as folder:
        if place.exists():
            shutil.copytree(place, folder, dirs_exist_ok=True)
        yield folder


def _scored(
    params: "Params",
    teachers: Teachers,
    batch: QuickBatch,
    name: str,
    guidance: float,
    capability: str,
) -> dict[str, Any]:
    field = teachers.field(name, guidance)
    steps = params.evaluate.teacher_steps(capability)
    images = batch.sample(field, steps, params.evaluate.batch_size)
    return batch.score(images) if current().is_main else {}


def _draw(
    params: "Params", teachers: Teachers, batch: QuickBatch, capability: str, folder: Path | None
) -> None:
    """Write a grid: source, every teacher, exact target, with the prompts beside.

    Without a folder this process only gives its share of the pictures.
    """
    part = batch.head(_GRID_ROWS)
    columns = {"source": part.sources} if part.sources else {}
    steps = params.evaluate.teacher_steps(capability)
    for name, config in params.capabilities.items():
        field = teachers.field(config.teacher, config.guidance)
        label = f"{config.teacher} teacher" + (" (its own)" if name == capability else "")
        columns[label] = part.sample(field, steps, _GRID_ROWS)
    columns["exact target"] = part.targets
    if folder is not None:
        image_grid(columns, part.prompts).save(folder / f"{capability}.png")
