"""A student whose output is known in closed form, in place of a trained one."""

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.fields import (
    Condition,
    GuidedField,
    Sources,
    VelocityField,
    as_sources,
    shifted_grid,
)
from danceflow.models.frozen.reading import Reading

SIZE = 8
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class ColourFamily:
    """Pixels are latents; a prompt begins with a colour; the null prompt is black."""

    name = "colour"
    max_sources = 3
    latent_shape = (3, SIZE, SIZE)

    @property
    def image_size(self) -> tuple[int, int]:
        return self.latent_shape[1:]

    def sized(self, height: int, width: int) -> "ColourFamily":
        made = ColourFamily()
        made.latent_shape = (3, height, width)
        return made

    def condition(
        self,
        prompts: Sequence[str],
        sources: Sources = None,
        images: Sources = None,
    ) -> Condition:
        colours = torch.tensor([COLOURS[prompt.split()[0]] for prompt in prompts])[:, :, None, None]
        blank = torch.zeros(len(prompts), *self.latent_shape)
        source = blank if sources is None else torch.stack(as_sources(sources)).mean(0)
        return Condition({"colour": colours, "source": source})

    def null(self, condition: Condition) -> Condition:
        return Condition({name: torch.zeros_like(item) for name, item in condition.tensors.items()})

    def frozen_networks(self) -> dict[str, torch.nn.Module]:
        return {}

    def guided(self, field: VelocityField, scale: float) -> VelocityField:
        return GuidedField(field, self.null, scale)

    def unknown_words(self, prompt: str) -> list[str]:
        return [word for word in prompt.split() if word not in COLOURS]

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:
        words = prompt.split(" ")
        window = 3 if edits else 2
        kept, dropped = " ".join(words[:window]), " ".join(words[window:])
        num_read = min(window, len(words))
        return (Reading("text_encoder", (), len(words), num_read, kept, dropped),)

    def grid(self, num_steps: int) -> Tensor:
        return shifted_grid(num_steps, 1.0)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        return images_B3HW

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW.clamp(0, 1)


@dataclass(frozen=True)
class ColourPackage:
    """Its field leads every noise to strength * (colour + source) / 2 + (1 - strength) * noise."""

    strength: float
    family: ColourFamily = field(default_factory=ColourFamily)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    meta: dict[str, Any] = field(default_factory=lambda: {"num_steps": 4})
    reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        return tuple(map(tuple, self.meta.get("image_sizes", [self.family.image_size])))

    def field(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        target = (condition.tensors["colour"] + condition.tensors["source"]) / 2
        sigma = sigma_B[:, None, None, None].clamp_min(1e-6)
        return self.strength * (z_BCHW - target) / sigma


def load_package(folder: Path, device: str) -> ColourPackage:
    try:
        data = json.loads((folder / "weights.json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder}: {error}") from None
    meta = {"num_steps": 4, **data.get("meta", {})}
    return ColourPackage(data["strength"], meta=meta)


def read_manifest(folder: Path) -> dict[str, Any]:
    return dict(load_package(folder, "cpu").meta)


@pytest.fixture
def colour_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("danceflow.models.package")
    module.load_package = load_package  # type: ignore[attr-defined]
    module.read_manifest = read_manifest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "danceflow.models.package", module)


@pytest.fixture
def student_folder(tmp_path: Path, colour_package: None) -> Path:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "weights.json").write_text('{"strength": 1.0}')
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the family's encoder is given, call by call."""
    given: list[Tensor] = []

    def encode(_: ColourFamily, images_B3HW: Tensor) -> Tensor:
        given.append(images_B3HW.clone())
        return images_B3HW

    monkeypatch.setattr(ColourFamily, "encode", encode)
    return given
