"""What costs must know of a family: how its tokens lie, what its caches keep of a prompt.

One row of ``LAYOUTS`` per family; the networks themselves are counted, not described, elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.models.frozen.text import STOCK_T5_TOKENS
from danceflow.models.weights import read_json
from danceflow.plan.network import Tokens

ASSUMED_PROMPT_TOKENS = 128
"""Of a prompt in a family whose prompts are not padded to one length; the pipelines cut at 512."""
VISION_TOKENS = 256
"""What a SigLIP 2 processor makes of a picture at most, unless it is told."""

_MULTIPLE = 32  # of Z-Image's sequences
_PICTURE_PATCH = 28  # pixels along a side, of a token of Qwen2.5-VL

Transformer = Mapping[str, Any]
"""The arguments of a family's diffusers class."""


@dataclass(frozen=True)
class State:
    """One state as its tokens are counted.

    Attributes:
        image: tokens of the latents.
        prompt: tokens of the prompt's text.
        vision: tokens of a picture's features, for a family with a vision encoder beside it.
        size: height and width in pixels.
        edits: whether the network takes sources.
        has_source: whether this state has one.
    """

    image: int
    prompt: int
    vision: int
    size: tuple[int, int]
    edits: bool
    has_source: bool


@dataclass(frozen=True)
class Layout:
    """The row of a family.

    Attributes:
        usual: the published model of a recipe that names none: of what only creates, of edits.
        side: latent pixels along a side of a token.
        channels: of the latents.
        tokens: the rows of a state's evaluation.
        prompt_values: numbers that a cache keeps of one prompt: (transformer, tokens of the text,
            the picture's height and width if the row has a source).
        prompt_tokens: of every prompt, from a pipeline's folder; ``None`` where prompts keep their
            own length.
        factor: image pixels along a side of a latent pixel, from the VAE's configuration.
    """

    usual: tuple[str, str]
    side: Callable[[Transformer], int]
    channels: Callable[[Transformer], int]
    tokens: Callable[[State], Tokens]
    prompt_values: Callable[[Transformer, int, tuple[int, int] | None], int]
    prompt_tokens: Callable[[Path], int | None]
    factor: Callable[[Mapping[str, Any]], int]


def tokens_of(
    family: str,
    transformer: Transformer,
    factor: int,
    size: tuple[int, int],
    prompt: int,
    *,
    edits: bool,
    has_source: bool,
    vision: int = VISION_TOKENS,
) -> Tokens:
    """Return the tokens of one state.

    Args:
        family: its name.
        transformer: the arguments of its diffusers class.
        factor: image pixels per latent pixel, along a side.
        size: height and width in pixels.
        prompt: tokens of the prompt's text.
        edits: whether the network takes sources.
        has_source: whether this state has one.
        vision: tokens of a picture's features, for a family with a vision encoder beside it.
    """
    layout = LAYOUTS[family]
    height, width = (length // (factor * layout.side(transformer)) for length in size)
    state = State(height * width, prompt, vision, size, edits, has_source and edits)
    return layout.tokens(state)


def picture_tokens(size: tuple[int, int]) -> int:
    """Return the tokens that Qwen2.5-VL makes of a picture of this height and width in pixels."""
    height, width = (max(1, round(side / _PICTURE_PATCH)) for side in size)
    return height * width


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE


def _own_length(_: Path) -> None:
    return None


def _from_blocks(vae: Mapping[str, Any]) -> int:
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def _sd3_tokens(state: State) -> Tokens:
    return Tokens(state.image, state.prompt)  # a source is further channels of the same tokens


def _sd3_prompt_values(transformer: Transformer, prompt: int, _: tuple[int, int] | None) -> int:
    pooled: int = transformer["pooled_projection_dim"]
    return prompt * int(transformer["joint_attention_dim"]) + pooled


def _sd3_prompt_tokens(folder: Path) -> int:
    clip = read_json(folder / "tokenizer" / "tokenizer_config.json")["model_max_length"]
    return int(clip) + (STOCK_T5_TOKENS if (folder / "text_encoder_3").is_dir() else 0)


def _flux2_tokens(state: State) -> Tokens:
    return Tokens(2 * state.image if state.has_source else state.image, state.prompt)


def _flux2_prompt_values(transformer: Transformer, prompt: int, _: tuple[int, int] | None) -> int:
    return prompt * int(transformer["joint_attention_dim"])


def _flux2_prompt_tokens(_: Path) -> int:
    from danceflow.models.families.flux2 import NUM_PROMPT_TOKENS

    return NUM_PROMPT_TOKENS


def _qwen_tokens(state: State) -> Tokens:
    if not state.has_source:
        return Tokens(state.image, state.prompt)
    return Tokens(2 * state.image, state.prompt + picture_tokens(state.size))


def _qwen_prompt_values(
    transformer: Transformer, prompt: int, source: tuple[int, int] | None
) -> int:
    width = int(transformer["joint_attention_dim"])
    if source is None:
        return prompt * width
    # The empty prompt's embeddings depend on the picture: the cache keeps both.
    return 2 * (prompt + picture_tokens(source)) * width


def _zimage_tokens(state: State) -> Tokens:
    image = _padded(state.image)
    # The Omni layout embeds two times, of clean and of noisy tokens, whatever the state has.
    sample = 2 if state.edits else 1
    if not state.has_source:
        return Tokens(image, _padded(state.prompt), sample=sample)
    frame = 2 * _MULTIPLE  # the texts before the source and behind the target
    vision = _padded(state.vision) + _MULTIPLE
    return Tokens(2 * image, _padded(state.prompt) + frame, vision, sample)


def _zimage_prompt_values(
    transformer: Transformer, prompt: int, source: tuple[int, int] | None
) -> int:
    seen = 0 if source is None else VISION_TOKENS * int(transformer["siglip_feat_dim"])
    return prompt * int(transformer["cap_feat_dim"]) + seen


LAYOUTS: Mapping[str, Layout] = {
    "sd3": Layout(
        usual=("sd3.5-medium", "sd3.5-medium"),
        side=lambda transformer: int(transformer["patch_size"]),
        channels=lambda transformer: int(transformer["out_channels"]),
        tokens=_sd3_tokens,
        prompt_values=_sd3_prompt_values,
        prompt_tokens=_sd3_prompt_tokens,
        factor=_from_blocks,
    ),
    "flux2": Layout(
        usual=("flux2-klein-4b", "flux2-klein-4b"),
        side=lambda _: 1,
        channels=lambda transformer: int(transformer["in_channels"]),
        tokens=_flux2_tokens,
        prompt_values=_flux2_prompt_values,
        prompt_tokens=_flux2_prompt_tokens,
        factor=lambda vae: 2 * _from_blocks(vae),
    ),
    "qwen_image": Layout(
        usual=("qwen-image", "qwen-image-edit"),
        side=lambda _: 2,
        channels=lambda transformer: int(transformer["in_channels"]) // 4,
        tokens=_qwen_tokens,
        prompt_values=_qwen_prompt_values,
        prompt_tokens=_own_length,
        factor=lambda vae: int(2 ** len(vae["temperal_downsample"])),
    ),
    "zimage": Layout(
        usual=("z-image", "z-image-omni"),
        side=lambda _: 2,
        channels=lambda transformer: int(transformer["in_channels"]),
        tokens=_zimage_tokens,
        prompt_values=_zimage_prompt_values,
        prompt_tokens=_own_length,
        factor=_from_blocks,
    ),
}
