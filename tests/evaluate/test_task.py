"""Tasks: the same questions and noise for every field, whatever the batch."""

import logging

import pytest
import torch
from tiny_models import awake

from danceflow.data.buckets import read_bucket
from danceflow.errors import DataError
from danceflow.evaluate.measurement import category_means
from danceflow.evaluate.task import build_task
from danceflow.fields import normal, seed_for
from danceflow.worlds.scenes import asks_for_held_out_pair
from danceflow.worlds.world import open_world

SCENES = open_world("scenes")
CAPABILITIES = ("t2i", "local_edit", "global_edit")


@pytest.fixture(scope="module")
def field(family):
    return family.field(awake(family, 4))


def dataset(prepared, name: str):
    return read_bucket(prepared[1].bucket(name), "test")


@pytest.mark.parametrize("name", CAPABILITIES)
def test_rows_are_the_first_of_each_category_and_variant(tasks, name: str) -> None:
    task = tasks[name]
    standard = [task.rows[i] for i in task.where("standard")]
    counts = category_means((row.category, 1.0) for row in standard)
    assert all(sum(r.category == c for r in standard) == 2 for c in counts)
    assert {row.variant for row in task.rows} <= {"standard", "reworded", "held_out_pair"}
    assert len({row.uid for row in task.rows}) == task.num_rows
    assert [row.prompt for row in task.rows] == [item.prompt for item in task.samples]
    assert (task.source is None) == (name == "t2i")
    assert task.noise.shape == (task.num_rows, 3, 32, 32)
    assert task.condition.num_samples == len(task.target) == task.num_rows


def test_noise_is_a_function_of_seed_and_place(prepared, tasks) -> None:
    task = tasks["t2i"]
    place = dataset(prepared, "t2i")["uid"][:].index(task.rows[3].uid)
    expected = normal((3, 32, 32), [seed_for(0, "evaluate", 0, place)])[0]
    assert torch.equal(task.noise[3], expected)


def test_more_seeds_ask_the_same_again_with_other_noise(prepared, family, tasks) -> None:
    once = build_task(
        "local_edit", dataset(prepared, "local_edit"), SCENES, family, {"standard": 2}, (5,)
    )
    twice = build_task(
        "local_edit", dataset(prepared, "local_edit"), SCENES, family, {"standard": 2}, (5, 6)
    )
    n = once.num_rows
    assert [row.uid for row in twice.rows] == [row.uid for row in once.rows] * 2
    assert [row.seed for row in twice.rows] == [5] * n + [6] * n
    assert torch.equal(twice.noise[:n], once.noise)
    assert not torch.equal(twice.noise[n:], once.noise)
    assert torch.equal(twice.source[n:], once.source)
    assert torch.equal(twice.target[n:], once.target)
    for key, value in once.condition.tensors.items():
        assert torch.equal(twice.condition.tensors[key][n:], value)
    assert twice.first_of_each("standard", 4) == [0, 1, 2, 3]


def test_purposes_have_their_own_noise(prepared, family, tasks) -> None:
    other = build_task(
        "t2i", dataset(prepared, "t2i"), SCENES, family, {"standard": 2}, purpose="other"
    )
    assert not torch.equal(other.noise, tasks["t2i"].noise[: other.num_rows])


def test_images_do_not_depend_on_the_batch(tasks, field) -> None:
    task, done = tasks["local_edit"], []
    images = torch.stack(task.images(field, 2, 3, done.append))
    assert images.shape == (task.num_rows, 3, 32, 32)
    assert sum(done) == task.num_rows
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.allclose(torch.stack(task.images(field, 2, 64)), images, atol=1e-4)
    rows = [4, 1]
    part = torch.stack(task.select(rows).images(field, 2, 3))
    assert torch.allclose(part, images[rows], atol=1e-4)


def test_a_selection_keeps_everything_together(tasks) -> None:
    task = tasks["global_edit"]
    part = task.select([2, 0])
    assert part.rows == (task.rows[2], task.rows[0])
    assert part.samples == (task.samples[2], task.samples[0])
    assert torch.equal(part.source, task.source[[2, 0]])
    assert torch.equal(part.noise, task.noise[[2, 0]])
    assert torch.equal(part.target, task.target[[2, 0]])
    assert part.condition.num_samples == 2
    empty = task.select([])
    assert empty.images(None, 2, 4) == ()


def test_first_rows_come_category_by_category(tasks) -> None:
    task = tasks["local_edit"]
    categories = [task.rows[i].category for i in task.first_of_each("standard", 8)]
    assert categories == [c for c in dict.fromkeys(categories) for _ in range(2)]
    assert len(task.first_of_each("standard", 1)) == 4
    assert task.first_of_each("unknown_words", 8) == []


def test_held_out_rows_ask_for_a_held_out_pair(tasks) -> None:
    for task in tasks.values():
        held_out = [task.samples[i] for i in task.where("held_out_pair")]
        assert held_out
        assert all(asks_for_held_out_pair(item.facts) for item in held_out)
        assert not any(
            asks_for_held_out_pair(task.samples[i].facts) for i in task.where("standard")
        )
    # "a photo of a ring" cannot ask for a yellow one.
    categories = {tasks["t2i"].samples[i].category for i in tasks["t2i"].where("held_out_pair")}
    assert categories <= {"colors", "color_attribution"}


def test_unknown_words_are_told_and_set_apart(prepared, family, caplog, monkeypatch) -> None:
    def unknown_words(prompt: str) -> list[str]:
        return [word for word in prompt.split() if word in ("photo", "remove")]

    monkeypatch.setattr(family, "unknown_words", unknown_words)
    with caplog.at_level(logging.WARNING):
        task = build_task("t2i", dataset(prepared, "t2i"), SCENES, family, {"standard": 2})
    apart = [task.rows[i] for i in task.where("unknown_words")]
    assert apart
    assert all(("photo" in row.prompt) == (row in apart) for row in task.rows)
    assert f"t2i: {len(apart)} prompts have words" in caplog.text
    assert "photo" in caplog.text
    assert "unknown_words" in caplog.text


def test_too_few_rows_are_told(prepared, family) -> None:
    with pytest.raises(DataError, match="3 rows per category were asked for"):
        build_task("t2i", dataset(prepared, "t2i"), SCENES, family, {"standard": 3})


def test_variants_that_the_data_lacks_are_left_out(prepared, family) -> None:
    rows = read_bucket(prepared[1].bucket("t2i"), "validation")
    task = build_task("t2i", rows, SCENES, family, {"standard": 1, "reworded": 1})
    assert {row.variant for row in task.rows} == {"standard"}
