"""Training on pictures of two sizes: each on its own grid, each part weighed as it was, resumed
exactly; and all stages from the rows to the student's use."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from params_files import dump_yaml
from PIL import Image
from repository import ROOT
from shaped_rows import CAPABILITIES, SQUARE, WIDE, prepared, shaped_data
from tiny_models import awake
from tiny_project import Blind, as_a_stage_runs, write_teachers
from tiny_stock import flux2_pipeline, qwen_image_pipeline, stock_family
from training_record import read_metrics

from danceflow.data import cache
from danceflow.data.cached_rows import ConditionCache
from danceflow.evaluate import stage as evaluate
from danceflow.evaluate.records import read_evaluation
from danceflow.fields import Queries, StateRequest
from danceflow.method import Method, method_of
from danceflow.models.package import FROZEN_FOLDER, load_package, write_manifest
from danceflow.models.teachers import Teachers
from danceflow.ops.tracking.tracker import NoTracker
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.open import open_student
from danceflow.report import stage as report
from danceflow.report.page.tiles import read_tiles
from danceflow.train.distill import stage as distill
from danceflow.train.distill.rows import Drawn
from danceflow.train.distill.trainer import Trainer
from danceflow.train.teachers import stage as teachers

LONG = (12, 40)  # what a wide row becomes where the other ratio is 3:1
SHIFTING = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 40}


@pytest.fixture(scope="module", autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    with as_a_stage_runs(parse_params(shaped_data(), "test")):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A project of the small SD3 model that only needs its training."""
    paths = Paths(tmp_path_factory.mktemp("made"))
    params = prepared(paths.root, shaped_data())
    write_teachers(params, paths)
    for capability in CAPABILITIES:
        cache.run(params, paths, capability)
    return paths


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The same of Qwen-Image-Edit, whose grid shifts with the size and whose prompts see it."""
    root = tmp_path_factory.mktemp("stock")
    paths = Paths(root / "project")
    params = prepared(paths.root, stock_data())
    family = stock_family("qwen_image", qwen_image_pipeline(edit=True, **SHIFTING), root / "stock")
    family.save_frozen(paths.teachers / FROZEN_FOLDER)
    for seed, name in enumerate(("base", "local")):
        family.save_backbone(awake(family, seed), paths.teacher(name))
    write_manifest(paths.teachers, {"family": "qwen_image", "teachers": ["base", "local"]})
    for capability in CAPABILITIES:
        cache.run(params, paths, capability)
    return paths


def stock_data(**changes):
    return shaped_data(("1:1", "3:1"), family__name="qwen_image", cache__num_steps=2, **changes)


class Stopping(Trainer):
    """Stops before an update, as a power cut would."""

    stop_at = -1

    def _update(self, progress: float) -> float:
        if self.step == self.stop_at:
            raise KeyboardInterrupt
        return super()._update(progress)


def params_with(paths: Paths, data, **changes) -> Params:
    data["data"]["input"]["path"] = str(paths.raw / "pets/pets.csv")
    return parse_params(override(data, {f"distill.{k}": v for k, v in changes.items()}), "test")


def trainer(paths: Paths, work: Path, kind=Trainer, data=None, **changes) -> Trainer:
    params = params_with(paths, shaped_data() if data is None else data, **changes)
    loaded = Teachers(paths.teachers, params.family.name, ["base", "local"], "cpu")
    caches = {name: ConditionCache(paths.cache(name)) for name in CAPABILITIES}
    work.mkdir(parents=True, exist_ok=True)
    return kind(params, method_of(params.distill), loaded, caches, work, NoTracker(), Blind())


def drawn_at(found: Trainer, step: int) -> list[Drawn]:
    found.step = step
    return found.rows.read(step)


def first_mixed_step(found: Trainer) -> int:
    """The first update whose capabilities have different sizes."""
    steps = (n for n in range(50) if len({d.size for d in drawn_at(found, n)}) == 2)
    return next(steps)


class Noting:
    """A method that notes what is collected of which request."""

    def __init__(self, method: Method) -> None:
        self.method, self.requests = method, []

    def __getattr__(self, name: str):
        return getattr(self.method, name)

    def collect(self, request: StateRequest) -> Queries:
        self.requests.append(request)
        return self.method.collect(request)


def weights(found: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in found.backbone.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def record(work: Path) -> list[dict]:
    return read_metrics(work / "metrics.jsonl")


@pytest.mark.parametrize("kind", ["made", "stock"])
def test_an_update_of_two_sizes_is_the_weighted_sum_of_its_rows(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The gradient of a mixed update is that of every row alone, by its share."""
    data = stock_data() if kind == "stock" else None
    options = {"capabilities_per_update": "all", "student": "full", "clip_norm": 1e9}
    found = trainer(request.getfixturevalue(kind), tmp_path, data=data, **options)
    step = first_mixed_step(found)
    drawn = drawn_at(found, step)
    assert {item.size for item in drawn} == set(found.sizes)

    found.optimizer.zero_grad()
    for item in drawn:
        (part,) = found._collect(item.size, [item], 0.5)
        for row, share in part.queries.split(1):
            velocity = found.student(row.z, row.sigma, row.condition)
            target = found.teachers[item.capability](row.z, row.sigma, row.condition)
            loss, _ = found.method.objective(velocity, target, row)
            (loss * item.share * share).backward()
    used = [param for param in found.trainable if param.grad is not None]
    expected = [param.grad.clone() for param in used]

    gradients: list[torch.Tensor] = []
    found.optimizer.step = lambda: gradients.extend(param.grad.clone() for param in used)
    found._update(0.5)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    assert scale > 1e-4
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)


