"""Tiny random-weight models: the small SD3 family, and stock SD3 pipelines in diffusers' layout."""

import string
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_stock import (
    flux2_pipeline,
    qwen_image21_pipeline,
    qwen_image_pipeline,
    stock_family,
    zimage_pipeline,
)
from torch import nn

from danceflow.fields import normal
from danceflow.models.families.sd3 import Sd3Family
from danceflow.models.family import ModelFamily, open_family

WORDS = ("a", "add", "blue", "circle", "red", "remove", "square", "the")
PROMPTS = ("a red circle", "remove the blue square")

SMALL_CONFIG: Mapping[str, Any] = {
    "prediction": "clean",
    "sigma_min": 0.05,
    "shift": 2.0,
    "transformer": {
        "num_layers": 2,
        "num_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "sample_size": 16,
        "in_channels": 7,
        "out_channels": 3,
    },
    "text_encoder": {"num_layers": 1, "num_heads": 2, "width": 16, "max_length": 8},
}


def small_sd3(prediction: str = "clean", *, source: bool = True, words=WORDS) -> Sd3Family:
    config = {**SMALL_CONFIG, "prediction": prediction}
    config["transformer"] = {**config["transformer"], "in_channels": 7 if source else 3}
    return Sd3Family.new(config, words, seed=0)


def clip_tokenizer(max_length: int, padding: str) -> Any:
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, "!"]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", *special]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=[("r", "e"), ("re", "d</w>")],
        pad_token=padding,
        model_max_length=max_length,
    )


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    pieces = ["▁", "▁red", "▁blue", "▁circle", *string.ascii_lowercase]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -1.0 - len(vocabulary) / 50) for piece in pieces]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0)


def _clip(tokenizer: Any, width: int, projection: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=projection,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def stock_pipeline(*, with_t5: bool = True, **scheduler: Any) -> Any:
    """A ``StableDiffusion3Pipeline`` of random weights, laid out as SD3.5."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import T5Config, T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The windows differ: the stock pipeline uses the first one for both.
        tokenizers = clip_tokenizer(10, "<|endoftext|>"), clip_tokenizer(16, "!")
        t5 = T5Config(
            vocab_size=40, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=8,
                joint_attention_dim=32,
                caption_projection_dim=16,
                pooled_projection_dim=20,
                pos_embed_max_size=8,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 16),
                norm_num_groups=4,
                latent_channels=4,
                sample_size=16,
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
            text_encoder=_clip(tokenizers[0], 12, 8),
            tokenizer=tokenizers[0],
            text_encoder_2=_clip(tokenizers[1], 16, 12),
            tokenizer_2=tokenizers[1],
            text_encoder_3=T5EncoderModel(t5).eval() if with_t5 else None,
            tokenizer_3=t5_tokenizer() if with_t5 else None,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_sd3(folder: Path, **options: Any) -> ModelFamily:
    stock_pipeline(**options).save_pretrained(folder)
    return open_family("sd3", folder)


TINY_FAMILIES: Mapping[str, Mapping[str, Callable[[Path], ModelFamily]]] = {
    "sd3": {
        "clean": lambda _: small_sd3("clean"),
        "velocity": lambda _: small_sd3("velocity"),
        "no_source": lambda _: small_sd3(source=False),
        "stock": stock_sd3,
        "widened": lambda folder: stock_sd3(folder).editing(),
    },
    "flux2": {"klein": lambda folder: stock_family("flux2", flux2_pipeline(), folder)},
    "qwen_image": {
        "create": lambda folder: stock_family("qwen_image", qwen_image_pipeline(), folder),
        "edit": lambda folder: stock_family("qwen_image", qwen_image_pipeline(edit=True), folder),
        "plus": lambda folder: stock_family("qwen_image", qwen_image_pipeline(plus=True), folder),
    },
    "qwen_image21": {
        "both": lambda folder: stock_family("qwen_image21", qwen_image21_pipeline(), folder),
    },
    "zimage": {
        "plain": lambda folder: stock_family("zimage", zimage_pipeline(), folder),
        "omni": lambda folder: stock_family("zimage", zimage_pipeline(omni=True), folder),
    },
}
"""Every family of ``FAMILIES``, in the shapes it comes in."""


def awake(family: ModelFamily, seed: int = 1) -> nn.Module:
    """A backbone whose every weight counts: none is zero."""
    backbone = family.new_backbone(seed)
    with torch.no_grad():
        for index, param in enumerate(backbone.parameters()):
            param += 0.1 * normal(param.shape, [1000 * seed + index])[0]
    return backbone.eval().requires_grad_(False)


def shake(params: Iterable[nn.Parameter], seed: int = 0) -> None:
    """Move every factor of an adapter, so that it does something."""
    with torch.no_grad():
        for index, param in enumerate(params):
            param += 0.2 * normal(param.shape, [seed * 1000 + index])[0]
