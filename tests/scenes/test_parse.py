"""The parser reads every rendered scene without an error, and ever fewer of damaged ones."""

from dataclasses import replace
from random import Random

import pytest
import torch

from danceflow.scenes.parse import parse
from danceflow.scenes.prompts import CATEGORIES, draw_sample
from danceflow.scenes.render import render, render_codes
from danceflow.scenes.world import STYLES, Object, Scene, random_scene

NUM_SCENES = 2000
CHUNK = 1000


def every_kind(count: int) -> torch.Tensor:
    """Codes of scenes of 1 to 4 objects in every style, some with held-out pairs or equal ones."""
    rng, codes = Random(11), []
    while len(codes) < count:
        number = len(codes)
        scene = random_scene(rng, 1 + number % 4, held_out=number % 3 == 0)
        if number % 10 == 9:  # as counting prompts have them
            first = scene.objects[0]
            scene = replace(
                scene, objects=tuple(replace(first, cell=o.cell) for o in scene.objects)
            )
        codes.append(replace(scene, style=STYLES[number // 4 % len(STYLES)]).codes())
    return torch.tensor(codes)


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return every_kind(NUM_SCENES)


def eight_bits(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8).float() / 255


def accuracy(codes: torch.Tensor, damage, lit="flat", **assumed) -> float:
    """Share of scenes that are read without any error."""
    right = 0
    for start in range(0, len(codes), CHUNK):
        part = codes[start : start + CHUNK]
        images = damage(render_codes(part, 32, lit))
        right += int((parse(images, **assumed).codes() == part).all(1).sum())
    return right / len(codes)


@pytest.mark.parametrize("damage", [lambda images: images, eight_bits], ids=["float", "8-bit"])
def test_every_rendered_scene_is_read_right(codes, damage) -> None:
    assert accuracy(codes, damage) == 1.0


@pytest.mark.parametrize("lit", ["flat", "shaded"])
def test_every_scene_is_read_right_however_it_is_lit(codes, lit: str) -> None:
    assert accuracy(codes, eight_bits, lit, rendering=None) == 1.0


def test_every_shape_colour_and_background_is_told_apart_when_shaded() -> None:
    codes = torch.tensor(
        [
            [background, 0, *(code if cell == 5 else 0 for cell in range(16))]
            for background in range(6)
            for code in range(1, 37)
        ]
    )
    images = eight_bits(render_codes(codes, 32, "shaded"))
    for rendering in ("shaded", None):
        reading = parse(images, style="plain", rendering=rendering)
        assert torch.equal(reading.codes(), codes)
        assert reading.explained[:, 5].min() > 0.95


def test_targets_of_every_category_are_read_right() -> None:
    samples = [
        draw_sample(Random(f"{category}/{i}"), category, split, variant)
        for categories in CATEGORIES.values()
        for category in categories
        for split, variant in (
            ("train", "standard"),
            ("test", "standard"),
            ("test", "reworded"),
            ("test", "held_out_pair"),
        )
        for i in range(8)
    ]
    codes = torch.tensor([sample.target.codes() for sample in samples])
    assert accuracy(codes, eight_bits) == 1.0


def test_other_sizes_are_read_right(codes) -> None:
    part = codes[:200]
    assert torch.equal(parse(render_codes(part, 64)).codes(), part)


@pytest.mark.parametrize("style", STYLES)
def test_a_known_style_is_read_right(codes, style: str) -> None:
    part = codes[codes[:, 1] == STYLES.index(style)][:100]
    assert torch.equal(parse(render_codes(part, 32), style=style).codes(), part)


def noisy(level: float):
    def damage(images: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + level * noise).clamp(0, 1)

    return damage


def blurred(width: int):
    def damage(images: torch.Tensor) -> torch.Tensor:
        for _ in range(width):
            images = torch.nn.functional.avg_pool2d(
                torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1
            )
        return images

    return damage


@pytest.mark.parametrize(
    ("damage", "levels"),
    [(noisy, (0.0, 0.02, 0.06, 0.12, 0.25, 0.5)), (blurred, (0, 1, 2, 4, 8))],
    ids=["noise", "blur"],
)
def test_reading_falls_with_damage(codes, damage, levels) -> None:
    found = [accuracy(codes[:500], damage(level)) for level in levels]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.05
    assert any(0.05 < value < 0.95 for value in found), found


def test_a_blob_is_no_shape() -> None:
    image = render([Scene("white", (Object(5, "circle", "red"),))])[0]
    half = image.clone()
    half[:, 8:16, 8:12] = image[:, 0, 0, None, None]  # only the right half of the circle is left
    reading = parse(half[None], style="plain")
    assert int(reading.shape[0, 5]) == -2
    assert float(reading.explained[0, 5]) < 0.8
    assert int(reading.codes()[0, 2 + 5]) == 0


def test_a_plain_page_holds_nothing() -> None:
    reading = parse(render([Scene("navy", ())]), style="plain")
    assert (reading.shape == -1).all()
    assert (reading.explained == 1).all()
