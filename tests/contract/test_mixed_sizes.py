"""Rows of two sizes are answered and measured as each would be alone."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from shaped_rows import CAPABILITIES, SQUARE, WIDE, prepared, shaped_data
from tiny_models import awake
from tiny_project import write_teachers
from tiny_stock import qwen_image_pipeline, stock_family

from danceflow.data.buckets import images_of, read_bucket
from danceflow.errors import WeightsError
from danceflow.evaluate import gallery
from danceflow.evaluate import score as marks
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.gallery import Answers, draw_gallery
from danceflow.evaluate.grids import image_grid, tile_sheet
from danceflow.evaluate.judge.judge import Judge
from danceflow.evaluate.measurement import Evaluator, Measurement, row_by_row
from danceflow.evaluate.metrics.distribution import Conv64, distribution
from danceflow.evaluate.metrics.field_gap import field_gap
from danceflow.evaluate.metrics.preservation import preservation
from danceflow.evaluate.quick import QuickBatch, quick_batch
from danceflow.evaluate.task import Task, build_task
from danceflow.fields import Condition, normal, sample
from danceflow.models.family import open_family
from danceflow.models.package import FROZEN_FOLDER, save_package
from danceflow.paths import Paths
from danceflow.report.page.tiles import read_tiles
from danceflow.worlds.world import open_world

ROWS = open_world("rows")
SEEDS = (0, 1)
SHIFTING = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 40}
LONG = (12, 40)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Tasks of both capabilities, twice six rows of which every third is wide, and a field."""
    paths = Paths(tmp_path_factory.mktemp("made"))
    params = prepared(paths.root, shaped_data())
    write_teachers(params, paths)
    family = open_family("sd3", paths.teachers / FROZEN_FOLDER)
    tasks = {
        name: build_task(
            name, read_bucket(paths.bucket(name), "test"), ROWS, family, {"standard": 6}, SEEDS
        )
        for name in CAPABILITIES
    }
    field = family.field(awake(family, 4))
    images = {name: task.images(field, 2, 4) for name, task in tasks.items()}
    return SimpleNamespace(
        params=params, paths=paths, family=family, tasks=tasks, field=field, images=images
    )


def answers_near_the_target(task: Task) -> list[torch.Tensor]:
    """Targets that are paler the later their row is, with some noise."""
    return [
        target.lerp(torch.full_like(target, 0.5), 0.05 * (1 + row))
        + 0.002 * normal(target.shape, [row])[0]
        for row, target in enumerate(task.targets)
    ]


@pytest.mark.parametrize("name", CAPABILITIES)
def test_a_task_keeps_the_order_of_its_rows(made, name: str) -> None:
    task: Task = made.tasks[name]
    dataset = read_bucket(made.paths.bucket(name), "test")
    assert [row.uid for row in task.rows] == list(dataset["uid"]) * 2
    assert [tuple(image.shape[1:]) for image in task.targets] == [WIDE, SQUARE, SQUARE] * 4
    for place, target in enumerate(task.targets):
        assert torch.equal(target, images_of(dataset, [place % 6], "target")[0])
    assert task.is_edit == (name == "local_edit")
    for place, source in enumerate(task.sources):
        assert torch.equal(source, images_of(dataset, [place % 6], "source")[0])
    with pytest.raises(ValueError, match="its rows have 2 sizes, not one"):
        _ = task.target


def test_a_selection_of_rows_of_both_sizes_keeps_everything_together(made) -> None:
    task: Task = made.tasks["local_edit"]
    places = [7, 0, 11, 3]
    part = task.select(places)
    assert part.rows == tuple(task.rows[place] for place in places)
    for found, place in zip(part.targets, places, strict=True):
        assert torch.equal(found, task.targets[place])
    assert task.select([1, 4]).target.shape == (2, 3, *SQUARE)
    assert task.select([0]).only.family.image_size == WIDE


@pytest.mark.parametrize("name", CAPABILITIES)
def test_answers_to_mixed_rows_are_those_to_each_row_alone(made, name: str) -> None:
    task: Task = made.tasks[name]
    images, done = made.images[name], []
    assert [image.shape for image in images] == [target.shape for target in task.targets]
    task.images(made.field, 2, 4, done.append)
    assert (sum(done), max(done)) == (12, 4)
    for place in range(task.num_rows):
        (alone,) = task.select([place]).images(made.field, 2, 1)
        torch.testing.assert_close(images[place], alone, rtol=0, atol=1e-4)
    assert not torch.equal(images[1], images[7])  # one row, another seed of the noise


