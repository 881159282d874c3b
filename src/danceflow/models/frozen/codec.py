"""Images to latents and back."""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from danceflow.models.frozen.part import Part, copy_network, half_of
from danceflow.models.weights import CONFIG_FILE, read_json

_ENCODER, _DECODER = ("encoder", "quant_conv"), ("decoder", "post_quant_conv")


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

    def release(self) -> None:
        """Give back what only encoding needs, until it is asked again."""
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

    def release(self) -> None:
        """Do nothing: there are no weights."""

    def save(self, folder: Path) -> None:
        """Write nothing: a folder without ``vae`` is a pixel-space model."""


class Halves:
    """The two halves of an autoencoder of diffusers, float32; each is read when it is first asked.

    Attributes:
        config: of the autoencoder.
    """

    def __init__(self, network_class: Any, folder: Path) -> None:
        """Take the folder of an autoencoder; its weights are read later.

        Raises:
            WeightsError: if its configuration cannot be read.
        """
        given = read_json(folder / CONFIG_FILE)
        known = inspect.signature(network_class.__init__).parameters
        defaults = {name: argument.default for name, argument in known.items() if name != "self"}
        self.config = SimpleNamespace(**{**defaults, **given})
        self.folder = folder
        self._encoder = Part(partial(half_of, network_class, folder, _DECODER), folder)
        self._decoder = Part(partial(half_of, network_class, folder, _ENCODER), folder)

    @property
    def encoder(self) -> Any:
        """The autoencoder, which can encode alone."""
        return self._encoder.network

    @property
    def decoder(self) -> Any:
        """The autoencoder, which can decode alone."""
        return self._decoder.network

    @property
    def is_read(self) -> tuple[bool, bool]:
        """Whether the encoder and the decoder are in memory."""
        return self._encoder.is_read, self._decoder.is_read

    def to(self, device: torch.device | str) -> None:
        """Keep both halves on ``device``."""
        self._encoder.to(device)
        self._decoder.to(device)

    @property
    def device(self) -> torch.device:
        """Where both halves compute."""
        return self._encoder.device

    def release(self) -> None:
        """Give the encoder's memory back until it is asked again."""
        self._encoder.release()

    def save(self, folder: Path) -> None:
        """Copy the autoencoder to ``folder``."""
        copy_network(self.folder, folder)


class HalvedCodec:
    """What codecs of two halves have in common.

    Attributes:
        halves: the autoencoder.
    """

    def __init__(self, halves: Halves) -> None:
        """Take the autoencoder."""
        self.halves = halves

    def to(self, device: torch.device | str) -> Self:
        """Keep the autoencoder on ``device`` and return this object."""
        self.halves.to(device)
        return self

    def release(self) -> None:
        """Give the encoder's memory back until it is asked again; pictures are still decoded."""
        self.halves.release()

    def networks(self) -> dict[str, nn.Module]:
        """Return both halves of the autoencoder."""
        return {"vae/encoder": self.halves.encoder, "vae/decoder": self.halves.decoder}

    def save(self, folder: Path) -> None:
        """Write the autoencoder to ``folder/vae``."""
        self.halves.save(folder / "vae")


class VaeCodec(HalvedCodec):
    """``diffusers.AutoencoderKL`` with its latent scale and shift; encodes to the mean."""

    def __init__(self, halves: Halves) -> None:
        """Take the autoencoder."""
        super().__init__(halves)
        self.scale = float(halves.config.scaling_factor)
        self.shift = float(halves.config.shift_factor or 0.0)
        self.factor = vae_factor(vars(halves.config))

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the normalised latent mean."""
        pixels = images_B3HW.to(self.halves.device) * 2 - 1
        latents: Tensor = self.halves.encoder.encode(pixels).latent_dist.mean
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the decoded images."""
        latents = latents_BCHW.to(self.halves.device) / self.scale + self.shift
        images: Tensor = self.halves.decoder.decode(latents).sample
        return (images / 2 + 0.5).clamp(0, 1)


class FrameCodec(HalvedCodec):
    """What video autoencoders have in common: single frames, normalised per channel."""

    def normalised(self, pictures_BCHW: Tensor) -> Tensor:
        """Return the normalised latent mode of pictures in [0, 1]."""
        frames = (pictures_BCHW * 2 - 1).unsqueeze(2)
        latents = self.halves.encoder.encode(frames).latent_dist.mode()
        mean, deviation = self._statistics(latents)
        normalised: Tensor = ((latents - mean) / deviation).squeeze(2)
        return normalised

    def frames(self, latents_BCHW: Tensor) -> Tensor:
        """Return the decoded pictures in [0, 1], with every channel that the network has."""
        latents = latents_BCHW.to(self.halves.device).unsqueeze(2)
        mean, deviation = self._statistics(latents)
        pictures: Tensor = self.halves.decoder.decode(latents * deviation + mean).sample[:, :, 0]
        return (pictures / 2 + 0.5).clamp(0, 1)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [1, C, 1, 1, 1]."""
        config, shape = self.halves.config, (1, -1, 1, 1, 1)
        mean = torch.tensor(config.latents_mean).view(shape).to(latents)
        return mean, torch.tensor(config.latents_std).view(shape).to(latents)


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

    return VaeCodec(Halves(AutoencoderKL, folder / "vae"))
