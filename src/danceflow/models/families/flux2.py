"""FLUX.2 klein family: ``diffusers.Flux2Transformer2DModel`` as a velocity field.

One network makes images from text and edits: the latents of up to three references are tokens
behind the image's, each at another place in time, and their output is cut off. The language model's
hidden states of three layers are the prompt, padding included, so every prompt has the same length.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from danceflow.fields import MAX_SOURCES, Condition, VelocityField
from danceflow.models.adapters.comfy import Original
from danceflow.models.families.stock import StockFamily, StockSettings, by_layout, with_prompts
from danceflow.models.frozen.codec import Codec, HalvedCodec, Halves, vae_factor
from danceflow.models.frozen.language import LanguageEncoder, load_language_encoder
from danceflow.models.frozen.reading import Reading
from danceflow.models.layout import Kept, Layout, State, Tokens, Transformer

NUM_PROMPT_TOKENS = 512
"""The stock pipeline's ``max_sequence_length``."""
PROMPT_LAYERS = (9, 18, 27)
"""The stock pipeline's ``text_encoder_out_layers``."""

_PIPELINE = "Flux2KleinPipeline"
_REFERENCE_TIME = 10
_PROMPTS = "prompt_embeds"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_PROMPT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = tuple(f"{ff}.linear_{end}" for ff in ("ff", "ff_context") for end in ("in", "out"))
# ComfyUI runs the original code, whose layers have these names there; source: diffusers' own
# converter of adapters. Modulations are shared by all blocks.
_EMBEDDERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
}
_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE = ("to_qkv_mlp_proj", "attn.to_out")


def _counted(state: State) -> Tokens:
    return Tokens((1 + state.num_sources) * state.image, state.prompt)


def _prompt_values(transformer: Transformer, prompt: int, _: Sequence[tuple[int, int]]) -> int:
    return prompt * int(transformer["joint_attention_dim"])


_KEPT = Kept(whole=1.58, adapter=1.24, half=1.16)
_LAYOUT = Layout(
    usual=("flux2-klein-4b", "flux2-klein-4b"),
    side=lambda _: 1,
    channels=lambda transformer: int(transformer["in_channels"]),
    tokens=_counted,
    prompt_values=_prompt_values,
    streams=(
        (r"time_guidance_embed\..*|.*modulation.*|norm_out\.linear", "sample"),
        (r"single_transformer_blocks\..*", "all"),
        (r"context_embedder|.*\.(add_[qkv]_proj|to_add_out)|.*\.ff_context\..*", "prompt"),
        (r"x_embedder|.*\.to_([qkv]|out\.0)|.*\.ff\..*|proj_out", "image"),
    ),
    attention=((r"(single_)?transformer_blocks\.\d+\.attn", "all"),),
    kept=(_KEPT, _KEPT),
)


def _factor(vae: Mapping[str, Any]) -> int:
    """Return image pixels per latent pixel of an ``AutoencoderKLFlux2`` and its 2 x 2 patches."""
    return 2 * vae_factor(vae)


