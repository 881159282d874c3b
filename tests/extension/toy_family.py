"""A family of two layers: what one file must hold that everything else runs with.

It has no ``layout``, so that ``danceflow plan`` alone does not know it.
"""

import copy
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import (
    Condition,
    GuidedField,
    Sources,
    VelocityField,
    as_sources,
    normal,
    shifted_grid,
)
from danceflow.models.frozen.reading import Reading
from danceflow.models.weights import WEIGHTS_FILE, load_state, read_json, read_state

_SETTINGS = "toy.json"
_WIDTH = 8


class ToyNetwork(nn.Module):
    """Every pixel moves by its own colours, the source's, the noise level and the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(7, 3, 1)
        self.read = nn.Linear(_WIDTH, 3)

    def forward(self, inputs_BCHW: Tensor, prompt_BD: Tensor) -> Tensor:
        result: Tensor = self.mix(inputs_BCHW) + self.read(prompt_BD)[:, :, None, None]
        return result


class ToyField:
    """v(z, sigma, condition) of one network."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        sigma = sigma_B[:, None, None, None].expand(-1, 1, *z_BCHW.shape[2:])
        inputs = torch.cat([z_BCHW, condition.tensors["source"], sigma], dim=1)
        prompt = condition.tensors["prompt"].sum(1)
        velocity: Tensor = self.backbone(inputs.to(dtype), prompt.to(dtype)).float()
        return velocity


class ToyFamily:
    """Words are drawn vectors, latents are pixels."""

    name = "toy"
    takes_source = True
    max_sources = 1
    sees_source = False
    adapter_targets = ("mix", "read")
    shift = 1.0

    def __init__(self, height: int, width: int) -> None:
        self.image_size, self.latent_shape = (height, width), (3, height, width)

    @classmethod
    def new(cls, config: Mapping[str, Any], words: Sequence[str], seed: int) -> "ToyFamily":
        side = config["transformer"]["sample_size"]
        return cls(side, side)

    @classmethod
    def from_folder(cls, folder: Path, settings: Path | None = None) -> "ToyFamily":
        return cls(*read_json((settings or folder) / _SETTINGS)["image_size"])

    def save_frozen(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SETTINGS).write_text(json.dumps({"image_size": self.image_size}))

    def save_settings(self, folder: Path) -> None:
        self.save_frozen(folder)

    def frozen_networks(self) -> dict[str, nn.Module]:
        return {}

    def sized(self, height: int, width: int) -> "ToyFamily":
        if min(height, width) < 1:
            raise WeightsError(f"sides are multiples of 1 pixel, not {height} x {width}")
        resized = copy.copy(self)
        resized.image_size, resized.latent_shape = (height, width), (3, height, width)
        return resized

    def shifted(self, shift: float) -> "ToyFamily":
        changed = copy.copy(self)
        changed.shift = shift
        return changed

    def editing(self) -> "ToyFamily":
        return self

    def condition(
        self,
        prompts: Sequence[str],
        sources: Sources = None,
        images: Sources = None,
    ) -> Condition:
        longest = max(1, *(len(prompt.split()) for prompt in prompts))
        prompt_BLD = torch.zeros(len(prompts), longest, _WIDTH)
        for row, prompt in enumerate(prompts):
            if words := prompt.split():
                seeds = [zlib.crc32(word.encode()) for word in words]
                prompt_BLD[row, : len(words)] = normal((_WIDTH,), seeds)
        blank = torch.zeros(len(prompts), *self.latent_shape)
        source = blank if sources is None else as_sources(sources)[0]
        return Condition({"prompt": prompt_BLD, "source": source})

    def null(self, condition: Condition) -> Condition:
        prompt = torch.zeros_like(condition.tensors["prompt"])
        return Condition({**condition.tensors, "prompt": prompt})

    def unknown_words(self, prompt: str) -> list[str]:
        return []

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:
        tokens = tuple(zlib.crc32(word.encode()) for word in prompt.split())
        return (Reading("words", tokens, len(tokens), len(tokens), prompt, ""),)

    def field(self, backbone: nn.Module) -> VelocityField:
        return ToyField(backbone)

    def guided(self, field: VelocityField, scale: float) -> GuidedField:
        return GuidedField(field, self.null, scale)

    def target_velocity(
        self, z_BCHW: Tensor, clean_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor
    ) -> Tensor:
        return noise_BCHW - clean_BCHW

    def grid(self, num_steps: int) -> Tensor:
        return shifted_grid(num_steps, self.shift)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        return images_B3HW * 2 - 1

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        return ((latents_BCHW + 1) / 2).clamp(0, 1).float()

    def new_backbone(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ToyNetwork()

    def load_backbone(self, folder: Path) -> nn.Module:
        backbone = ToyNetwork()
        load_state(backbone, self.stored_weights(folder), folder)
        return backbone

    def empty_backbone(self) -> nn.Module:
        with torch.device("meta"):
            return ToyNetwork()

    def stored_weights(self, folder: Path) -> dict[str, Tensor]:
        return read_state(folder)

    def save_backbone(self, backbone: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        state = {name: value.half().cpu() for name, value in backbone.state_dict().items()}
        save_file(state, folder / WEIGHTS_FILE)

    def export_adapter(self, backbone: nn.Module, folder: Path) -> None:
        raise WeightsError("no pipeline loads an adapter of a toy")

    def for_pipeline(self, backbone: nn.Module) -> tuple[str, nn.Module, Mapping[str, Any]]:
        raise WeightsError("no pipeline makes toys")

    def translate_adapter(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return tensors

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ToyFamily":
        return self

    def release(self) -> None:
        pass

    def fixed_texts(self) -> dict[str, Tensor]:
        return {}

    def take_fixed(self, texts: Mapping[str, Tensor]) -> None:
        pass
