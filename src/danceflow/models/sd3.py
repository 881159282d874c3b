"""Stable Diffusion 3 family: ``diffusers.SD3Transformer2DModel`` as a velocity field.

One adapter serves the small pixel-space model of the embedded default and a pretrained SD3.5: the
codec is the VAE when the folder has one, the pixels otherwise, and the prompt encoders are whichever
the folder holds. Edits give the source latents as further input channels.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import Condition, VelocityField, shifted_grid
from danceflow.models.codec import Codec, PixelCodec, load_codec
from danceflow.models.text import PromptEncoder, load_prompt_encoder, small_clip, word_tokenizer

FROZEN_FILE = "danceflow_family.json"
NUM_TIMESTEPS = 1000.0


class Sd3Field:
    """v(z, sigma, cond) of one SD3 transformer.

    With ``prediction = "clean"`` the network gives the clean latents x and
    v = (z - x) / max(sigma, sigma_min); with ``"velocity"`` it gives v.
    """

    def __init__(self, backbone: nn.Module, prediction: str, sigma_min: float) -> None:
        """Wraps ``backbone``; see :class:`Sd3Family` for the parameters."""
        self.backbone = backbone
        self.prediction = prediction
        self.sigma_min = sigma_min

    def __call__(self, z_BCHW: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """Returns the velocity, [B, C, H, W] float32."""
        dtype = next(self.backbone.parameters()).dtype
        inputs = z_BCHW
        if "source" in condition.tensors:
            inputs = torch.cat([z_BCHW, condition.tensors["source"]], dim=1)
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

    def __init__(
        self,
        prompts: PromptEncoder,
        codec: Codec,
        transformer_config: dict[str, Any],
        *,
        prediction: str,
        sigma_min: float,
        shift: float,
    ) -> None:
        """Joins the frozen parts.

        Args:
            prompts: the text encoders.
            codec: pixels to latents and back.
            transformer_config: arguments of ``SD3Transformer2DModel``; ``in_channels`` is twice
                ``out_channels`` when the model takes source latents.
            prediction: ``velocity`` or ``clean``, what the network's output means.
            sigma_min: smallest divisor of the clean prediction.
            shift: timestep shift of the sigma grid.
        """
        self.prompts = prompts
        self.codec = codec
        self.transformer_config = transformer_config
        self.prediction = prediction
        self.sigma_min = sigma_min
        self.shift = shift
        channels, size = transformer_config["out_channels"], transformer_config["sample_size"]
        self.latent_shape = (channels, size, size)
        self.takes_source = transformer_config["in_channels"] == 2 * channels
        embeds, pooled = prompts([""])
        self._null = {"prompt_embeds": embeds, "pooled": pooled}

    @staticmethod
    def new(config: Mapping[str, Any], words: Sequence[str], seed: int) -> "Sd3Family":
        """Returns a family with an untrained small text encoder, a function of ``seed``.

        Args:
            config: the ``family`` section of the parameters as plain data.
            words: the closed vocabulary of the prompts.
            seed: decides the encoder's initial weights.
        """
        size, text = config["transformer"], config["text_encoder"]
        tokenizer = word_tokenizer(words, text["max_length"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = small_clip(len(tokenizer), **text)
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
            PromptEncoder([(tokenizer, encoder)], None, text["width"]),
            PixelCodec(),
            transformer,
            prediction=config["prediction"],
            sigma_min=config["sigma_min"],
            shift=config["shift"],
        )

    @staticmethod
    def from_folder(folder: Path) -> "Sd3Family":
        """Returns the family saved by :meth:`save_frozen`; raises ``WeightsError`` if it cannot."""
        try:
            meta = json.loads((folder / FROZEN_FILE).read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(f"{folder / FROZEN_FILE}: cannot be read: {error}") from error
        transformer = meta["transformer"]
        return Sd3Family(
            load_prompt_encoder(folder, transformer["joint_attention_dim"]),
            load_codec(folder),
            transformer,
            prediction=meta["prediction"],
            sigma_min=meta["sigma_min"],
            shift=meta["shift"],
        )

    def save_frozen(self, folder: Path) -> None:
        """Writes the text encoders, codec and settings to ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, (tokenizer, encoder) in enumerate(self.prompts.clips, start=1):
            suffix = "" if number == 1 else f"_{number}"
            tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
            _save_half(encoder, folder / f"text_encoder{suffix}")
        if self.prompts.t5 is not None:
            tokenizer, encoder = self.prompts.t5
            tokenizer.save_pretrained(folder / "tokenizer_3")
            _save_half(encoder, folder / "text_encoder_3")
        self.codec.save(folder)
        meta = {
            "family": self.name,
            "prediction": self.prediction,
            "sigma_min": self.sigma_min,
            "shift": self.shift,
            "transformer": self.transformer_config,
        }
        (folder / FROZEN_FILE).write_text(json.dumps(meta, indent=2) + "\n")

    def condition(self, prompts: Sequence[str], source_BCHW: Tensor | None = None) -> Condition:
        """Returns the condition of ``prompts``; a missing source is a source of zeros."""
        embeds, pooled = self.prompts(prompts)
        tensors = {"prompt_embeds": embeds, "pooled": pooled}
        if self.takes_source:
            blank = embeds.new_zeros(len(prompts), *self.latent_shape)
            tensors["source"] = blank if source_BCHW is None else source_BCHW
        elif source_BCHW is not None:
            raise WeightsError("this SD3 transformer has no source channels and cannot edit")
        return Condition(tensors)

    def null(self, condition: Condition) -> Condition:
        """Returns ``condition`` with the empty prompt and the same source."""
        null = {
            key: value.to(condition.tensors[key]).expand_as(condition.tensors[key])
            for key, value in self._null.items()
        }
        return Condition({**condition.tensors, **null})

    def unknown_words(self, prompt: str) -> list[str]:
        """Returns the words of ``prompt`` that the tokenizer does not know."""
        return self.prompts.unknown_words(prompt)

    def field(self, backbone: nn.Module) -> VelocityField:
        """Returns the velocity field of ``backbone``."""
        return Sd3Field(backbone, self.prediction, self.sigma_min)

    def grid(self, num_steps: int) -> Tensor:
        """Returns the shifted sigma grid, [num_steps + 1]."""
        return shifted_grid(num_steps, self.shift)

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Returns the latents of images in [0, 1]."""
        return self.codec.encode(images_B3HW)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Returns the images of latents, clamped to [0, 1]."""
        return self.codec.decode(latents_BCHW)

    def new_backbone(self, seed: int) -> nn.Module:
        """Returns an untrained transformer whose source channels start at zero weight."""
        from diffusers import SD3Transformer2DModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone: nn.Module = SD3Transformer2DModel(**self.transformer_config)
        if self.takes_source:
            projection = backbone.pos_embed.proj
            with torch.no_grad():
                projection.weight[:, self.latent_shape[0] :] = 0
        return backbone

    def load_backbone(self, folder: Path) -> nn.Module:
        """Returns the transformer in ``folder`` as float32.

        Raises:
            WeightsError: if the weights are missing, truncated or of another shape.
        """
        from diffusers import SD3Transformer2DModel
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / "diffusion_pytorch_model.safetensors"
        backbone: nn.Module = SD3Transformer2DModel(**self.transformer_config)
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: weights are missing or truncated: {error}") from error
        expected = {key: value.shape for key, value in backbone.state_dict().items()}
        found = {key: value.shape for key, value in state.items()}
        if expected != found:
            odd = sorted(k for k in expected | found if expected.get(k) != found.get(k))
            raise WeightsError(
                f"{path}: {len(odd)} tensors do not match the configured transformer; the first is "
                f"{odd[0]}: expected {expected.get(odd[0])}, found {found.get(odd[0])}"
            )
        backbone.load_state_dict({key: value.float() for key, value in state.items()})
        return backbone

    def save_backbone(self, backbone: nn.Module, folder: Path) -> None:
        """Writes the transformer to ``folder`` as float16 in diffusers' format."""
        _save_half(backbone, folder)


def _save_half(module: nn.Module, folder: Path) -> None:
    """Saves a float16 copy: half the size, and every value that training moved survives."""
    state = {key: value.half() for key, value in module.state_dict().items()}
    module.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