def test_answers_follow_the_grid_of_their_size(tmp_path: Path) -> None:
    data = shaped_data(("1:1", "3:1"), family__name="qwen_image")
    prepared(tmp_path / "project", data)
    family = stock_family("qwen_image", qwen_image_pipeline(edit=True, **SHIFTING), tmp_path / "m")
    dataset = read_bucket(Paths(tmp_path / "project").bucket("local_edit"), "test")
    task = build_task("local_edit", dataset, ROWS, family, {"standard": 6})
    assert [part.family.image_size for part in task.parts] == [LONG, SQUARE]
    field = family.field(awake(family, 3))
    images = task.images(field, 3, 4)
    for part, other in zip(task.parts, task.parts[::-1], strict=True):
        own, wrong = (
            part.family.decode(sample(field, part.noise, part.condition, grid))
            for grid in (part.family.grid(3), other.family.grid(3))
        )
        for place, image, bad in zip(part.places, own, wrong, strict=True):
            torch.testing.assert_close(images[place], image, rtol=0, atol=1e-4)
            assert float((images[place] - bad).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("name", "evaluator", "metrics"),
    [
        ("t2i", marks.score, ["score"]),
        ("local_edit", marks.score, ["score", "sc", "pq"]),
        ("local_edit", preservation, ["psnr", "ssim"]),
    ],
)
def test_scores_of_mixed_rows_are_those_of_each_row(
    made, name: str, evaluator: Evaluator, metrics: list[str]
) -> None:
    task: Task = made.tasks[name]
    images = answers_near_the_target(task)
    found = list(evaluator(task, images))
    assert [item.name for item in found] == metrics
    for item in found:
        alone = [
            next(m for m in evaluator(task.select([n]), [images[n]]) if m.name == item.name).value
            for n in range(task.num_rows)
        ]
        assert item.rows == pytest.approx(alone, rel=1e-5)
        assert len(set(item.rows)) > 3
        assert item.value == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_a_score_of_the_quick_batch_is_the_mean_of_its_rows(made) -> None:
    dataset = read_bucket(made.paths.bucket("local_edit"), "validation")
    batch = quick_batch(dataset, ROWS, made.family, 6, 0)
    images = batch.sample(made.field, 2, 4)
    alone = [
        QuickBatch(batch.task.select([n])).score([images[n]])["overall"] for n in range(len(images))
    ]
    assert batch.score(images)["overall"] == pytest.approx(sum(alone) / 6, rel=1e-5)
    assert batch.head(2).targets[1].shape == (3, *SQUARE)


def test_a_measurement_that_a_size_does_not_allow_is_left_out(made) -> None:
    @row_by_row
    def square_only(task: Task, images_B3HW: torch.Tensor):
        values = tuple(images_B3HW.flatten(1).mean(1).tolist())
        yield Measurement("mean", 0.0, values)
        if images_B3HW.shape[2] == images_B3HW.shape[3]:
            yield Measurement("square", 0.0, values)

    task = made.tasks["t2i"]
    (found,) = square_only(task, task.targets)
    assert found.name == "mean"
    assert found.rows == pytest.approx([float(image.mean()) for image in task.targets])
    assert len(list(square_only(task.select([1, 2]), task.targets[1:3]))) == 2


def test_distances_of_sets_do_not_depend_on_the_grouping(made) -> None:
    """FID against its closed form on features that are taken image by image."""
    task: Task = made.tasks["t2i"]
    images = answers_near_the_target(task)
    found = {item.name: item.value for item in distribution(task, images)}
    turned = replace(task, parts=task.parts[::-1])
    again = {item.name: item.value for item in distribution(turned, images)}
    assert found == pytest.approx(again, rel=1e-3)
    extractor = Conv64()
    real, fake = (
        torch.cat([extractor(image[None]) for image in found]) for found in (task.targets, images)
    )
    means = (real.mean(0) - fake.mean(0)).square().sum()
    product = torch.linalg.eigvals(real.T.cov() @ fake.T.cov()).sqrt().real.sum()
    fid = means + real.T.cov().trace() + fake.T.cov().trace() - 2 * product
    assert found["fid_conv64"] == pytest.approx(float(fid), rel=1e-2)
    assert found["fid_conv64"] > 0.01
    # KID is the unbiased estimate with the kernel (x.y / 64 + 1)^3.
    kernel = [(a @ b.T / 64 + 1) ** 3 for a, b in ((real, real), (fake, fake), (real, fake))]
    n = len(real)
    within = sum((k.sum() - k.trace()) / (n * (n - 1)) for k in kernel[:2])
    kid = float(within - 2 * kernel[2].mean())
    assert found["kid_conv64"] == pytest.approx(kid, rel=1e-3, abs=1e-6)


