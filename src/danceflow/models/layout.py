"""What costs must know of a family: how its tokens lie, what its networks and caches hold.

Every family's file has one ``Layout``. Nothing here needs weights: a ``Sketch`` is read from
configurations, and a network to be counted is built on torch's ``meta`` device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Stream = Literal["image", "prompt", "vision", "all", "sample"]
Rules = Sequence[tuple[str, Stream]]
"""Names of modules as regular expressions, and the stream that they see; the first that fits."""
Transformer = Mapping[str, Any]
"""The arguments of a family's diffusers class."""

VISION_TOKENS = 256
"""What a vision encoder's processor makes of a picture at most, unless it is told."""


@dataclass(frozen=True)
class Tokens:
    """How many rows one state's evaluation has in each stream.

    Attributes:
        image: tokens of the state and, where the family lays it beside it, of the source.
        prompt: tokens of the prompt.
        vision: tokens of a vision encoder's features.
        sample: rows of what is computed once per state, such as the embedding of sigma.
        joint: rows of the stream ``all`` where it is not the sum of the others.
        pairs: of rows of the stream ``all`` that look at each other in attention, where it is not
            all at all.
    """

    image: int
    prompt: int
    vision: int = 0
    sample: int = 1
    joint: int | None = None
    pairs: int | None = None

    def of(self, stream: Stream) -> int:
        """Return the rows of a stream."""
        if stream == "all":
            return self.joint or self.image + self.prompt + self.vision
        return int(getattr(self, stream))

    def pairs_of(self, stream: Stream) -> int:
        """Return the pairs of rows of a stream that look at each other in attention."""
        if stream == "all" and self.pairs is not None:
            return self.pairs
        return self.of(stream) ** 2


@dataclass(frozen=True)
class State:
    """One state as its tokens are counted.

    Attributes:
        image: tokens of the latents.
        prompt: tokens of the prompt's text.
        vision: tokens of a picture's features, for a family with a vision encoder beside it.
        size: height and width in pixels.
        edits: whether the network takes sources.
        num_sources: how many this state has.
    """

    image: int
    prompt: int
    vision: int
    size: tuple[int, int]
    edits: bool
    num_sources: int


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps for the backward pass, as a share of what its modules see.

    The unit is the inputs and outputs of all linear modules that see tokens. Measured on small
    networks of the families' own classes, which tests hold it to.

    Attributes:
        whole: of a network that is trained whole.
        adapter: of adapters on a float32 base.
        half: of adapters on a half-precision base, beside the float32 copies of their inputs.
    """

    whole: float
    adapter: float
    half: float


@dataclass(frozen=True)
class Sketch:
    """The networks of a folder or of a family's own parameters, without weights.

    Attributes:
        pipeline: name of the stock pipeline's class; empty where there is none.
        transformer: arguments of the transformer's diffusers class.
        takes_source: whether the transformer takes a source as it is.
        factor: image pixels per latent pixel, along a side.
        prompt_tokens: of every prompt; ``None`` where prompts keep their own length.
        frozen: parameters of every other part by name: text encoders, codec, vision encoder.
    """

    pipeline: str
    transformer: Transformer
    takes_source: bool
    factor: int
    prompt_tokens: int | None
    frozen: Mapping[str, int]


@dataclass(frozen=True)
class Layout:
    """What a family says of itself to those who count.

    Attributes:
        usual: the published model of a recipe that names none: of what only creates, of edits.
        side: latent pixels along a side of a token.
        channels: of the latents.
        tokens: the rows of a state's evaluation.
        prompt_values: numbers that a cache keeps of one prompt: (transformer, tokens of the text,
            height and width of each picture that the row has).
        streams: which tokens every linear and convolution module sees.
        attention: attention modules, and the tokens that look at each other there.
        kept: what a forward pass keeps, of a network that only creates and of one that edits.
        sizes: the transformer's arguments that a params file gives, by their names there; empty
            for a family that is not trained from scratch.
        is_widened: whether a network that takes no source is given channels for one; the others
            take sources as tokens, with a pipeline that is made for it.
    """

    usual: tuple[str, str]
    side: Callable[[Transformer], int]
    channels: Callable[[Transformer], int]
    tokens: Callable[[State], Tokens]
    prompt_values: Callable[[Transformer, int, Sequence[tuple[int, int]]], int]
    streams: Rules
    attention: Rules
    kept: tuple[Kept, Kept]
    sizes: Mapping[str, str] = field(default_factory=dict)
    is_widened: bool = False

    def tokens_of(
        self,
        transformer: Transformer,
        factor: int,
        size: tuple[int, int],
        prompt: int,
        *,
        edits: bool,
        num_sources: int,
        vision: int = VISION_TOKENS,
    ) -> Tokens:
        """Return the tokens of one state.

        Args:
            transformer: the arguments of its diffusers class.
            factor: image pixels per latent pixel, along a side.
            size: height and width in pixels.
            prompt: tokens of the prompt's text.
            edits: whether the network takes sources.
            num_sources: how many this state has.
            vision: tokens of a picture's features, for a family with a vision encoder beside it.
        """
        height, width = (length // (factor * self.side(transformer)) for length in size)
        state = State(height * width, prompt, vision, size, edits, num_sources if edits else 0)
        return self.tokens(state)
