"""The contract between the training loop and a model family."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError, unknown_name
from danceflow.fields import Condition, GuidedField, Sources, VelocityField
from danceflow.models.frozen.reading import Reading
from danceflow.models.layout import Layout


class ModelFamily(Protocol):
    """The frozen parts of a family (text encoders, codec, grid) around exchangeable backbones.

    A family has no loss, no optimiser and no training state. Its ``field`` normalises signs, time
    scales and parametrisation, so that every network means v(z, sigma, cond) = dz/dsigma.
    """

    name: str
    layout: Layout
    """What costs must know of it; see also the class methods that ``family_class`` names."""
    image_size: tuple[int, int]
    """Height and width in pixels of the images that ``latent_shape`` and ``grid`` are about."""
    latent_shape: tuple[int, int, int]
    takes_source: bool
    """Whether the backbone can edit."""
    max_sources: int
    """How many pictures an edit may have; 0 for a backbone that cannot edit."""
    sees_source: bool
    """Whether the prompt encoders look at the source image, and need it as pixels."""
    adapter_targets: tuple[str, ...]
    """Ends of the names of the backbone's modules that an adapter changes."""

    def sized(self, height: int, width: int) -> "ModelFamily":
        """Return this family, sharing its frozen parts, for images of another size.

        Raises:
            WeightsError: if the network cannot make images of ``height`` x ``width`` pixels.
        """
        ...

    def shifted(self, shift: float) -> "ModelFamily":
        """Return this family, sharing its frozen parts, with another shift of the sigma grid.

        Raises:
            WeightsError: if its scheduler shifts the grid by the picture's size.
        """
        ...

    def editing(self) -> "ModelFamily":
        """Return this family with a backbone that takes a source; one that does is itself.

        Its ``load_backbone`` takes the weights of one that does not, and gives the same velocities.

        Raises:
            WeightsError: if such a backbone cannot be made of this one.
        """
        ...

    def condition(
        self,
        prompts: Sequence[str],
        sources: Sources = None,
        images: Sources = None,
    ) -> Condition:
        """Return the condition of ``prompts`` and, for edits, of source images.

        Tensors of prompts are [B, L, ...], zeros behind each prompt's own length.

        Args:
            prompts: B texts.
            sources: latents [B, C, H, W] of the source images, of any size, or of the first, the
                second and the third ones; a row of zeros, and ``None``, is no source.
            images: the same images in [0, 1]; only a family that ``sees_source`` uses them.

        Raises:
            WeightsError: if a source is given that the family cannot use, or not as it needs it,
                or more of them than it takes.
        """
        ...

    def null(self, condition: Condition) -> Condition:
        """Return ``condition``, of the same shapes, with the empty prompt; the source stays."""
        ...

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of ``prompt`` that the text encoder has no token for."""
        ...

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:
        """Return how much of ``prompt`` each text encoder reads; what is dropped counts nowhere.

        Args:
            prompt: a text.
            edits: whether it is read beside a source.
        """
        ...

    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``; fp32 in and out."""
        ...

    def guided(self, field: VelocityField, scale: float) -> GuidedField:
        """Return ``field`` with the family's own classifier-free guidance; 1 is none."""
        ...

    def target_velocity(
        self, z_BCHW: Tensor, clean_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor
    ) -> Tensor:
        """Return the velocity that training on data asks for at z, [B, C, H, W] float32.

        It is eps - x up to what the field's parametrisation can express near sigma 0.
        """
        ...

    def grid(self, num_steps: int) -> Tensor:
        """Return the sigma grid for ``image_size``, [num_steps + 1] float32 from 1 to 0."""
        ...

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the latents of images in [0, 1]."""
        ...

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the images of latents, float32 clamped to [0, 1]."""
        ...

    def new_backbone(self, seed: int) -> nn.Module:
        """Return an untrained backbone, a function of ``seed`` alone."""
        ...

    def load_backbone(self, folder: Path) -> nn.Module:
        """Return the float32 backbone saved in ``folder``.

        Raises:
            WeightsError: if the weights are missing, damaged or of another shape.
        """
        ...

    def empty_backbone(self) -> nn.Module:
        """Return a backbone whose parameters have no values yet: they are on ``meta``."""
        ...

    def stored_weights(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights of the backbone saved in ``folder``, as stored and not yet in memory.

        Raises:
            WeightsError: if a file is missing or damaged.
        """
        ...

    def save_backbone(self, backbone: nn.Module, folder: Path) -> None:
        """Write ``backbone`` to ``folder`` in the family's own public format."""
        ...

    def export_adapter(self, backbone: nn.Module, folder: Path) -> None:
        """Write the student's adapter to ``folder``, as the family's stock pipelines load it."""
        ...

    def for_pipeline(self, backbone: nn.Module) -> tuple[str, nn.Module, Mapping[str, Any]]:
        """Return what a stock pipeline needs beside the frozen parts.

        Returns:
            The name of its class, the network as it takes it, and its scheduler's configuration.

        Raises:
            WeightsError: if there is no such pipeline.
        """
        ...

    def translate_adapter(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return an adapter's tensors under the names that diffusers has for the backbone.

        ``tensors`` may have the names of the model's original code. What is not known is returned
        as it is.
        """
        ...

    def save_frozen(self, folder: Path) -> None:
        """Write everything but the backbone to ``folder``; ``open_family`` reads it back."""
        ...

    def save_settings(self, folder: Path) -> None:
        """Write what ``save_frozen`` writes beside weights and tokenizers, as JSON, alone."""
        ...

    def frozen_networks(self) -> Mapping[str, nn.Module]:
        """Return the frozen networks by the names of their folders."""
        ...

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ModelFamily":
        """Keep the frozen parts on ``device``, where conditions are then made; return itself.

        Args:
            device: where to. What was not read yet is read there.
            dtype: of the prompt encoders, if they are to change it; the codec stays float32.
        """
        ...

    def release(self) -> None:
        """Give the memory of encoders back, which are read again if they are asked again.

        What decodes latents stays.
        """
        ...

    def fixed_texts(self) -> dict[str, Tensor]:
        """Return what the encoders say of texts that are no row's, such as the empty prompt."""
        ...

    def take_fixed(self, texts: Mapping[str, Tensor]) -> None:
        """Take what :meth:`fixed_texts` gave elsewhere, so that no encoder is asked here."""
        ...


FAMILIES = {
    "flux2": "danceflow.models.families.flux2:Flux2Family",
    "qwen_image": "danceflow.models.families.qwen_image:QwenImageFamily",
    "qwen_image21": "danceflow.models.families.qwen_image21:QwenImage21Family",
    "sd3": "danceflow.models.families.sd3:Sd3Family",
    "zimage": "danceflow.models.families.zimage:ZImageFamily",
}
"""Family name to ``module:class``; a family is one file and one line here."""


def family_class(name: str) -> Any:
    """Return the class of the family ``name``.

    Beside ``ModelFamily`` a class offers, without an instance:

    - ``from_folder(folder, settings)``: the family of the frozen parts in a folder, with the
      settings in another one where that is not ``None``;
    - ``new(config, words, seed)``: an untrained one, where the params file gives its sizes;
    - ``comfy_names(settings)``: the layers of the original code for ComfyUI, from the settings that
      ``save_settings`` wrote; empty where ComfyUI reads diffusers' names;
    - ``sketch(folder)``, and then ``sketch_new(config, words)``: the same without weights;
    - ``bare_backbone(transformer, factor, *, edits)``: the transformer of these arguments and the
      ends of the names that its adapters change; on torch's ``meta`` device without weights.

    Raises:
        WeightsError: for an unknown name; the message names the nearest.
    """
    if name not in FAMILIES:
        raise WeightsError(unknown_name("model family", name, FAMILIES))
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)


def layout_of(name: str) -> Layout:
    """Return the layout of the family ``name``.

    Raises:
        WeightsError: for an unknown name; the message names the nearest. Also for a family that
            says nothing of its tokens.
    """
    layout: Layout | None = getattr(family_class(name), "layout", None)
    if layout is None:
        raise WeightsError(
            f"family {name!r} has no layout of its tokens, so that its costs cannot be told; give "
            "its class one (danceflow.models.layout) and plan/models.json its usual model"
        )
    return layout


def open_family(name: str, folder: Path, settings: Path | None = None) -> ModelFamily:
    """Return the family ``name`` with the frozen parts saved in ``folder``.

    Args:
        name: of the family.
        folder: of frozen parts, or of a stock pipeline.
        settings: folder whose settings count in place of the frozen parts' own.

    Raises:
        WeightsError: for an unknown name, or frozen parts that cannot be read.
    """
    return cast(ModelFamily, family_class(name).from_folder(folder, settings))
