"""Prompt encoding as SD3 does it: any number of CLIP encoders and an optional T5, all frozen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.frozen.part import Part, pretrained_part
from danceflow.models.frozen.reading import Reading, read_text

STOCK_T5_TOKENS = 256
"""Length of the T5 part of a stock SD3 pipeline's prompt (its ``max_sequence_length``)."""


class PromptEncoder:
    """Turns prompts into the joint token sequence and the pooled vector of an SD3 transformer.

    CLIP encoders give their penultimate hidden states, joined on the feature axis and zero-padded
    to the joint width, and their projections, joined to the pooled vector. T5 tokens follow on the
    sequence axis; without a T5 they are zeros. (``StableDiffusion3Pipeline.encode_prompt`` does
    the same.)
    """

    def __init__(
        self,
        clips: Sequence[tuple[Any, Part]],
        t5: tuple[Any, Part] | None,
        width: int,
        num_t5_tokens: int = 0,
    ) -> None:
        """Join tokenizers and encoders.

        Args:
            clips: (tokenizer, encoder) pairs; the first tokenizer's window is used for all.
            t5: tokenizer and encoder, if there is one.
            width: joint feature width of the transformer.
            num_t5_tokens: length of the T5 part; 0 leaves it out.
        """
        self._clips = tuple(clips)
        self._t5 = t5
        self.width = width
        self.num_t5_tokens = num_t5_tokens

    @property
    def clips(self) -> tuple[tuple[Any, Any], ...]:
        """Tokenizer and encoder of each CLIP, which is read now if it was not before."""
        return tuple((tokenizer, part.network) for tokenizer, part in self._clips)

    @property
    def parts(self) -> list[Part]:
        """The encoders."""
        return [part for _, part in (*self._clips, *((self._t5,) if self._t5 else ()))]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (prompt_embeds [B, L, width], pooled [B, P]), both float32."""
        hidden, pooled = [], []
        for tokenizer, encoder in self.clips:
            tokens = _tokenize(tokenizer, prompts, self.max_length).to(_device(encoder))
            output = encoder(tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2].float())
            pooled.append(output.text_embeds.float())
        embeds = torch.cat(hidden, dim=-1)
        embeds = nn.functional.pad(embeds, (0, self.width - embeds.shape[-1]))
        if self.num_t5_tokens:
            embeds = torch.cat([embeds, self._t5_embeds(prompts).to(embeds)], dim=1)
        return embeds, torch.cat(pooled, dim=-1)

    def _t5_embeds(self, prompts: Sequence[str]) -> Tensor:
        """Return the T5 part, [B, num_t5_tokens, width]."""
        if self._t5 is None:
            return torch.zeros(len(prompts), self.num_t5_tokens, self.width)
        tokenizer, encoder = self._t5[0], self._t5[1].network
        tokens = _tokenize(tokenizer, prompts, self.num_t5_tokens).to(_device(encoder))
        embeds: Tensor = encoder(tokens)[0]
        return embeds.float()

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of ``prompt`` that the first tokenizer maps to its unknown token."""
        tokenizer = self._clips[0][0]
        unknown = tokenizer.unk_token_id
        words = prompt.lower().split()
        return [w for w in words if unknown in tokenizer(w, add_special_tokens=False).input_ids]

    def readings(self, prompt: str) -> tuple[Reading, ...]:
        """Return how much of ``prompt`` each encoder reads."""
        found = [
            read_text(tokenizer, f"text_encoder{suffix}", prompt, self.max_length)
            for suffix, (tokenizer, _) in self._named_clips()
        ]
        if self._t5 is not None and self.num_t5_tokens:
            found.append(read_text(self._t5[0], "text_encoder_3", prompt, self.num_t5_tokens))
        return tuple(found)

    @property
    def max_length(self) -> int:
        """Number of tokens of the CLIP prompt window."""
        return int(self._clips[0][0].model_max_length)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "PromptEncoder":
        """Keep the encoders on ``device``, as ``dtype`` if one is given, and return this object."""
        for part in self.parts:
            part.to(device, dtype)
        return self

    def release(self) -> None:
        """Give the encoders' memory back until they are asked again."""
        for part in self.parts:
            part.release()

    def save(self, folder: Path) -> None:
        """Write encoders (float16) and tokenizers to ``folder``, laid out as in SD3 pipelines."""
        named = self._named_clips()
        if self._t5 is not None:
            named.append(("_3", self._t5))
        for suffix, (tokenizer, part) in named:
            tokenizer.save_pretrained(folder / f"tokenizer{suffix}")
            part.save(folder / f"text_encoder{suffix}")

    def _named_clips(self) -> list[tuple[str, tuple[Any, Part]]]:
        """Return the CLIP encoders with the ends of their folders' names."""
        return [("" if i == 0 else f"_{i + 1}", part) for i, part in enumerate(self._clips)]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _tokenize(tokenizer: Any, prompts: Sequence[str], max_length: int) -> Tensor:
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=max_length,
        truncation=True,
        return_tensors="pt",
    )
    return torch.as_tensor(batch.input_ids)


def word_tokenizer(words: Sequence[str], max_length: int) -> Any:
    """Return a word-level ``transformers`` tokenizer for a closed vocabulary.

    Ids: 0 padding, 1 end of text, 2 unknown, then ``words`` in order. Text is lower-cased.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    padding, end, unknown = "<pad>", "<end>", "<unk>"
    vocabulary = {word: i for i, word in enumerate((padding, end, unknown, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=padding,
        eos_token=end,
        unk_token=unknown,
        model_max_length=max_length,
    )


def small_clip(
    vocabulary_size: int, *, width: int, num_layers: int, num_heads: int, max_length: int
) -> nn.Module:
    """Return an untrained ``CLIPTextModelWithProjection`` of the given size."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=max_length,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    encoder: nn.Module = CLIPTextModelWithProjection(config)
    return encoder


def load_prompt_encoder(folder: Path, width: int, num_t5_tokens: int = 0) -> PromptEncoder:
    """Return the prompt encoder saved in a diffusers pipeline folder; its networks are read later.

    ``text_encoder``, ``text_encoder_2`` are CLIP models and ``text_encoder_3`` (optional) is T5,
    each beside its ``tokenizer``, as SD3 pipelines are laid out.

    Raises:
        WeightsError: if the first encoder is missing or a file cannot be read.
    """
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    clips = [
        _load_part(folder, suffix, CLIPTextModelWithProjection)
        for suffix in ("", "_2")
        if not suffix or (folder / f"text_encoder{suffix}").is_dir()
    ]
    has_t5 = (folder / "text_encoder_3").is_dir()
    t5 = _load_part(folder, "_3", T5EncoderModel) if has_t5 else None
    return PromptEncoder(clips, t5, width, num_t5_tokens)


def _load_part(folder: Path, suffix: str, encoder_class: Any) -> tuple[Any, Part]:
    """Return the tokenizer and the encoder with a suffix of ``folder``."""
    from transformers import AutoTokenizer

    encoder = pretrained_part(encoder_class, folder / f"text_encoder{suffix}")
    place = folder / f"tokenizer{suffix}"
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True), encoder
    except Exception as error:
        raise WeightsError(f"{place}: the tokenizer cannot be read: {error}") from error
