"""What is seen of a student while it trains: scores, image grids, and the same in MLflow."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_project import small_data, write_project

from danceflow.data import cache
from danceflow.data.buckets import VALIDATION, read_bucket
from danceflow.data.cached_rows import ConditionCache
from danceflow.errors import DataError
from danceflow.evaluate.quick import quick_batch
from danceflow.models.teachers import Teachers
from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.ops.tracking.tracker import NoTracker
from danceflow.paths import Paths
from danceflow.train.distill.observe import Observer
from danceflow.worlds import prepare
from danceflow.worlds.world import open_world

CAPABILITIES = ("t2i", "local_edit")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A project whose test split is not there, so that nobody can look at it."""
    paths = Paths(tmp_path_factory.mktemp("made"))
    params = write_project(paths.root, small_data(CAPABILITIES))
    prepare.run(params, paths)
    for name in CAPABILITIES:
        shutil.rmtree(paths.bucket(name) / "test")
        cache.run(params, paths, name)
    teachers = Teachers(paths.teachers, params.family.name, ["base", "local"], "cpu")
    caches = {name: ConditionCache(paths.cache(name)) for name in CAPABILITIES}
    return SimpleNamespace(params=params, paths=paths, teachers=teachers, caches=caches)


def observer(made: SimpleNamespace, work: Path, tracker=None) -> Observer:
    given = (made.params, made.paths, made.teachers, made.caches)
    return Observer(*given, work, tracker or NoTracker())


def pictures(work: Path) -> list[str]:
    return sorted(path.name for path in work.rglob("*") if path.is_file())


def test_scores_are_those_of_the_students_images(made, tmp_path: Path) -> None:
    watching = observer(made, tmp_path)
    field = made.teachers.field("local", 1.0)
    scores = watching.observe(field, 3, score=True, draw=False)
    assert list(scores) == list(CAPABILITIES)
    for name, score in scores.items():
        batch = watching.batches[name]
        assert batch.task.num_rows >= made.params.distill.evaluate_samples
        images = batch.sample(field, made.params.evaluate.num_steps, 3)
        assert score == pytest.approx(batch.score(images)["overall"], abs=1e-6)
    assert pictures(tmp_path) == []
    assert watching.observe(field, 3, score=True, draw=False) == scores


@pytest.mark.parametrize("name", CAPABILITIES)
def test_cached_conditions_are_what_the_encoders_say(made, tmp_path: Path, name: str) -> None:
    params = made.params
    rows = read_bucket(made.paths.bucket(name), VALIDATION)
    world, family = open_world(params.data.world), made.teachers.family
    asked = quick_batch(rows, world, family, params.distill.evaluate_samples, params.run.seed)
    found = observer(made, tmp_path).batches[name].task.condition.tensors
    assert found.keys() == asked.task.condition.tensors.keys()
    for key, value in asked.task.condition.tensors.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


def test_drawing_alone_scores_nothing(made, tmp_path: Path) -> None:
    watching = observer(made, tmp_path)
    field = made.teachers.field("base", 1.0)
    assert watching.observe(field, 12, score=False, draw=True) == {}
    assert pictures(tmp_path) == ["local_edit-000012.png", "t2i-000012.png"]


def test_a_grid_has_the_teacher_beside_the_student(made, tmp_path: Path) -> None:
    watching = observer(made, tmp_path)
    config = made.params.capabilities["local_edit"]
    own = made.teachers.field(config.teacher, config.guidance)
    watching.observe(own, 0, score=False, draw=True)
    watching.observe(made.teachers.field("base", 1.0), 1, score=False, draw=True)
    same, other = (
        np.asarray(Image.open(tmp_path / "grids" / f"local_edit-{step:06d}.png")) for step in (0, 1)
    )
    assert same.shape == other.shape
    # Columns from the right: student, then teacher. Equal when the student is the teacher.
    changed = np.nonzero((same != other).any(axis=(0, 2)))[0]
    tile = 160 + 10
    assert changed.min() >= same.shape[1] - 16 - tile
    teacher, student = same[:, -16 - tile - 160 : -16 - tile], same[:, -16 - 160 : -16]
    assert np.array_equal(teacher[60:], student[60:])
    assert not np.array_equal(teacher[60:], other[60:, -16 - 160 : -16])


def test_mlflow_mirrors_scores_and_grids(made, tmp_path: Path, tracking: TrackingSettings) -> None:
    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}) as tracker:
        watching = observer(made, tmp_path, tracker)
        scores = [
            watching.observe(made.teachers.field("base", 1.0), step, score=True, draw=True)
            for step in (0, 5)
        ]
    client = open_store(tracking).client
    for name in CAPABILITIES:
        history = client.get_metric_history(tracker.run_id, f"validation/{name}")
        assert [(entry.step, entry.value) for entry in history] == [
            (step, found[name]) for step, found in zip((0, 5), scores, strict=True)
        ]
    files = [item.path for item in client.list_artifacts(tracker.run_id, "images")]
    for name in CAPABILITIES:
        assert sum(name in path and path.endswith(".png") for path in files) == 2


def test_a_bucket_without_enough_validation_rows_is_told(made, tmp_path: Path) -> None:
    many = made.params.distill.model_copy(update={"evaluate_samples": 100})
    params = made.params.model_copy(update={"distill": many})
    with pytest.raises(DataError, match="100 rows per category were asked for"):
        Observer(params, made.paths, made.teachers, made.caches, tmp_path, NoTracker())
