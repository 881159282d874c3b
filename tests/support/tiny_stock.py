"""Stock pipelines of random weights, built of diffusers' own classes, tokenizers included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

SIDE = 16
"""Side in pixels of the images that tests make with these pipelines."""

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_PAD = "<|image_pad|>"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def byte_tokenizer() -> Any:
    """A Qwen tokenizer that knows every byte and has no merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokens = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    tokenizer = Qwen2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    tokenizer.chat_template = CHAT
    return tokenizer


def built(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, of the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = make()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                _wake(part.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _wake(network: nn.Module) -> None:
    """Move weights that start at zero or one, so that every part counts."""
    with torch.no_grad():
        for param in network.parameters():
            param += 0.05 * torch.randn(param.shape)


def scheduler(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def qwen3_config(num_layers: int) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=270,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=600,
    )


def kl_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.36,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def zimage_pipeline(*, omni: bool = False, **options: Any) -> Any:
    """A ``ZImagePipeline``, or a ``ZImageOmniPipeline``."""

    def make() -> Any:
        from diffusers import ZImageOmniPipeline, ZImagePipeline, ZImageTransformer2DModel
        from transformers import (
            Qwen3Model,
            Siglip2ImageProcessor,
            Siglip2VisionConfig,
            Siglip2VisionModel,
        )

        parts = {
            "transformer": ZImageTransformer2DModel(
                in_channels=4,
                dim=32,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=2,
                n_kv_heads=2,
                cap_feat_dim=16,
                siglip_feat_dim=12 if omni else None,
                axes_dims=[4, 6, 6],
                axes_lens=[1100, 64, 64],
            ),
            "vae": kl_vae(),
            "text_encoder": Qwen3Model(qwen3_config(3)),
            "tokenizer": byte_tokenizer(),
            "scheduler": scheduler(**{"shift": 3.0, **options}),
        }
        if not omni:
            return ZImagePipeline(**parts)
        vision = Siglip2VisionConfig(
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            patch_size=4,
            num_patches=16,
            vision_use_head=False,
        )
        return ZImageOmniPipeline(
            **parts,
            siglip=Siglip2VisionModel(vision),
            siglip_processor=Siglip2ImageProcessor(patch_size=4, max_num_patches=16),
        )

    return built(make)


def flux2_pipeline(**options: Any) -> Any:
    """A ``Flux2KleinPipeline``."""

    def make() -> Any:
        from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
        from transformers import Qwen3ForCausalLM

        config = qwen3_config(28)  # the stock pipeline takes layers 9, 18 and 27
        return Flux2KleinPipeline(
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=3 * config.hidden_size,
                timestep_guidance_channels=16,
                axes_dims_rope=(2, 2, 2, 2),
                guidance_embeds=False,
            ),
            vae=AutoencoderKLFlux2(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 16),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=16,
            ),
            text_encoder=Qwen3ForCausalLM(config),
            tokenizer=byte_tokenizer(),
            scheduler=scheduler(**{"shift": 3.0, **options}),
        )

    pipeline = built(make)
    norm = pipeline.vae.bn
    with torch.no_grad():
        norm.running_mean += torch.linspace(-0.3, 0.3, len(norm.running_mean))
        norm.running_var *= torch.linspace(0.5, 2.0, len(norm.running_var))
    return pipeline


def qwen_image_pipeline(*, edit: bool = False, plus: bool = False, **options: Any) -> Any:
    """A ``QwenImagePipeline``, a ``QwenImageEditPipeline`` or a ``QwenImageEditPlusPipeline``."""

    def make() -> Any:
        from diffusers import (
            AutoencoderKLQwenImage,
            QwenImageEditPipeline,
            QwenImageEditPlusPipeline,
            QwenImagePipeline,
            QwenImageTransformer2DModel,
        )
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        tokenizer = byte_tokenizer()
        config = Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 270,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 1200,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [2, 1, 1],
                },
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "out_hidden_size": 16,
                "fullatt_block_indexes": [0],
                "window_size": 56,
            },
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        )
        parts = {
            "transformer": QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(2, 2, 4),
                zero_cond_t=plus,  # as in 2511
            ),
            "vae": AutoencoderKLQwenImage(
                base_dim=4,
                z_dim=4,
                dim_mult=[1, 2],
                num_res_blocks=1,
                temperal_downsample=[False],
                latents_mean=[-0.3, 0.0, 0.2, 0.4],
                latents_std=[0.8, 1.0, 1.2, 1.5],
            ),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
            "tokenizer": tokenizer,
            "scheduler": scheduler(**{"shift": 3.0, **options}),
        }
        if not (edit or plus):
            return QwenImagePipeline(**parts)
        pipeline_class = QwenImageEditPlusPipeline if plus else QwenImageEditPipeline
        return pipeline_class(**parts, processor=None)

    pipeline = built(make)
    if edit or plus:
        pipeline.processor = PictureProcessor(pipeline.tokenizer)
    return pipeline


