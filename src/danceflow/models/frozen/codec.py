"""Images to latents and back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from danceflow.models.weights import load_pretrained


class Codec(Protocol):
    """Maps images [B, 3, H, W] in [0, 1] to latents and back, where its own weights are."""

    factor: int
    """Image pixels per latent pixel, along each side."""

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the latents, float32."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the images, float32 clamped to [0, 1]."""
        ...

    def to(self, device: torch.device | str, /) -> "Codec":
        """Move the codec to ``device`` and return it."""
        ...

    def networks(self) -> dict[str, nn.Module]:
        """Return its networks by the names of their folders."""
        ...

    def save(self, folder: Path) -> None:
        """Write what ``load_codec`` needs to ``folder``."""
        ...


class PixelCodec:
    """Latents are the pixels, scaled to [-1, 1]."""

    factor = 1

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the images scaled to [-1, 1]."""
        return images_B3HW * 2 - 1

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the latents scaled back to [0, 1]."""
        return (latents_BCHW / 2 + 0.5).clamp(0, 1)

    def to(self, _device: torch.device | str) -> "PixelCodec":
        """Return this object, which has no weights."""
        return self

    def networks(self) -> dict[str, nn.Module]:
        """Return nothing: there are no weights."""
        return {}

    def save(self, folder: Path) -> None:
        """Write nothing: a folder without ``vae`` is a pixel-space model."""


class VaeCodec:
    """``diffusers.AutoencoderKL`` with its latent scale and shift; encodes to the mean."""

    def __init__(self, vae: Any) -> None:
        """Take a loaded float32 autoencoder and freeze it."""
        self.vae = vae.eval().requires_grad_(False)
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.shift_factor or 0.0)
        self.factor = vae_factor(vae.config)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the normalised latent mean."""
        pixels = images_B3HW.to(self.vae.device) * 2 - 1
        latents: Tensor = self.vae.encode(pixels).latent_dist.mean
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the decoded images."""
        latents = latents_BCHW.to(self.vae.device) / self.scale + self.shift
        images: Tensor = self.vae.decode(latents).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def to(self, device: torch.device | str) -> "VaeCodec":
        """Move the autoencoder to ``device`` and return this object."""
        self.vae.to(device)
        return self

    def networks(self) -> dict[str, nn.Module]:
        """Return the autoencoder by the name of its folder."""
        return {"vae": self.vae}

    def save(self, folder: Path) -> None:
        """Write the autoencoder to ``folder/vae``."""
        self.vae.save_pretrained(folder / "vae")


def vae_factor(config: Mapping[str, Any]) -> int:
    """Return image pixels per latent pixel, along a side, of an ``AutoencoderKL``."""
    return int(2 ** (len(config["block_out_channels"]) - 1))


def load_codec(folder: Path) -> Codec:
    """Return the codec of a pipeline folder: its ``vae``, or pixels if it has none.

    Raises:
        WeightsError: if the autoencoder cannot be read.
    """
    if not (folder / "vae").is_dir():
        return PixelCodec()
    return load_vae(folder)


def load_vae(folder: Path) -> VaeCodec:
    """Return the codec of the ``AutoencoderKL`` in ``folder / "vae"``.

    Raises:
        WeightsError: if the autoencoder is missing or cannot be read.
    """
    from diffusers import AutoencoderKL

    return VaeCodec(load_pretrained(AutoencoderKL, folder / "vae", torch_dtype=torch.float32))
