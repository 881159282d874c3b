"""Language models as prompt encoders: hidden states of a chat, one row per prompt."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.fields import pad_length
from danceflow.models.frozen.part import Part, pretrained_part
from danceflow.models.frozen.reading import Reading, read_text

_ANY = "\ue000"  # no prompt's: it shows where a template puts one


class LanguageEncoder:
    """A frozen language model and its tokenizer."""

    def __init__(self, tokenizer: Any, part: Part) -> None:
        """Join a tokenizer and a model.

        Args:
            tokenizer: of ``transformers``.
            part: a ``transformers`` model with ``output_hidden_states``.
        """
        self.tokenizer = tokenizer
        self.part = part

    @property
    def model(self) -> Any:
        """The model, which is read now if it was not before."""
        return self.part.network

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.part.device

    def chat(self, prompt: str, *, thinking: bool) -> str:
        """Return ``prompt`` as a user's message in the tokenizer's own chat template.

        Raises:
            WeightsError: if the tokenizer has no such template.
        """
        messages = [{"role": "user", "content": prompt}]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
                )
            )
        except ValueError as error:
            raise WeightsError(f"the tokenizer has no chat template: {error}") from error

    @torch.no_grad()
    def hidden(self, texts: Sequence[str], num_tokens: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the hidden states of every layer and which tokens are no padding.

        Args:
            texts: B texts.
            num_tokens: every text is padded or cut to this length L.

        Returns:
            A tuple over layers of [B, L, D] float32, and a [B, L] bool mask.
        """
        batch = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=num_tokens,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        output = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
        mask: Tensor = batch.attention_mask.bool()
        return tuple(state.float() for state in output.hidden_states), mask

    def reading(
        self, prompt: str, text_of: Callable[[str], str], num_tokens: int | None
    ) -> Reading:
        """Return how much of ``prompt`` the model reads.

        Args:
            prompt: a text.
            text_of: gives what the model is given for a prompt.
            num_tokens: every text is cut to this length, ``None``: none is.
        """
        before, after = text_of(_ANY).split(_ANY)
        text = text_of(prompt)
        return read_text(
            self.tokenizer, "text_encoder", text, num_tokens, len(before), len(text) - len(after)
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "LanguageEncoder":
        """Keep the model on ``device``, as ``dtype`` if one is given, and return this object."""
        self.part.to(device, dtype)
        return self

    def release(self) -> None:
        """Give the model's memory back until it is asked again."""
        self.part.release()

    def save(self, folder: Path) -> None:
        """Write model (float16) and tokenizer to ``folder``, laid out as in stock pipelines."""
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.part.save(folder / "text_encoder")


def load_language_encoder(
    folder: Path, model_class: Any, tokenizer: str = "tokenizer"
) -> LanguageEncoder:
    """Return the encoder in ``text_encoder`` and ``tokenizer`` of a pipeline folder.

    Args:
        folder: of the pipeline.
        model_class: of ``transformers``.
        tokenizer: name of the tokenizer's folder.

    Raises:
        WeightsError: if the tokenizer is missing or cannot be read; the model is read later.
    """
    part = pretrained_part(model_class, folder / "text_encoder")
    return LanguageEncoder(load_part(folder / tokenizer, _tokenizer_class()), part)


def load_part(place: Path, part_class: Any) -> Any:
    """Return a tokenizer or processor of ``transformers`` saved in ``place``.

    Raises:
        WeightsError: if it is missing or cannot be read.
    """
    if not place.is_dir():
        raise WeightsError(f"{place}: this part of the model is missing")
    try:
        return part_class.from_pretrained(place, local_files_only=True)
    except Exception as error:
        raise WeightsError(f"{place}: cannot be read: {error}") from error


def _tokenizer_class() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer


def ragged(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows [L_i, D] as one [B, L, D], zeros behind each, and the [B, L] mask of tokens."""
    longest = max(len(row) for row in rows)
    masks = [torch.ones(1, len(row), dtype=torch.bool, device=row.device) for row in rows]
    return (
        torch.cat([pad_length(row[None], longest) for row in rows]),
        torch.cat([pad_length(mask, longest) for mask in masks]),
    )
