"""Recipes in files: what goes in comes out, other tools read it, and strangers' is checked."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from danceflow.errors import DataError
from danceflow.pictures import decode
from danceflow.studio.pixels import digest_of
from danceflow.studio.recipe import (
    MAX_EMBEDDED,
    Recipe,
    as_a1111,
    embedded,
    read_recipe,
    with_recipe,
)

RECIPE = Recipe(
    prompt="a red circle, <b>é</b>",
    capability="edit",
    seed=7,
    steps=16,
    guidance=1.5,
    size="32x32",
    model="scenes",
    version=3,
    digest="ab" * 32,
    sources=("cd" * 32,),
    has_mask=True,
)
RED, MASK = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32), 255)


def test_a_file_brings_back_recipe_source_and_mask() -> None:
    source = Image.effect_noise((32, 32), 80).convert("RGB")
    found = decode(with_recipe(RED, RECIPE, [source], MASK))
    assert found.tobytes() == RED.tobytes()
    carried = read_recipe(found)
    assert carried is not None
    assert carried.recipe == RECIPE
    assert digest_of(embedded(carried.sources[0])) == digest_of(source)
    assert carried.mask is not None
    assert embedded(carried.mask).convert("L").tobytes() == MASK.tobytes()


def test_other_tools_read_prompt_and_numbers() -> None:
    texts = decode(with_recipe(RED, RECIPE)).text
    prompt, negative, values = texts["parameters"].split("\n")
    assert (prompt, negative) == (RECIPE.prompt, "Negative prompt:")
    named = dict(item.split(": ") for item in values.split(", "))
    assert named == {
        "Steps": "16",
        "Sampler": "Euler",
        "CFG scale": "1.5",
        "Seed": "7",
        "Size": "32x32",
        "Model hash": "ababababab",
        "Model": "scenes v3",
    }
    graph = json.loads(texts["prompt"])
    (sampler,) = [node["inputs"] for node in graph.values() if node["class_type"] == "KSampler"]
    assert (sampler["seed"], sampler["steps"], sampler["cfg"]) == (7, 16, 1.5)
    assert graph[sampler["positive"][0]]["inputs"]["text"] == RECIPE.prompt
    links = [link for node in graph.values() for link in node["inputs"].values()]
    assert all(link[0] in graph for link in links if isinstance(link, list))


def test_large_sources_are_named_and_not_carried() -> None:
    large = Image.effect_noise((1200, 1200), 100).convert("RGB")
    data = with_recipe(RED, RECIPE, [large], MASK)
    assert len(data) < MAX_EMBEDDED
    carried = read_recipe(decode(data))
    assert carried is not None
    assert (carried.sources, carried.mask) == ((), None)
    assert carried.recipe.sources == RECIPE.sources


def test_a_picture_of_elsewhere_has_none() -> None:
    assert read_recipe(RED) is None


def stranger(text: str) -> Image.Image:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("danceflow", text)
    buffer = io.BytesIO()
    RED.save(buffer, "PNG", pnginfo=info)
    return decode(buffer.getvalue())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "recipe cannot be read"),
        ('{"recipe": {"prompt": "a"}}', "recipe.capability"),
        (json.dumps({"recipe": RECIPE.model_dump() | {"seed": -1}}), "recipe.seed"),
        (json.dumps({"recipe": RECIPE.model_dump() | {"more": 1}}), "recipe.more"),
        ("[" * 100_000, "recipe cannot be read"),
    ],
)
def test_what_no_studio_wrote_is_told(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_recipe(stranger(text))


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60).filter(lambda text: "\x00" not in text and "\ud800" not in text))
def test_every_prompt_survives(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return
    recipe = RECIPE.model_copy(update={"prompt": prompt})
    carried = read_recipe(decode(with_recipe(RED, recipe)))
    assert carried is not None
    assert carried.recipe.prompt == prompt


def test_a_name_with_commas_and_colons_does_not_break_the_line_of_values() -> None:
    told = as_a1111(RECIPE.model_copy(update={"model": "a, b: c"}))
    assert told.splitlines()[-1].endswith("Model: a  b  c v3")
