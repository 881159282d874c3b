"""How each stock pipeline is asked for what the families compute: one case per pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from tiny_stock import flux2_pipeline, qwen_image_pipeline, zimage_pipeline
from torch import Tensor

SOURCE_SIDE = 64
"""The stock pipelines refuse smaller source images."""


def picture(seed: int, size: tuple[int, int] = (SOURCE_SIDE, SOURCE_SIDE)) -> Tensor:
    """A source image [1, 3, height, width] of black and white, which no rounding changes."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 2, (1, 3, size[0] // 4, size[1] // 4), generator=generator).float()
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


def to_pil(image_13HW: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((image_13HW[0] * 255).byte().permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class StockCase:
    """One stock pipeline.

    Attributes:
        family: name of the family that opens its folder.
        build: makes the pipeline; scheduler options may be given.
        call: runs it: (pipeline, prompts, noise, guidance, size, source or None, **options).
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
    source: Tensor | None,
    **options: Any,
) -> Tensor:
    if source is not None:
        options["image"] = to_pil(source)
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
    source: Tensor | None,
    **options: Any,
) -> Tensor:
    images = pipeline(
        prompt=list(prompts),
        image=None if source is None else to_pil(source),
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
    source: Tensor | None,
    **options: Any,
) -> Tensor:
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

    batch, channels, height, width = noise.shape
    packed = pipeline._pack_latents(noise, batch, channels, height, width)
    own_size = None
    if source is not None:
        options["image"] = to_pil(source)
        own_size = (*options["image"].size, None)
    # The edit pipeline makes every source a megapixel; here it stays as small as it is.
    with patch.object(
        pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: own_size
    ):
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
    "zimage": StockCase(
        "zimage", zimage_pipeline, call_zimage, edits=False, scheduler=({}, _DYNAMIC)
    ),
    "zimage_omni": StockCase(
        "zimage", lambda **o: zimage_pipeline(omni=True, **o), call_zimage, edits=True
    ),
}
