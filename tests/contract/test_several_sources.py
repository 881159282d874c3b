"""Edits of several pictures: from a table's row to the network, to the gallery and to a request."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from repository import ROOT
from shaped_rows import shaped_data
from stock_cases import CASES
from tiny_models import awake, shake
from tiny_stock import flux2_pipeline, stock_family
from user_rows import picture, write_jsonl

from danceflow.columns import SOURCE_COLUMNS
from danceflow.data import cache
from danceflow.data.buckets import (
    COLUMNS,
    encoded_sources,
    images_of,
    read_bucket,
    source_columns,
    sources_of,
)
from danceflow.data.cached_rows import ConditionCache
from danceflow.errors import DataError, WeightsError
from danceflow.evaluate.gallery import Answers, draw_gallery
from danceflow.evaluate.task import build_task
from danceflow.models.adapters.lora import add_student_adapter, merge_adapter, save_adapter
from danceflow.models.bring import bring_teachers
from danceflow.models.family import open_family
from danceflow.models.package import FROZEN_FOLDER, load_package, save_package
from danceflow.params.read import override, parse_params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.pictures import png_base64, png_bytes
from danceflow.registry.student import Student
from danceflow.report.page.tiles import read_tiles
from danceflow.service.asking import EditFields, rows_of
from danceflow.service.limits import Limits, RequestError
from danceflow.studio.models import Wish, rows_wished
from danceflow.train.distill import stage as distill
from danceflow.worlds import prepare
from danceflow.worlds.world import open_world

LIMITS = Limits(rows=6, steps=20, body=200_000, pixels=10_000, prompt=200, queue=24, body_s=5.0)
COUNTS = {"train": 4, "validation": 2, "test": 3}


def write_rows(folder: Path) -> None:
    """Edits of one, two and three pictures in turn, as a list, of any shape; and some to make."""
    folder.mkdir(parents=True)
    rows = []
    for split, count in COUNTS.items():
        for number in range(count):
            name = f"{split}-{number}"
            shapes = [(36, 36), (60, 30), (30, 40)][: 1 + number % 3]
            sources = []
            for place, shape in enumerate(shapes):
                sources.append(f"{name}-{place}.png")
                picture(100 * len(rows) + place, shape).save(folder / sources[-1])
            picture(100 * len(rows) + 9, (36, 36)).save(folder / f"{name}-after.png")
            row = {"part": split, "after": f"{name}-after.png"}
            texts = f"put {name} together", f"a picture of {name}"
            rows.append(
                row | {"id": name, "kind": "object_swap", "text": texts[0], "before": sources}
            )
            rows.append(row | {"id": f"{name}-t", "kind": "make", "text": texts[1], "before": None})
            picture(100 * len(rows) + 9, (36, 36)).save(folder / f"{name}-t.png")
            rows[-1]["after"] = f"{name}-t.png"
    write_jsonl(folder / "pets.jsonl", rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A project with rows of several pictures, and FLUX.2 as its teacher."""
    paths = Paths(tmp_path_factory.mktemp("several"))
    write_rows(paths.root / "data/raw/pets")
    data = shaped_data(
        ("1:1",),
        family__name="flux2",
        data__image_size=16,
        data__input__path="data/raw/pets/pets.jsonl",
    )
    sizes = {f"num_{name}": count for name, count in COUNTS.items()}
    data["data"]["buckets"] = dict.fromkeys(data["data"]["buckets"], sizes)
    data["teachers"] = {"base": {**data["teachers"]["base"], "init": "brought"}}
    for capability in data["capabilities"].values():
        capability["teacher"] = "base"
    data["distill"]["init"] = "base"
    params = parse_params(data, "test")
    prepare.run(params, paths)
    flux2_pipeline().save_pretrained(paths.root / "stock")
    bring_teachers("flux2", paths.root / "stock", {}, paths.teachers, edits=True)
    family = open_family("flux2", paths.teachers / FROZEN_FOLDER).sized(16, 16)
    return SimpleNamespace(params=params, paths=paths, family=family)


def test_a_bucket_has_as_many_columns_as_its_rows_have_pictures(made) -> None:
    edits = read_bucket(made.paths.bucket("local_edit"), "test")
    assert source_columns(edits) == ("source", "source_2", "source_3")
    assert set(read_bucket(made.paths.bucket("t2i"), "test").column_names) == set(COLUMNS)
    pictures = sources_of(edits, range(3))
    there = [[not bool(image[row].isnan().any()) for image in pictures] for row in range(3)]
    by_uid = dict(zip(edits["uid"], there, strict=True))
    assert by_uid == {
        "test-0": [True, False, False], "test-1": [True, True, False], "test-2": [True] * 3
    }  # fmt: skip
    assert all(image.shape == (3, 3, 16, 16) for image in pictures)