def test_every_size_is_rolled_out_apart_and_on_its_own_grid(stock: Paths, tmp_path: Path) -> None:
    found = trainer(
        stock, tmp_path, data=stock_data(), capabilities_per_update="all", num_updates=12
    )
    found.method = noting = Noting(found.method)
    found.train()
    family = Teachers(stock.teachers, "qwen_image", [], "cpu").family
    grids = {size: family.sized(*size).grid(4) for size in (SQUARE, LONG)}
    assert float((grids[SQUARE] - grids[LONG]).abs().max()) > 0.01
    seen = set()
    for request in noting.requests:
        _, height, width = request.shape
        size = (2 * height, 2 * width)
        seen.add(size)
        assert torch.equal(request.grid, grids[size])
        assert request.condition.tensors["source"].shape[1:] == request.shape
    assert seen == {SQUARE, LONG}
    assert len(noting.requests) > 12  # some updates have both


def test_teacher_samples_follow_their_own_grid(stock: Paths) -> None:
    from danceflow.fields import normal, sample, seed_for

    params = params_with(stock, stock_data())
    config = params.capabilities["local_edit"]
    loaded = Teachers(stock.teachers, "qwen_image", ["local"], "cpu")
    field = loaded.field("local", config.guidance)
    cached = ConditionCache(stock.cache("local_edit"))
    first = {LONG: [0, 3], SQUARE: [1, 2, 4, 5]}
    assert {group.size for group in cached.groups} == set(first)
    for group in cached.groups:
        rows = first[group.size]
        family = loaded.family.sized(*group.size)
        other = loaded.family.sized(*({SQUARE, LONG} - {group.size}).pop())
        seeds = [seed_for(params.run.seed, "cache/local_edit", 0, row) for row in rows]
        noise, condition = (
            normal(family.latent_shape, seeds),
            group.condition(torch.arange(len(rows))),
        )
        own = sample(field, noise, condition, family.grid(2))
        drawn = group.clean("teacher", torch.arange(len(rows)))
        torch.testing.assert_close(drawn, own, rtol=0, atol=1e-4)
        wrong = sample(field, noise, condition, other.grid(2))
        assert float((drawn - wrong).abs().max()) > 1e-3


def test_a_grid_is_its_sizes_own_in_stock_families(tmp_path: Path) -> None:
    for name, build in (("flux2", flux2_pipeline), ("qwen_image", qwen_image_pipeline)):
        family = stock_family(name, build(use_dynamic_shifting=True), tmp_path / name)
        one, other = (family.sized(*size).grid(6) for size in (SQUARE, LONG))
        assert len(one) == len(other) == 7
        assert not torch.allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"capabilities_per_update": "all"},
        {"updates_per_rollout": 4, "capabilities_per_update": "all", "student": "full"},
        {"warm_start": 2, "loss_normalisation": 0.5, "updates_per_rollout": 2},
        {"method": "flowopd", "group_size": 2, "student": "full"},
    ],
    ids=["plain", "replay", "warm", "sde"],
)
def test_a_training_on_two_sizes_is_resumed_exactly(made: Paths, tmp_path: Path, changes) -> None:
    options = {**changes, "num_updates": 9, "checkpoint_every": 2}
    whole = trainer(made, tmp_path / "whole", **options)
    whole.method = noting = Noting(whole.method)
    whole.train()
    assert {request.shape for request in noting.requests} == {(3, *SQUARE), (3, *WIDE)}
    for stop_at in (3, 6):
        part = trainer(made, tmp_path / "parts", Stopping, **options)
        part.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            part.train()
    parts = trainer(made, tmp_path / "parts", **options)
    assert parts.step == 6
    parts.train()
    assert same(weights(whole), weights(parts))
    assert record(tmp_path / "whole") == record(tmp_path / "parts")


