"""How each stock pipeline is asked for what the families compute: one case per pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from tiny_stock import (
    flux2_pipeline,
    qwen_image21_pipeline,
    qwen_image_pipeline,
    zimage_pipeline,
)
from torch import Tensor

SOURCE_SIDE = 64
"""The stock pipelines refuse smaller source images."""


def picture(seed: int, size: tuple[int, int] = (SOURCE_SIDE, SOURCE_SIDE)) -> Tensor:
    """A source image [1, 3, height, width] of black and white, which no rounding changes."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 2, (1, 3, size[0] // 4, size[1] // 4), generator=generator).float()
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


Given = Tensor | list[Tensor] | None
"""One source image, several, or none."""


def to_pil(image_13HW: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((image_13HW[0] * 255).byte().permute(1, 2, 0).numpy())


def all_to_pil(source: Given) -> list[Any]:
    if source is None:
        return []
    return [to_pil(item) for item in (source if isinstance(source, list) else [source])]


@dataclass(frozen=True)
class StockCase:
    """One stock pipeline.

    Attributes:
        family: name of the family that opens its folder.
        build: makes the pipeline; scheduler options may be given.
        call: runs it: (pipeline, prompts, noise, guidance, size, sources or None, **options).
        edits: whether it takes a source image.
        creates: whether it makes images without one.
        scheduler: options with which its grid is tested.
    """

    family: str
    build: Callable[..., Any]
    call: Callable[..., Any]
    edits: bool
    creates: bool = True
    scheduler: tuple[dict[str, Any], ...] = ({},)


def call_zimage(
    pipeline: Any,
    prompts: list[str],
    noise: Tensor,
    guidance: float,
    size: tuple[int, int],
    source: Given,
    **options: Any,
) -> Tensor:
    if source is not None:
        [options["image"]] = all_to_pil(source)
        _encode_in_float32(pipeline)
    return pipeline(
        prompt=list(prompts),
        latents=noise,
        guidance_scale=guidance - 1,  # v + scale * (v - null)
        height=size[0],
        width=size[1],
        **options,
    ).images


def _encode_in_float32(pipeline: Any) -> None:
    """The Omni pipeline rounds source images to bfloat16, which a float32 VAE does not take."""
    encode = type(pipeline.vae).encode
    pipeline.vae.encode = lambda image: encode(pipeline.vae, image.float())


def call_flux2(
    pipeline: Any,
    prompts: list[str],
    noise: Tensor,
    guidance: float,
    size: tuple[int, int],
    source: Given,
    **options: Any,
) -> Tensor:
    images = pipeline(
        prompt=list(prompts),
        image=all_to_pil(source) or None,
        latents=noise,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        **options,
    ).images
    if options["output_type"] != "latent":
        return images
    norm = pipeline.vae.bn  # the stock pipeline gives the latents as the autoencoder takes them
    mean, variance = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    patches = pipeline._patchify_latents(images)
    return (patches - mean) / (variance + pipeline.vae.config.batch_norm_eps).sqrt()


def call_qwen_image(
    pipeline: Any,
    prompts: list[str],
    noise: Tensor,
    guidance: float,
    size: tuple[int, int],
    source: Given,
    **options: Any,
) -> Tensor:
    from diffusers.pipelines.qwenimage import (
        pipeline_qwenimage_edit,
        pipeline_qwenimage_edit_plus,
    )

    batch, channels, height, width = noise.shape
    packed = pipeline._pack_latents(noise, batch, channels, height, width)
    pictures = all_to_pil(source)
    is_plus = "Plus" in type(pipeline).__name__
    if pictures:
        options["image"] = pictures if is_plus else pictures[0]
    module = pipeline_qwenimage_edit_plus if is_plus else pipeline_qwenimage_edit
    sizes, usual = _own_sizes(pictures), module.calculate_dimensions

    def own(area: int, ratio: float) -> Any:
        if not is_plus:
            return (*sizes[ratio], None)
        # What the language model sees has the size that it has always.
        return usual(area, ratio) if area == module.CONDITION_IMAGE_SIZE else sizes[ratio]

    # The edit pipelines make every source a megapixel; here it stays as small as it is.
    with patch.object(module, "calculate_dimensions", own):
        images = pipeline(
            prompt=list(prompts),
            negative_prompt=[" "] * batch if guidance > 1 else None,
            true_cfg_scale=guidance,
            latents=packed,
            height=size[0],
            width=size[1],
            **options,
        ).images
    if options["output_type"] != "latent":
        return images
    return pipeline._unpack_latents(images, *size, pipeline.vae_scale_factor)[:, :, 0]


def _own_sizes(pictures: list[Any]) -> dict[float, tuple[int, int]]:
    """Width and height of pictures by their quotient."""
    return {picture.width / picture.height: picture.size for picture in pictures}


def call_qwen_image21(
    pipeline: Any,
    prompts: list[str],
    noise: Tensor,
    guidance: float,
    size: tuple[int, int],
    source: Given,
    **options: Any,
) -> Tensor:
    from diffusers.pipelines.qwenimage21 import pipeline_qwenimage21 as module

    pictures = all_to_pil(source)
    sizes = _own_sizes(pictures)
    own = patch.object(module, "calculate_dimensions", lambda _, ratio: (*sizes[ratio], None))
    images = []
    with own:  # which would make every source a megapixel
        # One by one: it puts a batch's pictures behind the longest of its prompts.
        for row, prompt in enumerate(prompts):
            latents = noise[row : row + 1].flatten(2).mT
            made = pipeline(
                prompt=prompt,
                image=pictures or None,
                negative_prompt=" " if guidance > 1 else None,
                true_cfg_scale=guidance,
                latents=latents,
                height=size[0],
                width=size[1],
                **options,
            ).images
            images.append(made)
    found = torch.cat(images)
    if options["output_type"] == "latent":
        return found.mT.reshape(noise.shape)
    return found[:, :3]


_DYNAMIC = {"use_dynamic_shifting": True}
CASES = {
    "flux2": StockCase("flux2", flux2_pipeline, call_flux2, edits=True, scheduler=({}, _DYNAMIC)),
    "qwen_image": StockCase(
        "qwen_image",
        qwen_image_pipeline,
        call_qwen_image,
        edits=False,
        scheduler=({}, _DYNAMIC | {"shift_terminal": 0.02}),
    ),
    "qwen_image_edit": StockCase(
        "qwen_image",
        lambda **o: qwen_image_pipeline(edit=True, **o),
        call_qwen_image,
        edits=True,
        creates=False,
    ),
    "qwen_image_edit_plus": StockCase(
        "qwen_image",
        lambda **o: qwen_image_pipeline(plus=True, **o),
        call_qwen_image,
        edits=True,
        creates=False,
    ),
    "qwen_image21": StockCase(
        "qwen_image21",
        qwen_image21_pipeline,
        call_qwen_image21,
        edits=True,
        scheduler=({}, _DYNAMIC),
    ),
    "zimage": StockCase(
        "zimage", zimage_pipeline, call_zimage, edits=False, scheduler=({}, _DYNAMIC)
    ),
    "zimage_omni": StockCase(
        "zimage", lambda **o: zimage_pipeline(omni=True, **o), call_zimage, edits=True
    ),
}
