"""Prompt encoding as SD3 does it: any number of CLIP encoders and an optional T5, all frozen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError


class PromptEncoder:
    """Turns prompts into the joint token sequence and the pooled vector of an SD3 transformer.

    CLIP encoders give their penultimate hidden states, joined on the feature axis and zero-padded
    to the joint width, and their projections, joined to the pooled vector. T5 tokens follow on the
    sequence axis. (``StableDiffusion3Pipeline.encode_prompt`` does the same.)
    """

    def __init__(
        self, clips: Sequence[tuple[Any, nn.Module]], t5: tuple[Any, nn.Module] | None, width: int
    ) -> None:
        """Takes (tokenizer, encoder) pairs and the joint feature width of the transformer."""
        self.clips = tuple(clips)
        self.t5 = t5
        self.width = width
        for _, encoder in (*self.clips, *((t5,) if t5 else ())):
            encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns (prompt_embeds [B, L, width], pooled [B, P]), both float32."""
        hidden, pooled = [], []
        for tokenizer, encoder in self.clips:
            tokens = _tokenize(tokenizer, prompts).to(_device(encoder))
            output = encoder(tokens, output_hidden_states=True)
            hidden.append(output.hidden_states[-2].float())
            pooled.append(output.text_embeds.float())
        embeds = torch.cat(hidden, dim=-1)
        embeds = nn.functional.pad(embeds, (0, self.width - embeds.shape[-1]))
        if self.t5 is not None:
            tokenizer, encoder = self.t5
            tokens = _tokenize(tokenizer, prompts).to(_device(encoder))
            embeds = torch.cat([embeds, encoder(tokens)[0].float()], dim=1)
        return embeds, torch.cat(pooled, dim=-1)

    def unknown_words(self, prompt: str) -> list[str]:
        """Returns the words of ``prompt`` that the first tokenizer maps to its unknown token."""
        tokenizer = self.clips[0][0]
        unknown = tokenizer.unk_token_id
        words = prompt.lower().split()
        return [w for w in words if unknown in tokenizer(w, add_special_tokens=False).input_ids]

    @property
    def max_length(self) -> int:
        """Number of tokens of the first encoder's prompt window."""
        return int(self.clips[0][0].model_max_length)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _tokenize(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return torch.as_tensor(batch.input_ids)


def word_tokenizer(words: Sequence[str], max_length: int) -> Any:
    """Returns a word-level ``transformers`` tokenizer for a closed vocabulary.

    Ids: 0 padding, 1 end of text, 2 unknown, then ``words`` in order. Text is lower-cased.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {w: i for i, w in enumerate(("<pad>", "<end>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def small_clip(
    vocabulary_size: int, *, width: int, num_layers: int, num_heads: int, max_length: int
) -> nn.Module:
    """Returns an untrained ``CLIPTextModelWithProjection`` of the given size."""
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
    return CLIPTextModelWithProjection(config)


def load_prompt_encoder(folder: Path, width: int) -> PromptEncoder:
    """Returns the prompt encoder saved in a diffusers pipeline folder.

    ``text_encoder``, ``text_encoder_2`` are CLIP models and ``text_encoder_3`` (optional) is T5,
    each beside its ``tokenizer``, as SD3 pipelines are laid out.

    Raises:
        WeightsError: if the first encoder is missing or a file cannot be read.
    """
    from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

    clips = []
    try:
        for suffix in ("", "_2"):
            part = folder / f"text_encoder{suffix}"
            if suffix and not part.is_dir():
                continue
            tokenizer = AutoTokenizer.from_pretrained(folder / f"tokenizer{suffix}")
            encoder = CLIPTextModelWithProjection.from_pretrained(part, dtype=torch.float32)
            clips.append((tokenizer, encoder))
        t5 = None
        if (folder / "text_encoder_3").is_dir():
            t5 = (
                AutoTokenizer.from_pretrained(folder / "tokenizer_3"),
                T5EncoderModel.from_pretrained(folder / "text_encoder_3"),
            )
    except Exception as error:
        raise WeightsError(f"{folder}: cannot read the text encoder: {error}") from error
    return PromptEncoder(clips, t5, width)