class Flux2Codec(HalvedCodec):
    """``diffusers.AutoencoderKLFlux2``: latents in 2 x 2 patches, normalised per channel."""

    def __init__(self, halves: Halves) -> None:
        """Take the autoencoder."""
        super().__init__(halves)
        self.factor = _factor(vars(halves.config))

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the normalised patches of the latent mode."""
        pixels = images_B3HW.to(self.halves.device) * 2 - 1
        latents = nn.functional.pixel_unshuffle(
            self.halves.encoder.encode(pixels).latent_dist.mode(), 2
        )
        mean, deviation = self._statistics(latents, self.halves.encoder.bn)
        return (latents - mean) / deviation

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the decoded images."""
        latents = latents_BCHW.to(self.halves.device)
        mean, deviation = self._statistics(latents, self.halves.decoder.bn)
        latents = nn.functional.pixel_shuffle(latents * deviation + mean, 2)
        images: Tensor = self.halves.decoder.decode(latents).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def _statistics(self, latents: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [1, C, 1, 1]."""
        mean = norm.running_mean.view(1, -1, 1, 1).to(latents)
        variance = norm.running_var.view(1, -1, 1, 1).to(latents)
        return mean, (variance + self.halves.config.batch_norm_eps).sqrt()


class Flux2Field:
    """v(z, sigma, cond) of one FLUX.2 transformer: its output at time sigma."""

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
        prompts = condition.tensors[_PROMPTS].to(dtype)
        pictures = [z, *sources]
        tokens = torch.cat([_tokens(picture) for picture in pictures], dim=1)
        times = range(0, _REFERENCE_TIME * len(pictures), _REFERENCE_TIME)
        places = torch.cat([_places(p, time) for p, time in zip(pictures, times, strict=True)])
        output: Tensor = self.backbone(
            hidden_states=tokens.to(dtype),
            timestep=sigma,
            guidance=None,
            encoder_hidden_states=prompts,
            txt_ids=_prompt_places(prompts),
            img_ids=places,
            return_dict=False,
        )[0]
        height, width = z.shape[-2:]
        return output[:, : height * width].float().mT.reshape(z.shape)


def _tokens(latents_BCHW: Tensor) -> Tensor:
    """Return latents as tokens, [B, H * W, C]."""
    return latents_BCHW.flatten(2).mT


def _places(latents: Tensor, time: int) -> Tensor:
    """Return (time, row, column, 0) of every token, [H * W, 4] long."""
    height, width = latents.shape[-2:]
    rows, columns, one = torch.arange(height), torch.arange(width), torch.zeros(1).long()
    return torch.cartesian_prod(one + time, rows, columns, one).to(latents.device)


def _prompt_places(prompts: Tensor) -> Tensor:
    """Return (0, 0, 0, position) of every token of the prompt, [L, 4] long."""
    one = torch.zeros(1).long()
    return torch.cartesian_prod(one, one, one, torch.arange(prompts.shape[1])).to(prompts.device)


class Flux2Family(StockFamily):
    """Frozen parts of a FLUX.2 klein model; see ``family.ModelFamily`` for the contract."""

    name: ClassVar[str] = "flux2"
    pipelines: ClassVar[tuple[str, ...]] = (_PIPELINE,)
    edit_pipelines: ClassVar[tuple[str, ...]] = (_PIPELINE,)
    layout: ClassVar[Layout] = _LAYOUT
    most_sources: ClassVar[int] = MAX_SOURCES
    prompt_length: ClassVar[int | None] = NUM_PROMPT_TOKENS
    adapter_targets: tuple[str, ...] = (*_ATTENTION, *_PROMPT_ATTENTION, *_FEED_FORWARD, *_SINGLE)

    def __init__(self, settings: StockSettings, codec: Codec, language: LanguageEncoder) -> None:
        """Join the frozen parts."""
        super().__init__(settings, codec)
        self.language = language

    @staticmethod
    def transformer_class() -> Any:
        """Return ``diffusers.Flux2Transformer2DModel``."""
        from diffusers import Flux2Transformer2DModel

        return Flux2Transformer2DModel

    @classmethod
    def open(cls, folder: Path, settings: StockSettings) -> Self:
        """Return the family of the frozen parts in ``folder``."""
        from diffusers import AutoencoderKLFlux2
        from transformers import Qwen3Model

        codec = Flux2Codec(Halves(AutoencoderKLFlux2, folder / "vae"))
        return cls(settings, codec, load_language_encoder(folder, Qwen3Model))

    @staticmethod
    def vae_factor(config: Mapping[str, Any]) -> int:
        """Return image pixels per latent pixel, along a side, from the codec's configuration."""
        return _factor(config)

    @classmethod
    def comfy_names(cls, settings: Mapping[str, Any]) -> dict[str, Original]:
        """Return the layers of the original code, as ComfyUI keeps them, by name."""
        transformer = settings["transformer"]
        names = {name: Original((new,)) for name, new in _EMBEDDERS.items()}
        for i in range(transformer["num_layers"]):
            block = f"transformer_blocks.{i}"
            for name, ends in _DOUBLE.items():
                modules = tuple(f"{block}.{end}" for end in ends)
                names[f"double_blocks.{i}.{name}"] = Original(modules)
        for i in range(transformer["num_single_layers"]):
            attention = f"single_transformer_blocks.{i}.attn"
            names[f"single_blocks.{i}.linear1"] = Original((f"{attention}.to_qkv_mlp_proj",))
            names[f"single_blocks.{i}.linear2"] = Original((f"{attention}.to_out",))
        return names

    def parts(self) -> Sequence[Any]:
        """Return the language model."""
        return [self.language]

    def mu(self, num_tokens: int, num_steps: int) -> float:
        """Return the stock pipeline's empirical shift."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        return float(compute_empirical_mu(image_seq_len=num_tokens, num_steps=num_steps))

    def prompt_tensors(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Tensor]],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Return the prompts' hidden states of three layers, feature by feature."""
        states, _ = self.language.hidden(list(map(self._text, prompts)), NUM_PROMPT_TOKENS)
        return {_PROMPTS: torch.cat([states[layer] for layer in PROMPT_LAYERS], dim=-1)}

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:  # noqa: ARG002
        """Return how much of ``prompt`` the language model reads."""
        return (self.language.reading(prompt, self._text, NUM_PROMPT_TOKENS),)

    def _text(self, prompt: str) -> str:
        """Return what the language model reads for ``prompt``."""
        return self.language.chat(prompt, thinking=False)

    def null(self, condition: Condition) -> Condition:
        """Return ``condition`` with the empty prompt and the same source."""
        empty = self.fixed_text("empty", lambda: self.prompt_tensors([""], [[]])[_PROMPTS][0])
        shape = condition.tensors[_PROMPTS].shape
        return with_prompts(condition, {_PROMPTS: empty.expand(shape)})

    def fixed_texts(self) -> dict[str, Tensor]:
        """Return the empty prompt's embeddings."""
        self.null(self.condition([""]))
        return self.fixed

    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``."""
        return Flux2Field(backbone)
