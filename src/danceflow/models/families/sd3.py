"""Stable Diffusion 3 family: ``diffusers.SD3Transformer2DModel`` as a velocity field.

One adapter serves the small pixel-space model of the embedded default and a pretrained SD3.5: the
codec is the VAE when the folder has one, the pixels otherwise, and the prompt encoders are those
the folder holds. Edits give the source latents as further input channels, and a source mask that
tells them from no source at all.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError, unknown_name
from danceflow.fields import (
    SOURCE,
    Condition,
    GuidedField,
    Sources,
    VelocityField,
    as_sources,
    rows_with_source,
    shifted_grid,
    with_source,
)
from danceflow.models.adapters.comfy import Original
from danceflow.models.adapters.lora import save_adapter
from danceflow.models.families.pipeline_folder import (
    FROZEN_FILE,
    PIPELINE_FILE,
    count_frozen,
    read_pipeline_class,
    read_scheduler,
    read_transformer_config,
    read_vae_factor,
    scheduler_grid,
    shifted_scheduler,
)
from danceflow.models.families.sd3_names import comfy_names, diffusers_names
from danceflow.models.frozen.codec import Codec, PixelCodec, load_codec, vae_factor
from danceflow.models.frozen.part import held
from danceflow.models.frozen.reading import Reading
from danceflow.models.frozen.text import (
    STOCK_T5_TOKENS,
    PromptEncoder,
    load_prompt_encoder,
    small_clip,
    word_tokenizer,
)
from danceflow.models.layout import Kept, Layout, Sketch, State, Tokens, Transformer
from danceflow.models.weights import load_state, read_json, read_state, save_half

NUM_TIMESTEPS = 1000.0
PREDICTIONS = ("clean", "velocity")

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_PROMPT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_FEED_FORWARD = tuple(f"{ff}.net.{part}" for ff in ("ff", "ff_context") for part in ("0.proj", "2"))
_SOURCE_INPUT = ("pos_embed.proj",)
_SOURCE_WEIGHT = "pos_embed.proj.weight"
_OF_PIXELS = (
    "a model of pixels, such as the embedded default, has no stock pipeline and no place in "
    "ComfyUI; --format diffusers writes its network"
)


def _tokens(state: State) -> Tokens:
    return Tokens(state.image, state.prompt)  # a source is further channels of the same tokens


def _prompt_values(transformer: Transformer, prompt: int, _: Sequence[tuple[int, int]]) -> int:
    pooled: int = transformer["pooled_projection_dim"]
    return prompt * int(transformer["joint_attention_dim"]) + pooled


_KEPT = Kept(whole=1.48, adapter=1.07, half=1.03)
_LAYOUT = Layout(
    usual=("sd3.5-medium", "sd3.5-medium"),
    side=lambda transformer: int(transformer["patch_size"]),
    channels=lambda transformer: int(transformer["out_channels"]),
    tokens=_tokens,
    prompt_values=_prompt_values,
    streams=(
        (r"pos_embed\.proj", "image"),
        (r"time_text_embed\..*|.*norm1(_context)?\.linear|norm_out\.linear", "sample"),
        (r"context_embedder|.*\.(add_[qkv]_proj|to_add_out)|.*\.ff_context\..*", "prompt"),
        (r".*\.to_([qkv]|out\.0)|.*\.ff\..*|proj_out", "image"),
    ),
    attention=(
        (r"transformer_blocks\.\d+\.attn", "all"),
        (r"transformer_blocks\.\d+\.attn2", "image"),
    ),
    kept=(_KEPT, _KEPT),
    sizes={
        "num_layers": "num_layers",
        "num_heads": "num_attention_heads",
        "head_dim": "attention_head_dim",
        "patch_size": "patch_size",
        "out_channels": "out_channels",
    },
    is_widened=True,
)


class Sd3Field:
    """v(z, sigma, cond) of one SD3 transformer.

    With ``prediction = "clean"`` the network gives the clean latents x and
    v = (z - x) / max(sigma, sigma_min); with ``"velocity"`` it gives v.
    """

    def __init__(
        self, backbone: nn.Module, prediction: str, sigma_min: float, source_mask: bool
    ) -> None:
        """Wrap ``backbone``; see :class:`Sd3Family` for the parameters."""
        self.backbone = backbone
        self.prediction = prediction
        self.sigma_min = sigma_min
        self.source_mask = source_mask

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """Return the velocity, [B, C, H, W] float32."""
        dtype = next(self.backbone.parameters()).dtype
        inputs = z_BCHW
        if SOURCE in condition.tensors:
            source = condition.tensors[SOURCE]
            inputs = torch.cat([z_BCHW, source], dim=1)
            if self.source_mask:
                inputs = torch.cat([inputs, _source_mask(source)], dim=1)
        output: Tensor = self.backbone(
            hidden_states=inputs.to(dtype),
            encoder_hidden_states=condition.tensors["prompt_embeds"].to(dtype),
            pooled_projections=condition.tensors["pooled"].to(dtype),
            timestep=sigma_B * NUM_TIMESTEPS,
            return_dict=False,
        )[0].float()
        if self.prediction == "velocity":
            return output
        sigma = sigma_B.clamp_min(self.sigma_min)[:, None, None, None]
        return (z_BCHW - output) / sigma


class Sd3Family:
    """Frozen parts of an SD3 model; see ``family.ModelFamily`` for the contract."""

    name = "sd3"
    layout: ClassVar[Layout] = _LAYOUT
    sees_source = False

    def __init__(
        self,
        prompts: PromptEncoder,
        codec: Codec,
        transformer_config: dict[str, Any],
        *,
        prediction: str,
        sigma_min: float,
        shift: float,
        scheduler: Mapping[str, Any] | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        """Join the frozen parts.

        Args:
            prompts: the text encoders.
            codec: pixels to latents and back.
            transformer_config: arguments of ``SD3Transformer2DModel``; ``in_channels`` is twice
                ``out_channels`` when the model takes source latents, and one more when it takes a
                source mask too: 1 where there is a source, 0 where there is none.
            prediction: ``velocity`` or ``clean``, what the network's output means.
            sigma_min: smallest divisor of the clean prediction.
            shift: timestep shift of the sigma grid.
            scheduler: config of the stock scheduler whose grid is used instead, if any.
            image_size: height and width in pixels; ``None`` is the transformer's own size.

        Raises:
            WeightsError: for an unknown prediction or a number of channels that makes no sense.
        """
        if prediction not in PREDICTIONS:
            raise WeightsError(unknown_name("prediction", prediction, PREDICTIONS))
        channels, size = transformer_config["out_channels"], transformer_config["sample_size"]
        in_channels = transformer_config["in_channels"]
        if in_channels not in (channels, 2 * channels, 2 * channels + 1):
            raise WeightsError(
                f"an SD3 transformer of {channels} output channels takes {channels} channels, or "
                f"{2 * channels} with a source image, or {2 * channels + 1} with a source image "
                f"and its mask, not {in_channels}"
            )
        self.prompts = prompts
        self.codec = codec
        self.transformer_config = transformer_config
        self.prediction = prediction
        self.sigma_min = sigma_min
        self.shift = shift
        self.scheduler = scheduler
        self.latent_shape = (channels, size, size)
        self.image_size = (size * codec.factor, size * codec.factor)
        self.takes_source = in_channels > channels
        self.max_sources = int(self.takes_source)
        self.source_mask = in_channels > 2 * channels
        # Source channels start at zero weight: an adapter that learns to edit must reach them.
        self.adapter_targets = (
            *_ATTENTION,
            *_PROMPT_ATTENTION,
            *_FEED_FORWARD,
            *(_SOURCE_INPUT if self.takes_source else ()),
        )
        self.fixed: dict[str, Tensor] = {}
        if image_size is not None:
            self._set_size(*image_size)

    @property
    def unit(self) -> int:
        """Latent pixels of which the sides of a picture are multiples."""
        return int(self.transformer_config["patch_size"])

    def _set_size(self, height: int, width: int) -> None:
        """Set image and latent sizes; raise ``WeightsError`` if the network cannot do them."""
        config = self.transformer_config
        unit = self.codec.factor * self.unit
        patches = config["pos_embed_max_size"] or config["sample_size"] // config["patch_size"]
        most = unit * patches
        if height % unit or width % unit or not 0 < max(height, width) <= most:
            raise WeightsError(
                f"this SD3 model makes images whose sides are multiples of {unit} up to {most} "
                f"pixels, not {height} x {width}"
            )
        self.image_size = (height, width)
        self.latent_shape = (
            self.latent_shape[0],
            height // self.codec.factor,
            width // self.codec.factor,
        )

    def sized(self, height: int, width: int) -> "Sd3Family":
        """Return this family, sharing its frozen parts, for images of another size.

        Raises:
            WeightsError: if the sides are no multiples of a patch, or beyond the position table.
        """
        resized = copy.copy(self)
        resized._set_size(height, width)
        return resized

    def shifted(self, shift: float) -> "Sd3Family":
        """Return this family, sharing its frozen parts, with another shift of the sigma grid.

        Raises:
            WeightsError: if its scheduler shifts the grid by the picture's size.
        """
        changed = copy.copy(self)
        changed.shift = shift
        if self.scheduler is not None:
            changed.scheduler = shifted_scheduler(self.scheduler, shift)
        return changed

    def editing(self) -> "Sd3Family":
        """Return this family with source channels and mask beside the state's: it can edit.

        Its ``load_backbone`` takes a transformer without them and starts them at zero weight, so
        that it gives the same velocities until it is trained. A family that can edit is itself.
        """
        if self.takes_source:
            return self
        return Sd3Family(
            self.prompts,
            self.codec,
            {**self.transformer_config, "in_channels": 2 * self.latent_shape[0] + 1},
            prediction=self.prediction,
            sigma_min=self.sigma_min,
            shift=self.shift,
            scheduler=self.scheduler,
            image_size=self.image_size,
        )

    @staticmethod
    def new(config: Mapping[str, Any], words: Sequence[str], seed: int) -> "Sd3Family":
        """Return a family with an untrained small text encoder, a function of ``seed``.

        Args:
            config: the ``family`` section of the parameters as plain data.
            words: the closed vocabulary of the prompts.
            seed: decides the encoder's initial weights.
        """
        size, text = config["transformer"], config["text_encoder"]
        tokenizer = word_tokenizer(words, text["max_length"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = small_clip(
                len(tokenizer),
                **{key: text[key] for key in ("num_layers", "num_heads", "width", "max_length")},
            )
        transformer = {
            "num_layers": size["num_layers"],
            "num_attention_heads": size["num_heads"],
            "attention_head_dim": size["head_dim"],
            "patch_size": size["patch_size"],
            "sample_size": size["sample_size"],
            "in_channels": size["in_channels"],
            "out_channels": size["out_channels"],
            "joint_attention_dim": text["width"],
            "pooled_projection_dim": text["width"],
            "caption_projection_dim": size["num_heads"] * size["head_dim"],
            "pos_embed_max_size": size["sample_size"] // size["patch_size"],
            "qk_norm": "rms_norm",
        }
        return Sd3Family(
            PromptEncoder([(tokenizer, held(encoder))], None, text["width"]),
            PixelCodec(),
            transformer,
            prediction=config["prediction"],
            sigma_min=config["sigma_min"],
            shift=config["shift"],
        )

    @staticmethod
    def from_folder(folder: Path, settings: Path | None = None) -> "Sd3Family":
        """Return the family of a folder of :meth:`save_frozen`, or of a stock SD3 pipeline.

        Args:
            folder: where the weights are.
            settings: folder of :meth:`save_settings`; ``None``: they are the weights' own.

        Raises:
            WeightsError: if it is neither, or a file cannot be read.
        """
        path = (folder if settings is None else settings) / FROZEN_FILE
        is_told = settings is not None or path.is_file()
        told = read_json(path) if is_told else _stock_settings(folder)
        try:
            transformer = told["transformer"]
            return Sd3Family(
                load_prompt_encoder(
                    folder, transformer["joint_attention_dim"], told.get("num_t5_tokens", 0)
                ),
                load_codec(folder),
                transformer,
                prediction=told["prediction"],
                sigma_min=told["sigma_min"],
                shift=told["shift"],
                scheduler=told.get("scheduler"),
                image_size=told.get("image_size"),
            )
        except KeyError as error:
            raise WeightsError(f"{path}: the setting {error} is missing") from error

    @staticmethod
    def sketch(folder: Path) -> Sketch:
        """Return what configurations and the headers of weight files say of such a folder.

        Raises:
            WeightsError: if it is no such folder, or a file is missing or damaged.
        """
        if (folder / FROZEN_FILE).is_file():
            settings = read_json(folder / FROZEN_FILE)
            pipeline, transformer = settings.get("pipeline", ""), settings["transformer"]
        else:
            pipeline, transformer = _stock_transformer(folder)
        clip = read_json(folder / "tokenizer" / "tokenizer_config.json")["model_max_length"]
        has_t5 = (folder / "text_encoder_3").is_dir()
        return Sketch(
            pipeline=pipeline,
            transformer=transformer,
            takes_source=transformer["in_channels"] > transformer["out_channels"],
            factor=read_vae_factor(folder, vae_factor),
            prompt_tokens=int(clip) + (STOCK_T5_TOKENS if has_t5 else 0),
            frozen=count_frozen(folder),
        )

    @staticmethod
    def sketch_new(config: Mapping[str, Any], words: Sequence[str]) -> Sketch:
        """Return the networks that :meth:`new` and a training from scratch make."""
        family = Sd3Family.new(config, words, seed=0)
        encoders = sum(p.numel() for _, e in family.prompts.clips for p in e.parameters())
        return Sketch(
            pipeline="",
            transformer=family.transformer_config,
            takes_source=family.takes_source,
            factor=family.codec.factor,
            prompt_tokens=family.prompts.max_length,
            frozen={"text_encoder": encoders},
        )

    @staticmethod
    def bare_backbone(
        transformer: Transformer, factor: int, *, edits: bool
    ) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a transformer alone and the ends of its adapters' names."""
        family = Sd3Family(
            cast(PromptEncoder, _NoPrompts(transformer)),
            cast(Codec, _NoCodec(factor)),
            dict(transformer),
            prediction="velocity",
            sigma_min=0.0,
            shift=1.0,
        )
        family = family.editing() if edits else family
        return family.new_backbone(seed=0), family.adapter_targets

    def save_frozen(self, folder: Path) -> None:
        """Write the text encoders, codec and settings to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        self.prompts.save(folder)
        self.codec.save(folder)
        self.save_settings(folder)

    def save_settings(self, folder: Path) -> None:
        """Write what is known beside weights to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "family": self.name,
            "prediction": self.prediction,
            "sigma_min": self.sigma_min,
            "shift": self.shift,
            "scheduler": self.scheduler,
            "image_size": self.image_size,
            "num_t5_tokens": self.prompts.num_t5_tokens,
            "transformer": self.transformer_config,
        }
        (folder / FROZEN_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    def frozen_networks(self) -> dict[str, nn.Module]:
        """Return encoders and codec by the names of their folders."""
        return {**self.prompts.networks(), **self.codec.networks()}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Sd3Family":
        """Keep encoders and codec on ``device``; the encoders as ``dtype`` if one is given."""
        self.prompts.to(device, dtype)
        self.codec.to(device)
        return self

    def release(self) -> None:
        """Give the memory of what makes conditions back, until it is asked again."""
        self.prompts.release()
        self.codec.release()

    def condition(
        self,
        prompts: Sequence[str],
        sources: Sources = None,
        images: Sources = None,  # noqa: ARG002
    ) -> Condition:
        """Return the condition of ``prompts``; see ``family.ModelFamily``."""
        embeds, pooled = self.prompts(prompts)
        tensors = {"prompt_embeds": embeds, "pooled": pooled}
        given = as_sources(sources)
        if given and not self.takes_source:
            raise WeightsError("this SD3 transformer has no source channels and cannot edit")
        if len(given) > self.max_sources:
            raise WeightsError(f"this sd3 model takes one source, and {len(given)} are given")
        return with_source(tensors, given, self.latent_shape, takes_source=self.takes_source)

    def null(self, condition: Condition) -> Condition:
        """Return ``condition`` with the empty prompt and the same source."""
        null = {
            key: value.to(condition.tensors[key]).expand_as(condition.tensors[key])
            for key, value in self.fixed_texts().items()
        }
        return Condition({**condition.tensors, **null})

    def fixed_texts(self) -> dict[str, Tensor]:
        """Return the empty prompt's tensors, of one row; the encoders are asked at most once."""
        if not self.fixed:
            embeds, pooled = self.prompts([""])
            self.fixed.update({"prompt_embeds": embeds, "pooled": pooled})
        return self.fixed

    def take_fixed(self, texts: Mapping[str, Tensor]) -> None:
        """Take what :meth:`fixed_texts` gave elsewhere, so that no encoder is asked here."""
        self.fixed.update(texts)

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of ``prompt`` that the tokenizer does not know."""
        return self.prompts.unknown_words(prompt)

    def readings(self, prompt: str, *, edits: bool = False) -> tuple[Reading, ...]:  # noqa: ARG002
        """Return how much of ``prompt`` each text encoder reads."""
        return self.prompts.readings(prompt)

    def field(self, backbone: nn.Module) -> VelocityField:
        """Return the velocity field of ``backbone``."""
        return Sd3Field(backbone, self.prediction, self.sigma_min, self.source_mask)

    def guided(self, field: VelocityField, scale: float) -> GuidedField:
        """Return ``field`` with classifier-free guidance."""
        return GuidedField(field, self.null, scale)

    def target_velocity(
        self, z_BCHW: Tensor, clean_BCHW: Tensor, noise_BCHW: Tensor, sigma_B: Tensor
    ) -> Tensor:
        """Return eps - x, or (z - x) / max(sigma, sigma_min) for clean prediction.

        The two are equal from ``sigma_min`` on; below it the second is what the field gives for
        the right clean latents.
        """
        if self.prediction == "velocity":
            return noise_BCHW - clean_BCHW
        return (z_BCHW - clean_BCHW) / sigma_B.clamp_min(self.sigma_min)[:, None, None, None]

    def grid(self, num_steps: int) -> Tensor:
        """Return the shifted sigma grid, or the stock scheduler's, [num_steps + 1]."""
        if self.scheduler is None:
            return shifted_grid(num_steps, self.shift)
        patch = self.transformer_config["patch_size"]
        num_tokens = (self.latent_shape[1] // patch) * (self.latent_shape[2] // patch)
        return scheduler_grid(self.scheduler, num_steps, num_tokens)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Return the latents of images in [0, 1]."""
        return self.codec.encode(images_B3HW)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Return the images of latents, clamped to [0, 1]."""
        return self.codec.decode(latents_BCHW)

    def new_backbone(self, seed: int) -> nn.Module:
        """Return an untrained transformer whose source channels start at zero weight.

        Its position table (a buffer that is saved with the weights) holds a cosine basis of the
        token grid in place of the stock frequencies, of which a small grid sees few.
        """
        from diffusers import SD3Transformer2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = SD3Transformer2DModel(**self.transformer_config)
        table = backbone.pos_embed.pos_embed
        table.copy_(cosine_positions(math.isqrt(table.shape[1]), table.shape[2]))
        if self.takes_source:
            with torch.no_grad():
                backbone.pos_embed.proj.weight[:, self.latent_shape[0] :] = 0
        network: nn.Module = backbone
        return network

    def load_backbone(self, folder: Path) -> nn.Module:
        """Return the transformer in ``folder`` as float32; missing source channels are zeros.

        Raises:
            WeightsError: if the weights are missing, truncated or of another shape.
        """
        from diffusers import SD3Transformer2DModel

        backbone: nn.Module = SD3Transformer2DModel(**self.transformer_config)
        load_state(backbone, self.stored_weights(folder), folder)
        return backbone

    def empty_backbone(self) -> nn.Module:
        """Return a transformer whose parameters have no values yet."""
        from accelerate import init_empty_weights
        from diffusers import SD3Transformer2DModel

        with init_empty_weights():
            backbone: nn.Module = SD3Transformer2DModel(**self.transformer_config)
        return backbone

    def stored_weights(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights in ``folder``, as they are stored; missing source channels are zeros.

        Raises:
            WeightsError: if they are missing or truncated.
        """
        state = read_state(folder)
        if self.takes_source:
            state = _with_source_channels(state, self.latent_shape[0], self.source_mask)
        return state

    def save_backbone(self, backbone: nn.Module, folder: Path) -> None:
        """Write the transformer to ``folder`` as float16 in diffusers' format."""
        save_half(backbone, folder)

    def translate_adapter(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return an adapter's tensors under diffusers' names, from those of the original code."""
        return diffusers_names(tensors, self.transformer_config["num_layers"])

    @staticmethod
    def comfy_names(settings: Mapping[str, Any]) -> dict[str, Original]:
        """Return the layers of the original code, as ComfyUI keeps them, by name.

        Raises:
            WeightsError: it is a model of pixels, which no other program runs.
        """
        if settings["scheduler"] is None:
            raise WeightsError(_OF_PIXELS)
        return comfy_names(settings["transformer"]["num_layers"])

    def for_pipeline(self, backbone: nn.Module) -> tuple[str, nn.Module, Mapping[str, Any]]:
        """Return the stock pipeline's class, its network and its scheduler's configuration.

        No pipeline takes source channels: the network is without them, and gives the student's
        text-to-image.

        Raises:
            WeightsError: it is a model of pixels, for which there is no pipeline.
        """
        from diffusers import SD3Transformer2DModel

        if self.scheduler is None:
            raise WeightsError(_OF_PIXELS)
        channels = self.latent_shape[0]
        state = backbone.state_dict()
        state[_SOURCE_WEIGHT] = state[_SOURCE_WEIGHT][:, :channels]
        config = {**self.transformer_config, "in_channels": channels}
        network: nn.Module = SD3Transformer2DModel(**config)
        network.load_state_dict(state)
        return "StableDiffusion3Pipeline", network, self.scheduler

    def export_adapter(self, backbone: nn.Module, folder: Path) -> None:
        """Write the student's adapter to ``folder``.

        No stock pipeline takes source channels: ``folder / "stock"`` has the adapter without them,
        with which a stock pipeline gives the student's text-to-image.
        """
        save_adapter(backbone, folder)
        if self.takes_source:
            inputs = dict.fromkeys(_SOURCE_INPUT, self.latent_shape[0])
            save_adapter(backbone, folder / "stock", num_inputs=inputs)


class _NoPrompts:
    """Stands where the text encoders are, which a transformer alone needs not."""

    def __init__(self, transformer: Transformer) -> None:
        self.widths = transformer["joint_attention_dim"], transformer["pooled_projection_dim"]

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        length, pooled = self.widths
        return torch.empty(len(prompts), 1, length), torch.empty(len(prompts), pooled)


@dataclass(frozen=True)
class _NoCodec:
    """Stands where the codec is."""

    factor: int


def _source_mask(source_BCHW: Tensor) -> Tensor:
    """Return 1 for a source and 0 for none, [B, 1, H, W]."""
    present_B = rows_with_source(source_BCHW).to(source_BCHW.dtype)
    return present_B[:, None, None, None].expand(-1, 1, *source_BCHW.shape[2:])


def _with_source_channels(
    state: dict[str, Tensor], channels: int, source_mask: bool
) -> dict[str, Tensor]:
    """Return ``state`` with zero weights for the source and its mask where it has none."""
    weight = state.get(_SOURCE_WEIGHT)
    if weight is None or weight.shape[1] not in (channels, 2 * channels):
        return state
    missing = 2 * channels + source_mask - weight.shape[1]
    zeros = weight.new_zeros(len(weight), missing, *weight.shape[2:])
    return {**state, _SOURCE_WEIGHT: torch.cat([weight, zeros], dim=1)}


def cosine_positions(size: int, width: int) -> Tensor:
    """Return features of the places of a square grid, [1, size * size, width] float32.

    Half of the features tell the column and half the row, by the discrete cosine basis
    cos(pi k (p + 1/2) / size), k = 0, 1, ..., repeated to the width. Each has mean square 1 over
    the grid, so any two columns (or rows) differ by as much as any other two.

    Args:
        size: places along a side.
        width: features, an even number.
    """
    place = torch.arange(size) + 0.5
    frequency = torch.arange(width // 2) % size
    basis = torch.cos(math.pi * frequency * place[:, None] / size)
    basis = basis / basis.square().mean(0).sqrt()
    columns = basis.expand(size, size, -1)
    return torch.cat([columns, columns.transpose(0, 1)], dim=-1).reshape(1, size * size, width)


def _stock_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a stock SD3 pipeline in diffusers' layout.

    Raises:
        WeightsError: if ``folder`` holds no such pipeline.
    """
    if not (folder / PIPELINE_FILE).is_file():
        raise WeightsError(f"{folder}: there is neither {FROZEN_FILE} nor {PIPELINE_FILE} in it")
    _, transformer = _stock_transformer(folder)
    scheduler = read_scheduler(folder)
    return {
        "prediction": "velocity",
        "sigma_min": 0.0,
        "shift": scheduler.get("shift", 1.0),
        "scheduler": scheduler,
        "num_t5_tokens": STOCK_T5_TOKENS,
        "transformer": transformer,
    }


def _stock_transformer(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the class of a stock SD3 pipeline and the arguments of its transformer.

    Raises:
        WeightsError: if ``folder`` holds no such pipeline.
    """
    from diffusers import SD3Transformer2DModel

    pipeline = read_pipeline_class(folder)
    if not pipeline.startswith("StableDiffusion3"):
        raise WeightsError(f"{folder}: holds a {pipeline}, not an SD3 pipeline")
    transformer = read_transformer_config(folder, SD3Transformer2DModel)
    transformer["out_channels"] = transformer["out_channels"] or transformer["in_channels"]
    return pipeline, transformer
