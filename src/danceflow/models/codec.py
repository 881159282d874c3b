"""Images to latents and back."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from danceflow.errors import WeightsError


class Codec(Protocol):
    """Maps images [B, 3, H, W] in [0, 1] to latents and back."""

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Returns the latents, float32."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Returns the images, float32 clamped to [0, 1]."""
        ...

    def save(self, folder: Path) -> None:
        """Writes what ``load_codec`` needs to ``folder``."""
        ...


class PixelCodec:
    """Latents are the pixels, scaled to [-1, 1]."""

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Returns the images scaled to [-1, 1]."""
        return images_B3HW * 2 - 1

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Returns the latents scaled back to [0, 1]."""
        return (latents_BCHW / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Writes nothing: a folder without ``vae`` is a pixel-space model."""


class VaeCodec:
    """``diffusers.AutoencoderKL`` with SD3's latent scale and shift; encodes to the mean."""

    def __init__(self, vae: Any) -> None:
        """Takes a loaded autoencoder and freezes it."""
        self.vae = vae.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Returns the normalised latent mean."""
        latents: Tensor = self.vae.encode(images_B3HW * 2 - 1).latent_dist.mean.float()
        return (latents - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Returns the decoded images."""
        latents = latents_BCHW / self.vae.config.scaling_factor + self.vae.config.shift_factor
        images: Tensor = self.vae.decode(latents).sample.float()
        return (images / 2 + 0.5).clamp(0, 1)

    def save(self, folder: Path) -> None:
        """Writes the autoencoder to ``folder/vae``."""
        self.vae.save_pretrained(folder / "vae")


def load_codec(folder: Path) -> Codec:
    """Returns the codec of a pipeline folder: its ``vae``, or pixels if it has none."""
    if not (folder / "vae").is_dir():
        return PixelCodec()
    from diffusers import AutoencoderKL

    try:
        return VaeCodec(AutoencoderKL.from_pretrained(folder / "vae"))
    except Exception as error:
        raise WeightsError(f"{folder / 'vae'}: cannot read the autoencoder: {error}") from error