def qwen_image21_pipeline(**options: Any) -> Any:
    """A ``QwenImage21Pipeline``."""

    def make() -> Any:
        from diffusers import (
            AutoencoderKLQwenImage21,
            QwenImage21Pipeline,
            QwenImage21Transformer2DModel,
        )
        from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

        tokenizer = byte_tokenizer()
        config = Qwen3VLConfig(
            text_config={
                "vocab_size": 270,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "max_position_embeddings": 1200,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "mrope_section": [2, 1, 1],
                },
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 2,
                "out_hidden_size": 16,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
            vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
            vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        )
        return QwenImage21Pipeline(
            transformer=QwenImage21Transformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                context_in_dim=16,
                axes_dims_rope=(2, 2, 4),
            ),
            vae=AutoencoderKLQwenImage21(
                base_dim=4,
                decoder_base_dim=4,
                z_dim=4,
                dim_mult=[1, 1, 1, 1, 1],
                num_res_blocks=1,
                temperal_downsample=[False, True, True, True],
                latents_mean=[-0.3, 0.0, 0.2, 0.4],
                latents_std=[0.8, 1.0, 1.2, 1.5],
            ),
            text_encoder=Qwen3VLForConditionalGeneration(config),
            processor=PictureProcessor(tokenizer, patch_size=16, min_pixels=1024),
            scheduler=scheduler(**{"shift": 3.0, **options}),
        )

    return built(make)


class PictureProcessor:
    """What ``Qwen2VLProcessor`` and ``Qwen3VLProcessor`` do; those classes need torchvision."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        from transformers import Qwen2VLImageProcessor

        self.tokenizer = tokenizer
        self.image_processor = Qwen2VLImageProcessor(**options)

    def __call__(
        self, text: list[str], return_tensors: str, images: Any = None, **options: Any
    ) -> Any:
        from transformers import BatchFeature

        counts: list[int] = []
        inputs = BatchFeature()
        if images is not None:
            inputs = self.image_processor(images=images, return_tensors=return_tensors)
            cells = self.image_processor.merge_size**2
            counts = (inputs["image_grid_thw"].prod(1) // cells).tolist()
        texts = []
        for item in text:
            first, *others = item.split(_PAD)
            texts.append(first + "".join(_PAD * counts.pop(0) + part for part in others))
        inputs.update(self.tokenizer(texts, return_tensors=return_tensors, **options))
        if "padding_side" in options:  # Qwen3-VL's says which tokens are a picture's
            pad = self.tokenizer.convert_tokens_to_ids(_PAD)
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == pad).int()
        return inputs

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """What the template makes of the system's message alone."""
        [message] = messages
        [content] = message["content"]
        text = f"<|im_start|>{message['role']}\n{content['text']}<|im_end|>\n"
        return [self.tokenizer(text).input_ids]

    def save_pretrained(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


def save_pipeline(pipeline: Any, folder: Path) -> Path:
    """Return ``folder`` with a pipeline, its stand-in of a processor as the real one lies there."""
    processor = getattr(pipeline, "processor", None)
    if isinstance(processor, PictureProcessor):
        pipeline.register_modules(processor=None)
    pipeline.save_pretrained(folder)
    if isinstance(processor, PictureProcessor):
        pipeline.processor = processor
        has_own = (folder / "tokenizer").is_dir()
        part = processor.image_processor if has_own else processor
        part.save_pretrained(folder / "processor")
    return folder


def stock_family(name: str, pipeline: Any, folder: Path) -> Any:
    """The family of a pipeline saved in ``folder``, for small images."""
    from danceflow.models.family import open_family

    save_pipeline(pipeline, folder)
    family = open_family(name, folder)
    side = max(SIDE, 2 * family.codec.factor * family.unit)
    return family.sized(side, side)
