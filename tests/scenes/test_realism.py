"""The realism score separates shaded from flat renderings, whatever else an image shows."""

from random import Random

import pytest
import torch

from danceflow.scenes.realism import score_realism
from danceflow.scenes.render import render
from danceflow.scenes.world import Object, Scene, random_scene

RNG = Random(5)
SCENES = [random_scene(RNG, 1 + i % 4, held_out=i % 3 == 0) for i in range(120)]
FLAT, SHADED = render(SCENES), render(SCENES, rendering="shaded")


def eight_bits(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round() / 255


def noisy(images: torch.Tensor, level: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).clamp(0, 1)


def test_flat_scenes_have_none_and_shaded_scenes_all_of_it() -> None:
    assert score_realism(FLAT) == [0.0] * 120
    assert score_realism(SHADED) == pytest.approx([1.0] * 120, abs=1e-4)
    assert max(score_realism(eight_bits(FLAT))) < 0.02
    assert min(score_realism(eight_bits(SHADED))) > 0.98


def test_half_the_shading_is_half_the_score() -> None:
    assert score_realism((FLAT + SHADED) / 2) == pytest.approx([0.5] * 120, abs=1e-3)


def test_shading_from_the_other_side_is_none() -> None:
    assert max(score_realism((2 * FLAT - SHADED).clamp(0, 1))) < 0.1


def test_noise_is_no_shading_and_hides_it() -> None:
    assert sum(score_realism(noisy(FLAT, 0.05))) / 120 < 0.1
    clear, faint = (sum(score_realism(noisy(SHADED, level))) / 120 for level in (0.01, 0.05))
    assert faint < clear < 1.0
    assert faint > 0.3


def test_the_shading_of_another_scene_does_not_count() -> None:
    """What is shown decides which shading is right: a dark corner alone earns nothing."""
    empty = Scene("beige", ())
    assert score_realism(render([empty], rendering="shaded")) == [0.0]
    scene, other = Scene("beige", (Object(0, "square", "red"),)), Object(15, "ring", "blue")
    shadow = render([scene.with_object(other)], rendering="shaded")
    moved = render([scene.with_object(other)]) + (SHADED - FLAT)[:1]
    assert score_realism(moved)[0] < 0.3 < score_realism(shadow)[0]