def test_what_is_drawn_is_a_function_of_seed_and_step(made: Paths, tmp_path: Path) -> None:
    one, other = (
        trainer(made, tmp_path / name, capabilities_per_update="all") for name in ("a", "b")
    )
    drawn_at(other, 0)
    sizes = set()
    for step in (7, 3, 11, 4):
        for first, second in zip(drawn_at(one, step), drawn_at(other, step), strict=True):
            assert first.size == second.size
            assert torch.equal(first.rows, second.rows)
            sizes.add(first.size)
    assert sizes == {SQUARE, WIDE}


def test_a_replay_trains_on_every_state_with_its_weight(made: Paths, tmp_path: Path) -> None:
    """Rounds of two sizes are not joined, and the shares of an update still sum to 1."""
    found = trainer(
        made, tmp_path, updates_per_rollout=4, capabilities_per_update="all", num_updates=16
    )
    exchange, updates = found.replay.exchange, []

    def noting(fresh):
        updates.append(exchange(fresh))
        return updates[-1]

    found.replay.exchange = noting
    found.train()
    mixed = 0
    for parts in updates:
        keys = [(part.capability, part.queries.z.shape[1:]) for part in parts]
        assert len(set(keys)) == len(keys)
        mixed += len(keys) > len({name for name, _ in keys})
        assert sum(part.share for part in parts) == pytest.approx(1)
        # Every state has the same weight: as many states as there is share.
        states = [part.queries.num_samples / part.share for part in parts]
        assert states == pytest.approx([states[0]] * len(states))
    assert mixed > 3


def shapes(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    return [image.size for image in images]


def test_all_stages_from_the_rows_to_the_students_use(made: Paths, tmp_path: Path) -> None:
    """Teachers, cache, student, evaluation and report on two sizes; the student makes both."""
    paths = Paths(tmp_path / "project")
    shutil.copytree(made.root, paths.root)
    for place in (paths.teachers, paths.scratch, paths.cache("t2i").parent):
        shutil.rmtree(place)
    shutil.copyfile(ROOT / "dvc.yaml", paths.root / "dvc.yaml")
    data = shaped_data()
    data["family"]["text_encoder"] |= {"num_updates": 2, "batch_size": 8}
    for teacher in data["teachers"].values():
        teacher |= {"num_samples": 24, "num_updates": 4, "batch_size": 4, "warmup": 1}
        teacher |= {"category_weights": {}}
    changes = {"capabilities_per_update": "all", "evaluate_every": 3, "grid_every": 3}
    params = params_with(paths, data, **changes)
    paths.params.write_text(dump_yaml(data))
    teachers.run(params, paths)
    for capability in CAPABILITIES:
        cache.run(params, paths, capability)
    distill.run(params, paths)
    package = load_package(paths.student)
    assert package.image_sizes == (SQUARE, WIDE)  # that of most rows first
    assert package.meta["framing"] == {"fit": "crop", "paper": "#ffffff"}
    assert package.family.image_size == SQUARE
    for capability in CAPABILITIES:
        evaluate.run(params, paths, capability)
        found = read_evaluation(paths.evaluation(capability), capability)
        assert len(found.fields["student"].rows) == params.evaluate.num_samples
        rows = read_tiles(paths.evaluation_images(capability))
        assert len(rows) == params.evaluate.num_samples
    report.run(params, paths)
    assert paths.report_page.exists()
    student = open_student(paths.student)
    assert shapes(student.generate(["a red circle"])) == [SQUARE[::-1]]
    assert shapes(student.generate(["a red circle"], size=WIDE)) == [WIDE[::-1]]
    wide, square = (
        Image.fromarray(np.full((*size, 3), 99, np.uint8)) for size in ((30, 44), (30, 30))
    )
    assert shapes(student.edit([wide, square], ["remove the blue square"] * 2)) == [
        WIDE[::-1],
        SQUARE[::-1],
    ]
