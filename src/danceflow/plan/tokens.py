"""How many tokens one state has in a family's transformer, by the layouts of its field."""

from collections.abc import Mapping
from typing import Any

from danceflow.plan.network import Tokens

ASSUMED_PROMPT_TOKENS = 128
"""Of a prompt in a family whose prompts are not padded to one length; the pipelines cut at 512."""
VISION_TOKENS = 256
"""What a SigLIP 2 processor makes of a picture at most, unless it is told."""

_MULTIPLE = 32  # of Z-Image's sequences
_PICTURE_PATCH = 28  # pixels along a side, of a token of Qwen2.5-VL


def tokens_of(
    family: str,
    transformer: Mapping[str, Any],
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
    height, width = size
    has_source = has_source and edits
    if family == "sd3":
        # A source is further channels of the same tokens.
        return Tokens(_patches(height, width, factor * transformer["patch_size"]), prompt)
    if family == "flux2":
        image = _patches(height, width, factor)
        return Tokens(2 * image if has_source else image, prompt)
    if family == "qwen_image":
        image = _patches(height, width, 2 * factor)
        seen = picture_tokens(size) if has_source else 0
        return Tokens(2 * image if has_source else image, prompt + seen)
    image = _padded(_patches(height, width, 2 * factor))
    # The Omni layout embeds two times, of clean and of noisy tokens, whatever the state has.
    sample = 2 if edits else 1
    if not has_source:
        return Tokens(image, _padded(prompt), sample=sample)
    frame = 2 * _MULTIPLE  # the texts before the source and behind the target
    return Tokens(2 * image, _padded(prompt) + frame, _padded(vision) + _MULTIPLE, sample)


def picture_tokens(size: tuple[int, int]) -> int:
    """Return the tokens that Qwen2.5-VL makes of a picture of this height and width in pixels."""
    height, width = (max(1, round(side / _PICTURE_PATCH)) for side in size)
    return height * width


def _patches(height: int, width: int, side: int) -> int:
    return (height // side) * (width // side)


def _padded(count: int) -> int:
    return -(-count // _MULTIPLE) * _MULTIPLE
