"""Stage ``distill``: one student from several frozen teachers, on the states it visits itself.

The training goes on in the work folder of its key; its end is packaged as the student.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from danceflow.capability import asked
from danceflow.data.buckets import VALIDATION, bucket_digest, read_framing
from danceflow.data.cached_rows import INDEX, ConditionCache
from danceflow.method import method_of
from danceflow.models.bases import FROZEN_FOLDER
from danceflow.models.family import open_family
from danceflow.models.memory import memory_of
from danceflow.models.steps import on_grid, recommended_steps
from danceflow.models.teachers import Teachers
from danceflow.ops import keys
from danceflow.ops.files import atomic_directory, sha256
from danceflow.ops.group import current
from danceflow.ops.keys import Key
from danceflow.ops.tracking import NoTracker, Tracker, TrackingSettings, start_run
from danceflow.paths import MANIFEST
from danceflow.train.distill.observe import Observer
from danceflow.train.distill.trainer import Trainer
from danceflow.train.log import write_curves

if TYPE_CHECKING:
    from danceflow.params.sections import Params
    from danceflow.paths import Paths

_LEARNED = "train"  # the split that a student learns from
_LOG = logging.getLogger(__name__)


def run(params: "Params", paths: "Paths") -> None:
    """Write ``models/student`` and ``reports/distill``; running again resumes.

    Raises:
        WeightsError, DataError: if a teacher or a cache cannot be used.
        TrainingError: if the training cannot go on.
    """
    started = time.monotonic()
    method = method_of(params.distill)
    framing = read_framing(paths.buckets)
    if params.distill.shift is not None:  # refused, if so, before networks are loaded
        frozen = open_family(params.family.name, paths.teachers / FROZEN_FOLDER)
        on_grid(frozen, params.distill.shift)
    teachers = Teachers(
        paths.teachers, params.family.name, asked(params).teachers, memory_of(params.run)
    )
    caches = {name: ConditionCache(paths.cache(name)) for name in params.capabilities}
    for cache in caches.values():
        teachers.family.take_fixed(cache.fixed)
    key = training_key(params, paths)
    # Experiments that differ in later stages only train the same: the second one waits, and goes
    # on at the first one's end.
    with key.working(paths) as work:
        with _tracker(params, paths, work, method.name, key) as tracker:
            observer = Observer(params, paths, teachers, caches, work, tracker)
            trainer = Trainer(params, method, teachers, caches, work, tracker, observer)
            trainer.train()
        meta = {
            "image_sizes": trainer.sizes,
            "framing": framing,
            "num_steps": recommended_steps(params),
            "method": method.name,
            "num_updates": trainer.step,
            "field_evaluations": trainer.ledger.spent,
            "key": key.digest,
            "teachers_digest": teachers.digest,
            "capabilities": {
                name: {
                    "teacher": config.teacher,
                    "data": bucket_digest(paths.bucket(config.bucket), _LEARNED),
                }
                for name, config in params.capabilities.items()
                if config.weight > 0
            },
            "licences": teachers.meta.get("licences", {}),
        }
        if not current().is_main:
            return
        with atomic_directory(paths.student) as folder:
            trainer.package(folder, meta)
        with atomic_directory(paths.distill_report) as folder:
            for name in ("metrics.jsonl", "run.json"):
                shutil.copy2(work / name, folder / name)
            if (work / "grids").is_dir():
                shutil.copytree(work / "grids", folder / "grids")
            write_curves(work / "metrics.jsonl", folder / "curves.csv")
    _LOG.info("distilled in %.0f s", time.monotonic() - started)


def _tracker(params: "Params", paths: "Paths", work: Path, method: str, key: Key) -> Tracker:
    """Return what the training is recorded with; of a group the main process records."""
    if not current().is_main:
        return NoTracker()
    return start_run(
        TrackingSettings.of(paths.root, params.tracking),
        work / "run.json",
        name=f"{method}-{key.digest[:8]}",
        key=key.digest,
        params=params.model_dump(mode="json"),
    )


def training_key(params: "Params", paths: "Paths") -> Key:
    """Return the key of everything that decides the training, code included."""
    return keys.trained(
        params,
        sha256(paths.teachers / MANIFEST),
        {name: sha256(paths.cache(name) / INDEX) for name in params.capabilities},
        {
            name: bucket_digest(paths.bucket(config.bucket), VALIDATION)
            for name, config in params.capabilities.items()
        },
    )
