"""Qwen-Image 2.1 family: ``diffusers.QwenImage21Transformer2DModel`` as a velocity field.

One network makes images from text and edits. The language model reads the prompt behind the
pictures; its tokens and the pictures' latents are one sequence, in which a picture's latents stand
where the language model had its tokens, and the new image comes last. Attention is causal between
these blocks, and what comes before the new image does not see sigma.

Places in the sequence count the prompt's tokens: rows of prompts of other lengths are computed
apart, so that no row's picture depends on the rows beside it.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import MAX_SOURCES, Condition, VelocityField
from danceflow.models.families.pipeline_folder import (
    PIPELINE_FILE,
    interpolated_mu,
)
from danceflow.models.families.stock import (
    StockFamily,
    StockSettings,
    by_layout,
    with_prompts,
)
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
from danceflow.models.weights import read_json

_PIPELINE = "QwenImage21Pipeline"
_SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
_USER = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
_PICTURE = "<|image_pad|>"
_SEEN = "<image{}><|vision_start|>{}<|vision_end|>"
_SLOT = 2  # latent pixels along a side of what is one token to the language model
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = tuple(f"img_mlp.{part}" for part in ("proj", "gate_layer", "out"))


def _counted(state: State) -> Tokens:
    text, target = state.prompt, state.image
    source = state.num_sources * target
    before = text + source
    return Tokens(
        image=target + source,
        prompt=text + source // _SLOT**2,
        sample=2,  # what comes before the new image is told sigma 0
        joint=before + target,
        # Blocks look at what stands before them and at themselves; every picture is a block.
        pairs=text**2
        + sum(target * (text + n * target) for n in range(1, state.num_sources + 1))
        + target * (before + target),
    )


def _prompt_values(
    transformer: Transformer, prompt: int, sources: Sequence[tuple[int, int]]
) -> int:
    width = int(transformer["context_in_dim"])
    if not sources:
        return prompt * width
    unit = 16 * _SLOT
    seen = sum((height // unit) * (columns // unit) for height, columns in sources)
    # The empty prompt's embeddings depend on the pictures: the cache keeps both.
    return 2 * (prompt + seen) * width


_KEPT = Kept(whole=1.65, adapter=1.26, half=1.17)
_LAYOUT = Layout(
    usual=("qwen-image-2.1", "qwen-image-2.1"),
    side=lambda _: 1,
    channels=lambda transformer: int(transformer["in_channels"]),
    tokens=_counted,
    prompt_values=_prompt_values,
    streams=(
        (r"time_text_embed\..*|modulation\..*|norm_out\.linear", "sample"),
        (r"txt_in\..*", "prompt"),
        (r"img_in", "image"),
        (r"transformer_blocks\..*|proj_out", "all"),
    ),
    attention=((r"transformer_blocks\.\d+\.attn", "all"),),
    kept=(_KEPT, _KEPT),
)


def _factor(vae: Mapping[str, Any]) -> int:
    """Return image pixels per latent pixel, along a side, of an ``AutoencoderKLQwenImage21``."""
    return int(vae["scale_factor_spatial"])


class Qwen21Codec(FrameCodec):
    """``diffusers.AutoencoderKLQwenImage21`` on single opaque frames, normalised per channel."""

    def __init__(self, halves: Halves) -> None:
        """Take the autoencoder."""
        super().__init__(halves)
        self.factor = _factor(vars(halves.config))

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the normalised latent mode of opaque pictures."""
        images = images_B3HW.to(self.halves.device)
        return self.normalised(torch.cat([images, torch.ones_like(images[:, :1])], dim=1))

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the colours of the decoded images; what they say of transparency is left out."""
        return self.frames(latents_BCHW)[:, :3]


class QwenImage21Field:
    """v(z, sigma, cond) of one Qwen-Image 2.1 transformer: its output at time sigma."""

    def __init__(self, backbone: nn.Module) -> None:
        """Wrap ``backbone``."""
        self.backbone = backbone
        _keep_time_exact(backbone)

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition, /) -> Tensor:
        """Return the velocity, [B, C, H, W] float32."""
        lengths = condition.tensors["prompt_mask"].sum(1)
        kinds = lengths.unique().tolist()
        if len(kinds) == 1:
            return by_layout(z_BCHW, sigma_B, condition, self._velocity)
        parts, order = [], []
        for length in kinds:
            at = (lengths == length).nonzero().flatten()
            part = condition.select(at)
            parts.append(by_layout(z_BCHW[at], sigma_B[at], part, self._velocity))
            order.append(at)
        return torch.cat(parts)[torch.cat(order).argsort().to(z_BCHW.device)]

    def _velocity(
        self, z: Tensor, sigma: Tensor, condition: Condition, sources: Sequence[Tensor]
    ) -> Tensor:
        dtype = next(self.backbone.parameters()).dtype
        tensors = condition.tensors
        length = int(tensors["prompt_mask"][0].sum())
        states = [*sources, z]
        slots = tensors["picture_mask"][:, :length].bool()
        target = z.shape[2] * z.shape[3]
        own = slots.new_ones(len(z), target // _SLOT**2)
        output: Tensor = self.backbone(
            hidden_states=torch.cat([_tokens(state) for state in states], dim=1).to(dtype),
            timestep=sigma,
            encoder_hidden_states=tensors["prompt_embeds"][:, :length].to(dtype),
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, *state.shape[2:]) for state in states]] * len(z),
            img_mask=torch.cat([slots, own], dim=1),
            return_dict=False,
        )[0]
        return output[:, -target:].float().mT.reshape(z.shape)


def _keep_time_exact(backbone: nn.Module) -> None:
    """Make the frequencies of the time embedding float32, whatever the network was cast to.

    They are a buffer: ``network.to(bfloat16)`` rounds them, and 1000 sigma times that is another
    phase. The network moves them to its device itself.
    """
    time: Any = backbone.get_submodule("time_text_embed.time_proj")
    time._buffers.pop("freqs", None)
    time.freqs = type(time)(time.timestep_dim, time_factor=time.time_factor).freqs.cpu()


def _tokens(latents_BCHW: Tensor) -> Tensor:
    """Return latents as tokens, [B, H * W, C]."""
    return latents_BCHW.flatten(2).mT


class QwenImage21Family(StockFamily):
    """Frozen parts of a Qwen-Image 2.1 model; see ``family.ModelFamily`` for the contract."""

    name: ClassVar[str] = "qwen_image21"
    pipelines: ClassVar[tuple[str, ...]] = (_PIPELINE,)
    edit_pipelines: ClassVar[tuple[str, ...]] = (_PIPELINE,)
    layout: ClassVar[Layout] = _LAYOUT
    most_sources: ClassVar[int] = MAX_SOURCES
    adapter_targets: tuple[str, ...] = (*_ATTENTION, *_FEED_FORWARD)

    def __init__(
        self,
        settings: StockSettings,
        codec: Codec,
        language: LanguageEncoder,
        pictures: Pictures,
    ) -> None:
        """Join the frozen parts."""
        super().__init__(settings, codec)
        self.language = language
        self.pictures = pictures
        self._empty: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def transformer_class() -> Any:
        """Return ``diffusers.QwenImage21Transformer2DModel``."""
        from diffusers import QwenImage21Transformer2DModel

        return QwenImage21Transformer2DModel

    @classmethod
    def open(cls, folder: Path, settings: StockSettings) -> Self:
        """Return the family of the frozen parts in ``folder``.

        Raises:
            WeightsError: if a part cannot be read, or the model was distilled for a grid of its
                own.
        """
        from diffusers import AutoencoderKLQwenImage21
        from transformers import Qwen2VLImageProcessor, Qwen3VLForConditionalGeneration

        if (folder / PIPELINE_FILE).is_file() and read_json(folder / PIPELINE_FILE).get(
            "sample_sigmas"
        ):
            raise WeightsError(
                f"{folder / PIPELINE_FILE}: its sample_sigmas say that this model was distilled "
                "for a few steps of its own; bring the model that it was distilled from"
            )
        # Stock folders have the tokenizer in the processor's; what is saved here has its own.
        place = "tokenizer" if (folder / "tokenizer").is_dir() else "processor"
        language = load_language_encoder(folder, Qwen3VLForConditionalGeneration, place)
        pictures = Pictures(load_part(folder / "processor", Qwen2VLImageProcessor))
        codec = Qwen21Codec(Halves(AutoencoderKLQwenImage21, folder / "vae"))
        return cls(settings, codec, language, pictures)

    @staticmethod
    def vae_factor(config: Mapping[str, Any]) -> int:
        """Return image pixels per latent pixel, along a side, from the codec's configuration."""
        return _factor(config)

    @property
    def unit(self) -> int:
        """Latent pixels of which the sides of a picture are multiples."""
        return _SLOT

    @property
    def sees_source(self) -> bool:
        """Whether the language model looks at the source image."""
        return True

    def parts(self) -> Sequence[Any]:
        """Return the encoders."""
        return [self.language, self.pictures]

    def mu(self, num_tokens: int, num_steps: int) -> float:  # noqa: ARG002
        """Return the shift that grows with the number of tokens."""
        return interpolated_mu(self.settings.scheduler, num_tokens)

    def prompt_tensors(
        self, prompts: Sequence[str], images: Sequence[Sequence[Tensor]]
    ) -> dict[str, Tensor]:
        """Return embeddings of the prompts and of nothing, both beside the pictures.

        ``mask`` says which tokens are no padding, ``picture_mask`` which are a picture's. What the
        language model says of pictures without an instruction is the row's null embedding.
        """
        rows = [self._embed(prompt, seen) for prompt, seen in zip(prompts, images, strict=True)]
        nulls = [self._null(seen) for seen in images]
        tensors = {}
        for name, found in (("prompt", rows), ("null", nulls)):
            tensors[f"{name}_embeds"], tensors[f"{name}_mask"] = ragged([e for e, _ in found])
            pictures = ragged([slots[:, None] for _, slots in found])[0][..., 0]
            tensors["picture_mask" if name == "prompt" else "null_picture_mask"] = pictures
        return tensors

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:  # noqa: ARG002
        """Return how much of ``prompt`` the language model reads: all."""
        return (self.language.reading(prompt, partial(_text, pictures=()), None),)

    def fixed_texts(self) -> dict[str, Tensor]:
        """Return nothing: every row has its own embedding of the empty prompt."""
        return self.fixed

    def null(self, condition: Condition) -> Condition:
        """Return ``condition`` with the empty prompt and the same source."""
        names = {
            "prompt_embeds": "null_embeds",
            "prompt_mask": "null_mask",
            "picture_mask": "null_picture_mask",
        }
        return with_prompts(
            condition, {name: condition.tensors[null] for name, null in names.items()}
        )

    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``."""
        return QwenImage21Field(backbone)

    def _null(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what ``_embed`` gives for the empty prompt."""
        if images:
            return self._embed("", images)
        if not self._empty:
            self._empty.append(self._embed("", ()))
        return self._empty[0]

    @torch.no_grad()
    def _embed(self, prompt: str, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the embedding [L, D] of ``prompt`` behind ``images``, and which tokens are theirs.

        It is the last layer's output before its norm, without the system's message. The model was
        trained with a blank for the empty prompt.

        Raises:
            WeightsError: the image processor makes other tokens of a picture than the network's
                latents have places.
        """
        model, tokenizer, device = (
            self.language.model,
            self.language.tokenizer,
            self.language.device,
        )
        found = [self.pictures(image) for image in images]
        unit = self.codec.factor * _SLOT
        for image, (_, _, count) in zip(images, found, strict=True):
            height, width = (side // unit for side in image.shape[1:])
            if count != height * width:
                raise WeightsError(
                    f"the image processor makes {count} tokens of a picture of {image.shape[2]} x "
                    f"{image.shape[1]} pixels, {width} x {height} are needed; sides should be "
                    f"multiples of {unit} pixels, within the processor's bounds"
                )
        text = _text(prompt, [_PICTURE * count for _, _, count in found])
        batch = tokenizer(text, return_tensors="pt").to(device)
        is_picture = batch.input_ids[0] == tokenizer.convert_tokens_to_ids(_PICTURE)
        seen = {}
        if found:
            seen = {
                "pixel_values": torch.cat([pixels for pixels, _, _ in found]).to(device),
                "image_grid_thw": torch.cat([grid for _, grid, _ in found]).to(device),
                "mm_token_type_ids": is_picture[None].int(),
            }
        last: list[Tensor] = []
        norm = model.get_submodule("model.language_model.norm")
        handle = norm.register_forward_pre_hook(lambda _, given: last.append(given[0]))
        try:
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                use_cache=False,
                logits_to_keep=1,
                **seen,
            )
        finally:
            handle.remove()
        dropped = len(tokenizer(_SYSTEM).input_ids)
        return last[0][0, dropped:].float(), is_picture[dropped:]


def _text(prompt: str, pictures: Sequence[str]) -> str:
    """Return what the language model reads: the pictures' tokens, and the prompt behind them."""
    seen = " ".join(_SEEN.format(number, slots) for number, slots in enumerate(pictures, 1))
    return _SYSTEM + _USER.format(seen + (prompt or " "))
