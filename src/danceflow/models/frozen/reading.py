"""How much of a prompt a text encoder reads, and what lies behind its window."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_SHOWN_KEPT, _SHOWN_DROPPED = 60, 200


@dataclass(frozen=True)
class Reading:
    """What one text encoder reads of a prompt.

    Attributes:
        encoder: the encoder's folder in a pipeline.
        tokens: what it reads, template and all: prompts with the same tokens are one to it.
        num_tokens: of the prompt.
        num_read: as many of them come before the end of its window.
        kept: the part of the prompt that it reads.
        dropped: the part that it does not read, without blanks around it.
    """

    encoder: str
    tokens: tuple[int, ...]
    num_tokens: int
    num_read: int
    kept: str
    dropped: str


def read_text(
    tokenizer: Any,
    encoder: str,
    text: str,
    window: int | None,
    start: int = 0,
    end: int | None = None,
) -> Reading:
    """Return what an encoder reads of the prompt ``text[start:end]``.

    Args:
        tokenizer: a fast one of ``transformers``.
        encoder: its encoder's name.
        text: everything that the encoder is given.
        window: how many tokens it takes, those included that the tokenizer adds; ``None``: all.
        start: where the prompt begins in ``text``.
        end: where it ends, ``None``: with the text.
    """
    end = len(text) if end is None else end
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, starts = batch.input_ids, [first for first, _ in batch.offset_mapping]
    room = len(ids) if window is None else window - tokenizer.num_special_tokens_to_add()
    cut = min(max(starts[room], start), end) if room < len(ids) else end
    inside = [start <= first < end for first in starts]
    return Reading(
        encoder,
        tuple(ids[:room]),
        num_tokens=sum(inside),
        num_read=sum(inside[:room]),
        kept=text[start:cut],
        dropped=text[cut:end].strip(),
    )


def told(readings: Iterable[Reading]) -> str:
    """Return what encoders drop of a prompt in a sentence, nothing if they read all of it."""
    by_cut: dict[tuple[int, int, str, str], list[str]] = {}
    for item in readings:
        if item.dropped:
            cut = item.num_read, item.num_tokens, item.kept, item.dropped
            by_cut.setdefault(cut, []).append(item.encoder)
    return "; ".join(
        f"{' and '.join(names)} read{'s' * (len(names) == 1)} {num_read} of its {num_tokens} "
        f"tokens: kept {_last(kept)!r}, dropped {_first(dropped)!r}"
        for (num_read, num_tokens, kept, dropped), names in by_cut.items()
    )


def _last(text: str) -> str:
    return text if len(text) <= _SHOWN_KEPT else f"...{text[-_SHOWN_KEPT:]}"


def _first(text: str) -> str:
    return text if len(text) <= _SHOWN_DROPPED else f"{text[:_SHOWN_DROPPED]}..."


def one_to_all(readings: Iterable[Sequence[Reading]]) -> list[list[int]]:
    """Return the places of prompts that every encoder reads as the same, where there are several.

    Args:
        readings: of every prompt.
    """
    places: dict[bytes, list[int]] = {}
    for place, items in enumerate(readings):
        tokens = repr([item.tokens for item in items]).encode()
        # A digest, since the tokens of all prompts would fill the memory.
        places.setdefault(hashlib.sha256(tokens).digest(), []).append(place)
    return [same for same in places.values() if len(same) > 1]