def test_the_field_gap_of_mixed_rows_is_the_mean_of_each_rows(made) -> None:
    task: Task = made.tasks["local_edit"]

    def zero(z: torch.Tensor, sigma: torch.Tensor, condition: Condition) -> torch.Tensor:
        return torch.zeros_like(z)

    found = field_gap(made.field, zero, task, 6)
    alone = [field_gap(made.field, zero, task.select([n]), 6) for n in range(task.num_rows)]
    assert len({round(gap["all"], 4) for gap in alone}) > 3
    for name, value in found.items():
        assert value == pytest.approx(sum(gap[name] for gap in alone) / len(alone), rel=1e-4)


def test_a_judge_sees_every_answer_and_source_in_its_shape(made, tmp_path: Path) -> None:
    asked: list[list[tuple[int, int]]] = []

    class Kept:
        def known(self, question) -> float:
            import io

            asked.append([Image.open(io.BytesIO(p)).size for p in question.pictures])
            return 5.0

    task = made.tasks["local_edit"]
    config = SimpleNamespace(is_score=True, offline=True)
    judge = Judge(config, Kept(), tmp_path)
    assert len(judge.score("student", task, made.images["local_edit"])) == task.num_rows
    ratios = {width / height for sizes in asked for width, height in sizes}
    assert ratios == {1.0, WIDE[1] / WIDE[0]}
    assert all(len({width / height for width, height in sizes}) == 1 for sizes in asked)


def flat(colour: tuple[float, float, float], size: tuple[int, int]) -> torch.Tensor:
    return torch.tensor(colour)[:, None, None].expand(3, *size).contiguous()


def test_tiles_hold_pictures_of_any_shape_in_their_middle() -> None:
    columns = [[flat((1, 0, 0), (8, 8)), flat((0, 0, 1), (4, 12))], [flat((0, 1, 0), (12, 6))] * 2]
    sheet = np.asarray(tile_sheet(columns))
    assert sheet.shape == (24, 24, 3)

    def box(column: int, row: int) -> tuple[int, int, int, int]:
        tile = sheet[row * 12 : row * 12 + 12, column * 12 : column * 12 + 12]
        ys, xs = np.nonzero((tile != 255).any(axis=2))
        return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1

    assert box(0, 0) == (2, 2, 10, 10)
    assert box(0, 1) == (0, 4, 12, 8)
    assert box(1, 0) == box(1, 1) == (3, 0, 9, 12)
    assert tile_sheet(columns, max_size=6).size == (12, 12)


def test_a_grid_keeps_the_shapes_of_its_pictures() -> None:
    columns = {"a": [flat((1, 0, 0), (20, 28))], "b": [flat((0, 0, 1), (24, 24))]}
    picture = np.asarray(image_grid(columns, ["prompt"]))
    factor = 6  # the first that makes the longest side, 28, at least 160
    for colour, (height, width) in (((255, 0, 0), (20, 28)), ((0, 0, 255), (24, 24))):
        ys, xs = np.nonzero((picture == colour).all(axis=2))
        assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == (factor * height, factor * width)


def test_a_gallery_shows_rows_of_both_sizes(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_NUM_ROWS", 2)  # of the six with the first noise
    task, images = made.tasks["local_edit"], made.images["local_edit"]
    places = list(range(task.num_rows))
    answers = {
        name: Answers(places, images, [score] * task.num_rows)
        for name, score in (("student", 1.0), ("start", 0.5), ("teacher:local", 2.0))
    }
    draw_gallery(tmp_path, task, "teacher:local", answers)
    rows = read_tiles(tmp_path)
    assert [row.kind for row in rows] == ["standard"] * 2 + ["lost"] * 4
    with Image.open(tmp_path / "tiles.png") as sheet:
        assert sheet.size == (5 * 28, len(rows) * 28)
    assert (tmp_path / "grid.png").is_file()


def test_the_stage_refuses_a_size_that_the_student_was_not_made_for(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = made.paths
    monkeypatch.setattr(Paths, "student", property(lambda _: tmp_path / "student"))
    (tmp_path / "student").mkdir()
    meta = {"image_sizes": [SQUARE], "num_steps": 2}
    save_package(tmp_path / "student", made.family, awake(made.family, 9), meta)
    with pytest.raises(WeightsError, match="images of 24x24 pixels, the data has 28x20; run"):
        evaluate.run(made.params, paths, "t2i")