def test_what_is_cached_is_the_condition_of_all_pictures(made) -> None:
    cache.run(made.params, made.paths, "local_edit")
    [rows] = ConditionCache(made.paths.cache("local_edit")).groups
    dataset = read_bucket(made.paths.bucket("local_edit"), "train")
    index = torch.arange(len(dataset))
    latents, images = encoded_sources(sources_of(dataset, index.tolist()), made.family.encode)
    expected = made.family.condition(list(dataset["prompt"]), latents, images)
    found = rows.condition(index)
    assert found.tensors.keys() == expected.tensors.keys() > {"source", "source_2", "source_3"}
    field = made.family.field(awake(made.family))
    z, sigma = (
        torch.randn(len(dataset), *made.family.latent_shape),
        torch.full((len(dataset),), 0.7),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            field(z, sigma, found), field(z, sigma, expected), rtol=1e-4, atol=1e-4
        )
    cache.run(made.params, made.paths, "t2i")
    [makes] = ConditionCache(made.paths.cache("t2i")).groups
    assert makes.sources == ()


def test_a_model_of_one_picture_refuses_such_rows(made, tmp_path: Path) -> None:
    from tiny_project import write_teachers

    data = shaped_data(("1:1",), data__image_size=16, data__input__path="data/raw/pets/pets.jsonl")
    data["data"]["buckets"] = {n: b.model_dump() for n, b in made.params.data.buckets.items()}
    params, paths = parse_params(data, "test"), Paths(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/raw").symlink_to(made.paths.root / "data/raw")
    prepare.run(params, paths)
    write_teachers(params, paths)
    with pytest.raises(WeightsError, match="up to 3 pictures to edit, the model in .* takes 1"):
        cache.run(params, paths, "local_edit")
    family = open_family("sd3", paths.teachers / FROZEN_FOLDER)
    rows = open_world("rows")
    dataset = read_bucket(paths.bucket("local_edit"), "test")
    with pytest.raises(WeightsError, match="have up to 3 pictures to edit, the model takes 1"):
        build_task("local_edit", dataset, rows, family, {"standard": 3})
    with pytest.raises(DataError, match="several pictures to edit; teachers are trained here on"):
        rows.pool(dataset, "local_edit", 3, 0, {})


def test_an_evaluation_shows_all_pictures(made, tmp_path: Path) -> None:
    dataset = read_bucket(made.paths.bucket("local_edit"), "test")
    task = build_task("local_edit", dataset, open_world("rows"), made.family, {"standard": 3})
    assert task.num_further == 2
    order = [row.uid for row in task.rows]
    at = list(dataset["uid"]).index("test-2")
    for number, column in enumerate(("source_2", "source_3")):
        shown = task.further[number][order.index("test-2")]
        assert torch.equal(shown, images_of(dataset, [at], column)[0])
        assert bool((task.further[number][order.index("test-0")] == 1).all())
    part = task.select([order.index("test-2")])
    assert torch.equal(part.further[1][0], task.further[1][order.index("test-2")])
    field = made.family.field(awake(made.family, 3))
    together = task.images(field, 2, 4)
    (alone,) = part.images(field, 2, 1)
    torch.testing.assert_close(together[order.index("test-2")], alone, rtol=0, atol=1e-4)
    places = range(task.num_rows)
    answers = {
        name: Answers(places, together, [0.5] * 3) for name in ("student", "start", "teacher:base")
    }
    draw_gallery(tmp_path, task, "teacher:base", answers)
    for row in read_tiles(tmp_path):
        assert list(row.pictures)[:4] == ["source", "source_2", "source_3", "target"]


@pytest.fixture(scope="module")
def student(made, tmp_path_factory: pytest.TempPathFactory) -> Student:
    network = awake(made.family, 5)
    shake(add_student_adapter(made.family, network, rank=2, alpha=2, seed=0))
    folder = tmp_path_factory.mktemp("student")
    save_package(
        folder,
        made.family,
        merge_adapter(network),
        {"num_steps": 2, "image_sizes": [made.family.image_size]},
    )
    return Student(load_package(folder))


def test_a_student_is_asked_with_several_pictures(student: Student) -> None:
    pictures = [picture(seed, (36, 36)) for seed in (1, 2, 3)]
    assert student.max_sources == 3
    prompts = ["put them together", "put them together"]
    one, three = student.edit([pictures[:1], pictures], prompts)
    [swapped] = student.edit([[pictures[0], pictures[2], pictures[1]]], prompts[:1])
    [alone] = student.edit(pictures[:1], prompts[:1])
    assert alone.tobytes() == one.tobytes()
    assert len({image.tobytes() for image in (one, three, swapped)}) == 3
    with pytest.raises(Exception, match="4 pictures are given, this student edits 3 pictures"):
        student.edit([[*pictures, pictures[0]]], prompts[:1])


def test_a_request_may_send_several_pictures(student: Student) -> None:
    pictures = [picture(seed, (36, 36)) for seed in (1, 2, 3)]
    text = [png_base64(png_bytes(image)) for image in pictures]
    prompts = ("one way", "another way")
    body = {"prompts": prompts, "images": text[:1], "images_2": text[1:], "seed": 7}
    fields = EditFields.model_validate_json(json.dumps(body))
    rows = rows_of(fields, student, LIMITS)
    expected = student.edit(
        [[pictures[0], pictures[1]], [pictures[0], pictures[2]]], prompts, seed=7
    )
    found = student.make(rows)
    assert [image.tobytes() for image in found] == [image.tobytes() for image in expected]
    broken = EditFields.model_validate_json(json.dumps({**body, "images_3": ["no picture", "x"]}))
    with pytest.raises(RequestError, match=r"images_3\[0\]: "):
        rows_of(broken, student, LIMITS)


def test_the_studio_asks_with_several_pictures(student: Student) -> None:
    pictures = [picture(seed, (36, 36)) for seed in (1, 2, 3)]
    wish = Wish("put them together", pictures[0], (7,), further=tuple(pictures[1:]))
    rows, seen = rows_wished(student, wish)
    expected = student.edit([pictures], ["put them together"], seed=7)
    assert [image.tobytes() for image in student.make(rows)] == [expected[0].tobytes()]
    assert seen is not None
    assert seen.size == rows[0].further[1].size


# The recipes of networks that take several pictures, at small sizes in this process -------------

SMALL: dict[str, Any] = {
    "run.device": "cpu",
    "run.dtype": "float32",
    "run.num_threads": 1,
    "data.image_size": 32,
    "data.input.min_side": 8,
    "data.input.num_shards": 1,
    "cache.num_samples": 2,
    "cache.num_steps": 2,
    "distill.num_steps": 2,
    "distill.lora_rank": 2,
    "distill.num_updates": 1,
    "distill.batch_size": 2,
    "distill.evaluate_samples": 1,
    "evaluate.num_steps": 2,
    "tracking.enabled": False,
}


@pytest.mark.parametrize(
    ("recipe", "stock"),
    [("qwen_image_edit_plus", "qwen_image_edit_plus"), ("qwen_image_21", "qwen_image21")],
)
def test_a_recipe_of_several_pictures_goes_through_cache_and_an_update(
    tmp_path: Path, recipe: str, stock: str
) -> None:
    data = override(read_yaml(ROOT / "recipes" / f"{recipe}.yaml"), SMALL)
    sizes = {f"num_{name}": 2 for name in COUNTS}
    data["data"]["buckets"] = dict.fromkeys(data["data"]["buckets"], sizes)
    params, paths = parse_params(data, recipe), Paths(tmp_path)
    columns = params.data.input.columns
    taken = [columns[name] for name in SOURCE_COLUMNS if name in columns]
    folder = (tmp_path / params.data.input.path).parent
    folder.mkdir(parents=True)
    with (folder / "edits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["task", "instruction", *taken, "after"])
        writer.writeheader()
        for number in range(24):
            task = list(params.data.buckets)[number % 2]
            given = [] if task == "t2i" else taken
            row = {"task": task, "instruction": f"{task} number {number}"}
            for place, column in enumerate([*given, "after"]):
                row[column] = f"{number}-{column}.png"
                picture(10 * number + place, (36, 36)).save(folder / row[column])
            writer.writerow(row)
    case = CASES[stock]
    family = stock_family(case.family, case.build(), tmp_path / "stock").editing()
    loras = {}
    for seed, name in enumerate(n for n, t in params.teachers.items() if t.adapter_rank):
        network = family.load_backbone(tmp_path / "stock" / "transformer")
        shake(add_student_adapter(family, network, rank=2, alpha=2, seed=seed), seed)
        save_adapter(network, loras.setdefault(name, tmp_path / name))
    bring_teachers(case.family, tmp_path / "stock", loras, paths.teachers, edits=True)
    prepare.run(params, paths)
    for name in params.capabilities:
        cache.run(params, paths, name)
    edit = list(params.capabilities)[-1]
    (rows,) = ConditionCache(paths.cache(edit)).groups
    assert len(rows.sources) == len(taken)
    distill.run(params, paths)
    told = [json.loads(line) for line in (paths.distill_report / "metrics.jsonl").open()]
    losses = [row["loss"] for row in told if "loss" in row]
    assert losses
    assert min(losses) > 0
    assert load_package(paths.student).family.max_sources == 3
