"""A checkout of a small stock pipeline of random weights, laid out as SD3.5, for benchmarks.

It is made as a user makes one: diffusers writes the pipeline, `bring-teachers` reads it with two
LoRAs on it, and the stages `prepare` and `cache` read pictures in a table. The parameters are those
of `recipes/sd35_lora.yaml` in smaller sizes.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from random_model import random_adapter
from torch import nn

from danceflow.models.bring import bring_teachers
from danceflow.models.family import open_family
from danceflow.models.frozen.text import small_clip, word_tokenizer
from danceflow.ops.files import write_json
from danceflow.params.read import override
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.pictures import to_picture
from danceflow.stages import run_stage

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "sd35_lora.yaml"
LOOKS = ("photo", "illustration")
NUM_ROWS = 8
"""Of each look to train on."""
PIXELS_PER_TOKEN = 16
"""Along a side: the codec's 8, times patches of 2."""
CLIP_TOKENS, T5_TOKENS = 77, 256
"""The windows of SD3.5's prompts."""
TRANSFORMER: Mapping[str, Any] = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 6,
    "attention_head_dim": 64,
    "num_attention_heads": 3,
    "joint_attention_dim": 128,
    "caption_projection_dim": 192,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 32,
    "dual_attention_layers": (0, 1, 2),
    "qk_norm": "rms_norm",
}
"""An eighth of SD3.5 Medium's width and a quarter of its blocks, half of them with two attentions
as there: about 8 M parameters."""


def write_pipeline(folder: Path, transformer: Mapping[str, Any] = TRANSFORMER) -> dict[str, int]:
    """Write a ``StableDiffusion3Pipeline`` of random weights; return the parameters of its parts.

    Args:
        folder: where to.
        transformer: the arguments of its network's class.
    """
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import T5Config, T5EncoderModel

    tokenizer = word_tokenizer(("a", *LOOKS), CLIP_TOKENS)
    pooled, width = transformer["pooled_projection_dim"], transformer["joint_attention_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clips = [
            small_clip(
                len(tokenizer),
                width=pooled // 2,
                num_layers=2,
                num_heads=2,
                max_length=CLIP_TOKENS,
            )
            for _ in range(2)
        ]
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=32,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=_awake(SD3Transformer2DModel(**transformer)),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16),
                norm_num_groups=4,
                latent_channels=transformer["in_channels"],
                scaling_factor=1.5305,
                shift_factor=0.0609,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=clips[0],
            tokenizer=tokenizer,
            text_encoder_2=clips[1],
            tokenizer_2=tokenizer,
            text_encoder_3=T5EncoderModel(config).eval(),
            tokenizer_3=word_tokenizer(("a", *LOOKS), T5_TOKENS),
        )
    pipeline.save_pretrained(folder)
    return {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module)
    }


def _awake(network: nn.Module) -> nn.Module:
    """Return a network whose weights that begin as zeros are drawn, too: it says something."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=weight[0].numel() ** -0.5)
    return network


def write_checkout(
    root: Path, size: int, changes: Mapping[str, Any], transformer: Mapping[str, Any] = TRANSFORMER
) -> dict[str, int]:
    """Write a checkout that is ready to be distilled; return the parameters of its pipeline.

    Args:
        root: where to.
        size: side in pixels of its images.
        changes: of the recipe's parameters.
        transformer: the arguments of the network's class.
    """
    paths, stock = Paths(root), root / "stock"
    found = write_pipeline(stock, transformer)
    family = open_family("sd3", stock)
    network = family.load_backbone(stock / "transformer")
    rank = changes["distill.lora_rank"] // len(LOOKS)
    loras = {look: root / "loras" / look for look in LOOKS}
    for seed, lora in enumerate(loras.values()):
        random_adapter(family, network, lora, rank, seed)
    bring_teachers("sd3", stock, loras, paths.teachers, edits=False)
    data = read_yaml(RECIPE)
    for look in LOOKS:
        data["teachers"][look]["adapter_rank"] = rank
        data["data"]["buckets"][look] = {
            "num_train": NUM_ROWS,
            "num_validation": 1,
            "num_test": 1,
        }
    write_json(paths.params, override(data, {**CHANGES, "data.image_size": size, **changes}))
    _write_pictures(root / data["data"]["input"]["path"], size)
    for stage, item in (("prepare", None), *(("cache", look) for look in LOOKS)):
        run_stage(stage, item, root)
    return found


CHANGES = {
    "run.device": "cpu",
    "run.dtype": "float32",
    "cache.dtype": "float32",
    "cache.num_samples": 1,
    "cache.num_steps": 1,
    "data.input.min_side": PIXELS_PER_TOKEN,
    "data.input.num_shards": 1,
    "distill.activation_checkpointing": False,
    "tracking.enabled": False,
}


def _write_pictures(table: Path, size: int) -> None:
    """Write pictures of noise with a caption each, more than are needed."""
    generator = torch.Generator().manual_seed(0)
    table.parent.mkdir(parents=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["look", "caption", "picture"])
        for number in range(4 * NUM_ROWS * len(LOOKS)):
            look, name = LOOKS[number % len(LOOKS)], f"{number}.png"
            to_picture(torch.rand(3, size, size, generator=generator)).save(table.parent / name)
            writer.writerow([look, f"a {look} {number}", name])
