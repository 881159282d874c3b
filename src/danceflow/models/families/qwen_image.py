"""Qwen-Image family: ``diffusers.QwenImageTransformer2DModel`` as a velocity field.

A ``QwenImagePipeline`` folder makes images from text. A ``QwenImageEditPipeline`` folder also
edits: the source's latents are tokens behind the image's, and the language model reads the
instruction beside the source picture. That of a ``QwenImageEditPlusPipeline`` (2509, 2511) takes up
to three pictures, numbers them in the prompt and sees them at a size of its own. Guidance keeps the
length of every token's velocity.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from danceflow.fields import MAX_SOURCES, Condition, GuidedField, VelocityField
from danceflow.models.families.pipeline_folder import interpolated_mu
from danceflow.models.families.stock import StockFamily, StockSettings, by_layout, with_prompts
from danceflow.models.frozen.codec import Codec, FrameCodec, Halves
from danceflow.models.frozen.language import (
    LanguageEncoder,
    load_language_encoder,
    load_part,
    ragged,
)
from danceflow.models.frozen.reading import Reading
from danceflow.models.frozen.vision import Pictures
from danceflow.models.layout import Kept, Layout, State, Tokens, Transformer

_EDIT, _EDIT_PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
_CHAT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_CREATE_SYSTEM = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:"
)
_CREATE_DROPPED = 34  # tokens of the system's message, which the stock pipelines leave out
_CREATE_TOKENS = 512  # the stock pipeline's max_sequence_length
_EDIT_SYSTEM = (
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate."
)
_EDIT_DROPPED = 64
_PICTURE = "<|image_pad|>"
_SEEN = f"<|vision_start|>{_PICTURE}<|vision_end|>"
_NUMBERED = "Picture {}: "  # before each of several pictures
_SEEN_AREA = 384 * 384  # pixels of a picture as Edit-Plus' language model sees it
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_PROMPT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = tuple(
    f"{ff}.net.{part}" for ff in ("img_mlp", "txt_mlp") for part in ("0.proj", "2")
)
_PICTURE_PATCH = 28  # pixels along a side, of a token of Qwen2.5-VL


def picture_tokens(size: tuple[int, int]) -> int:
    """Return the tokens that Qwen2.5-VL makes of a picture of this height and width in pixels."""
    height, width = (max(1, round(side / _PICTURE_PATCH)) for side in size)
    return height * width


def _counted(state: State) -> Tokens:
    seen = seen_tokens([state.size] * state.num_sources)
    return Tokens((1 + state.num_sources) * state.image, state.prompt + seen)


def seen_tokens(sizes: Sequence[tuple[int, int]]) -> int:
    """Return the language model's tokens of an edit's pictures.

    Only Edit-Plus takes several, and sees them small. One counts as it does for Edit.
    """
    if len(sizes) < 2:
        return sum(map(picture_tokens, sizes))
    return sum(
        picture_tokens((round(scale * height), round(scale * width)))
        for height, width in sizes
        for scale in (math.sqrt(_SEEN_AREA / (height * width)),)
    )


def _prompt_values(
    transformer: Transformer, prompt: int, sources: Sequence[tuple[int, int]]
) -> int:
    width = int(transformer["joint_attention_dim"])
    if not sources:
        return prompt * width
    # The empty prompt's embeddings depend on the pictures: the cache keeps both.
    return 2 * (prompt + seen_tokens(sources)) * width


_KEPT = Kept(whole=1.45, adapter=1.06, half=1.07)
_LAYOUT = Layout(
    usual=("qwen-image", "qwen-image-edit"),
    side=lambda _: 2,
    channels=lambda transformer: int(transformer["in_channels"]) // 4,
    tokens=_counted,
    prompt_values=_prompt_values,
    streams=(
        (r"time_text_embed\..*|.*\.(img|txt)_mod\..*|norm_out\.linear", "sample"),
        (r"txt_in|.*\.(add_[qkv]_proj|to_add_out)|.*\.txt_mlp\..*", "prompt"),
        (r"img_in|.*\.to_([qkv]|out\.0)|.*\.img_mlp\..*|proj_out", "image"),
    ),
    attention=((r"transformer_blocks\.\d+\.attn", "all"),),
    kept=(_KEPT, _KEPT),
)


def _factor(vae: Mapping[str, Any]) -> int:
    """Return image pixels per latent pixel, along a side, of an ``AutoencoderKLQwenImage``."""
    return int(2 ** len(vae["temperal_downsample"]))


class QwenCodec(FrameCodec):
    """``diffusers.AutoencoderKLQwenImage`` on single frames, normalised per channel."""

    def __init__(self, halves: Halves) -> None:
        """Take the autoencoder."""
        super().__init__(halves)
        self.factor = _factor(vars(halves.config))

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the normalised latent mode."""
        return self.normalised(images_B3HW.to(self.halves.device))

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the decoded images."""
        return self.frames(latents_BCHW)


class QwenImageField:
    """v(z, sigma, cond) of one Qwen-Image transformer: its output at time sigma."""

    def __init__(self, backbone: nn.Module) -> None:
        """Wrap ``backbone``."""
        self.backbone = backbone

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, [B, C, H, W] float32."""
        return by_layout(z_BCHW, sigma_B, condition, self._velocity)

    def _velocity(
        self, z: Tensor, sigma: Tensor, condition: Condition, sources: Sequence[Tensor]
    ) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        tensors = condition.tensors
        states = [z, *sources]
        mask = tensors["prompt_mask"]
        output: Tensor = self.backbone(
            hidden_states=torch.cat([_tokens(state) for state in states], dim=1).to(dtype),
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=tensors["prompt_embeds"].to(dtype),
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, s.shape[2] // 2, s.shape[3] // 2) for s in states]] * len(z),
            return_dict=False,
        )[0]
        return _latents(output[:, : z.shape[2] * z.shape[3] // 4].float(), z.shape)


def _tokens(latents_BCHW: Tensor) -> Tensor:
    """Return latents as tokens of 2 x 2, [B, H * W / 4, 4 * C]."""
    return nn.functional.pixel_unshuffle(latents_BCHW, 2).flatten(2).mT


def _latents(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Return tokens as latents of ``shape``."""
    batch, channels, height, width = shape
    patches = tokens.mT.reshape(batch, 4 * channels, height // 2, width // 2)
    return nn.functional.pixel_shuffle(patches, 2)


def keep_length(guided_BCHW: Tensor, conditional_BCHW: Tensor) -> Tensor:
    """Return the guided velocity with every token as long as in the conditional one."""
    guided, conditional = _tokens(guided_BCHW), _tokens(conditional_BCHW)
    length = conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
    return _latents(guided * length, guided_BCHW.shape)


class QwenImageFamily(StockFamily):
    """Frozen parts of a Qwen-Image model; see ``family.ModelFamily`` for the contract."""

    name: ClassVar[str] = "qwen_image"
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline", _EDIT, _EDIT_PLUS)
    edit_pipelines: ClassVar[tuple[str, ...]] = (_EDIT, _EDIT_PLUS)
    layout: ClassVar[Layout] = _LAYOUT
    adapter_targets: tuple[str, ...] = (*_ATTENTION, *_PROMPT_ATTENTION, *_FEED_FORWARD)

    def __init__(
        self,
        settings: StockSettings,
        codec: Codec,
        language: LanguageEncoder,
        pictures: Pictures | None,
    ) -> None:
        """Join the frozen parts; ``pictures`` makes it a model that edits."""
        super().__init__(settings, codec)
        self.language = language
        self.pictures = pictures

    @staticmethod
    def transformer_class() -> Any:
        """Return ``diffusers.QwenImageTransformer2DModel``."""
        from diffusers import QwenImageTransformer2DModel

        return QwenImageTransformer2DModel

    @classmethod
    def open(cls, folder: Path, settings: StockSettings) -> Self:
        """Return the family of the frozen parts in ``folder``."""
        from diffusers import AutoencoderKLQwenImage
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

        language = load_language_encoder(folder, Qwen2_5_VLForConditionalGeneration)
        pictures = None
        if settings.pipeline in cls.edit_pipelines:
            area = _SEEN_AREA if settings.pipeline == _EDIT_PLUS else None
            pictures = Pictures(load_part(folder / "processor", Qwen2VLImageProcessor), area)
        codec = QwenCodec(Halves(AutoencoderKLQwenImage, folder / "vae"))
        return cls(settings, codec, language, pictures)

    @staticmethod
    def vae_factor(config: Mapping[str, Any]) -> int:
        """Return image pixels per latent pixel, along a side, from the codec's configuration."""
        return _factor(config)

    @property
    def is_plus(self) -> bool:
        """Whether it is Edit-Plus, which takes several pictures and numbers them."""
        return self.settings.pipeline == _EDIT_PLUS

    @property
    def max_sources(self) -> int:
        """How many pictures an edit may have; 0 for a backbone that cannot edit."""
        return MAX_SOURCES if self.is_plus else super().max_sources

    @property
    def sees_source(self) -> bool:
        """Whether the language model looks at the source image."""
        return self.pictures is not None

    def parts(self) -> Sequence[Any]:
        """Return the encoders."""
        return [self.language] if self.pictures is None else [self.language, self.pictures]

    def mu(self, num_tokens: int, num_steps: int) -> float:  # noqa: ARG002
        """Return the shift that grows with the number of tokens."""
        return interpolated_mu(self.settings.scheduler, num_tokens)

    def guided(self, field: VelocityField, scale: float) -> GuidedField:
        """Return ``field`` with classifier-free guidance that keeps every token's length."""
        return GuidedField(field, self.null, scale, keep_length)

    def prompt_tensors(
        self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return prompt embeddings and their mask; where there is a source, empty ones too.

        What the language model says of a source picture without an instruction is the row's null
        embedding, since it depends on the picture.
        """
        rows = zip(prompts, images, strict=True)
        embeds, mask = ragged([self._embed(prompt, seen) for prompt, seen in rows])
        tensors = {"prompt_embeds": embeds, "prompt_mask": mask}
        if self.pictures is not None:
            null, null_mask = ragged([self._null(seen) for seen in images])
            tensors |= {"null_embeds": null, "null_mask": null_mask}
        return tensors

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:
        """Return how much of ``prompt`` the language model reads; beside a picture, all."""
        if edits:
            text_of, window = partial(_CHAT.format, _EDIT_SYSTEM), None
        else:
            text_of = partial(_CHAT.format, _CREATE_SYSTEM)
            window = _CREATE_DROPPED + _CREATE_TOKENS
        return (self.language.reading(prompt, text_of, window),)

    def null(self, condition: Condition) -> Condition:
        """Return ``condition`` with the empty prompt and the same source."""
        tensors = condition.tensors
        if self.pictures is not None:
            return with_prompts(
                condition,
                {"prompt_embeds": tensors["null_embeds"], "prompt_mask": tensors["null_mask"]},
            )
        embeds, mask = ragged([self._null([])] * condition.num_samples)
        return with_prompts(condition, {"prompt_embeds": embeds, "prompt_mask": mask})

    def fixed_texts(self) -> dict[str, Tensor]:
        """Return the embedding of the empty prompt without a picture."""
        self._null([])
        return self.fixed

    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``."""
        return QwenImageField(backbone)

    def _null(self, images: Sequence[Tensor]) -> Tensor:
        """Return the embedding [L, D] of the empty prompt beside ``images``."""
        if images:
            return self._embed("", images)
        return self.fixed_text("empty", lambda: self._embed("", []))

    @torch.no_grad()
    def _embed(self, prompt: str, images: Sequence[Tensor]) -> Tensor:
        """Return the embedding [L, D] of ``prompt``, read beside ``images`` if there are some.

        The model was trained with a blank for the empty prompt. Positions of a picture's tokens
        are those the stock pipeline gives them with the installed ``transformers``.
        """
        prompt = prompt or " "
        model, tokenizer, device = (
            self.language.model,
            self.language.tokenizer,
            self.language.device,
        )
        if not images:
            text, dropped, most = (
                _CHAT.format(_CREATE_SYSTEM, prompt),
                _CREATE_DROPPED,
                _CREATE_TOKENS,
            )
            seen = {}
        else:
            assert self.pictures is not None
            pixels, grids, counts = zip(*map(self.pictures, images), strict=True)
            pictures = [_SEEN.replace(_PICTURE, _PICTURE * count) for count in counts]
            if self.is_plus:
                pictures = [_NUMBERED.format(n) + seen for n, seen in enumerate(pictures, 1)]
            text = _CHAT.format(_EDIT_SYSTEM, "".join(pictures) + prompt)
            dropped, most = _EDIT_DROPPED, None
            seen = {
                "pixel_values": torch.cat(pixels).to(device),
                "image_grid_thw": torch.cat(grids).to(device),
            }
        batch = tokenizer(text, return_tensors="pt").to(device)
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
            **seen,
        )
        hidden: Tensor = output.hidden_states[-1][0, dropped:][:most]
        return hidden.float()
