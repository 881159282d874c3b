"""Pretrains a small text encoder to read prompts.

A pretrained text encoder knows what words mean before any image is drawn. The small one learns the
same from text alone: linear heads on its pooled output must name every field of the request behind
a prompt or, where there are only prompts, which words each of them holds. Only training wordings
are shown. The heads are thrown away.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from random import Random

import torch
from torch import Tensor, nn
from tqdm import tqdm

from danceflow.fields import seed_for, uniform
from danceflow.scenes.prompts import CATEGORIES, CORNERS, RELATIONS, Request, draw_sample
from danceflow.scenes.world import BACKGROUND_NAMES, COLOR_NAMES, SHAPES, STYLES, Split
from danceflow.train.optim import schedule, set_learning_rate

_LOG = logging.getLogger(__name__)

_LABELS: Mapping[str, tuple[str | int | None, ...]] = {
    "operation": ("create", "add", "remove", "replace", "recolor", "background", "style"),
    "first_color": (None, *COLOR_NAMES),
    "first_shape": (None, *SHAPES),
    "second_color": (None, *COLOR_NAMES),
    "second_shape": (None, *SHAPES),
    "count": (1, 2, 3, 4),
    "relation": (None, *RELATIONS),
    "corner": (None, *CORNERS),
    "background": (None, *BACKGROUND_NAMES),
    "style": (None, *STYLES),
}


def request_labels(request: Request) -> list[int]:
    """Returns the class of every field of ``request``, in the order of the heads."""
    values = {
        "operation": request.operation,
        "first_color": request.first[0],
        "first_shape": request.first[1],
        "second_color": request.second[0],
        "second_shape": request.second[1],
        "count": request.count,
        "relation": request.relation,
        "corner": request.corner,
        "background": request.background,
        "style": request.style,
    }
    return [_LABELS[name].index(value) for name, value in values.items()]


def pretrain_text_encoder(
    tokenizer: object,
    encoder: nn.Module,
    *,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    num_samples: int = 40_000,
    num_validation: int = 2_000,
) -> float:
    """Trains ``encoder`` in place, where it is, and returns the share of requests read whole.

    Args:
        tokenizer: the ``transformers`` tokenizer of the encoder.
        encoder: a ``CLIPTextModelWithProjection``.
        num_updates: AdamW updates.
        batch_size: prompts per update.
        learning_rate: peak of the cosine schedule.
        seed: decides prompts, order and the heads' initial weights.
        num_samples: prompts drawn for training.
        num_validation: prompts of the validation split that are read afterwards, for the share.
    """
    categories = list(dict.fromkeys(c for group in CATEGORIES.values() for c in group))
    device = next(encoder.parameters()).device
    tokens, labels = _draw(tokenizer, categories, num_samples, seed, "train", device)
    heads = _heads(encoder, [len(names) for names in _LABELS.values()], seed)

    def loss_of(pooled: Tensor, index: Tensor) -> Tensor:
        return torch.stack(
            [
                nn.functional.cross_entropy(head(pooled), labels[index, column])
                for column, head in enumerate(heads)
            ]
        ).sum()

    _fit(encoder, heads, tokens, loss_of, num_updates, batch_size, learning_rate, seed)
    tokens, labels = _draw(tokenizer, categories, num_validation, seed + 1, "validation", device)
    with torch.no_grad():
        pooled = encoder(tokens).text_embeds
        right = torch.stack([head(pooled).argmax(-1) for head in heads], dim=1) == labels
    accuracy = float(right.all(dim=1).float().mean())
    _LOG.info("text encoder reads %.1f %% of prompts whole", 100 * accuracy)
    return accuracy


def words_in(prompts: Sequence[str]) -> tuple[str, ...]:
    """Returns every word of some prompts, in lower case and sorted."""
    return tuple(sorted({word for prompt in prompts for word in prompt.lower().split()}))


def pretrain_on_prompts(
    tokenizer: object,
    encoder: nn.Module,
    prompts: Sequence[str],
    *,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Trains ``encoder`` in place, where it is, and returns the share of prompts read whole.

    Args:
        tokenizer: the ``transformers`` tokenizer of the encoder.
        encoder: a ``CLIPTextModelWithProjection``.
        prompts: what it shall read, each once.
        num_updates: AdamW updates.
        batch_size: prompts per update.
        learning_rate: peak of the cosine schedule.
        seed: decides the order and the head's initial weights.
    """
    words = {word: column for column, word in enumerate(words_in(prompts))}
    device = next(encoder.parameters()).device
    tokens = _tokens(tokenizer, prompts).to(device)
    holds = torch.zeros(len(prompts), len(words))
    for row, prompt in enumerate(prompts):
        holds[row, [words[word] for word in prompt.lower().split()]] = 1
    holds = holds.to(device)
    heads = _heads(encoder, [len(words)], seed)

    def loss_of(pooled: Tensor, index: Tensor) -> Tensor:
        loss = nn.functional.binary_cross_entropy_with_logits(heads[0](pooled), holds[index])
        return loss * len(words)

    _fit(encoder, heads, tokens, loss_of, num_updates, batch_size, learning_rate, seed)
    with torch.no_grad():
        read = torch.cat([heads[0](encoder(part).text_embeds) > 0 for part in tokens.split(512)])
    accuracy = float((read == holds.bool()).all(dim=1).float().mean())
    _LOG.info("text encoder reads the words of %.1f %% of prompts", 100 * accuracy)
    return accuracy


def _heads(encoder: nn.Module, sizes: Sequence[int], seed: int) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "heads", 0, 0))
        width = int(encoder.config.projection_dim)  # type: ignore[union-attr,arg-type]
        heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])
    return heads.to(next(encoder.parameters()).device)


def _fit(
    encoder: nn.Module,
    heads: nn.ModuleList,
    tokens: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Trains encoder and heads; ``loss_of`` takes pooled outputs and the rows they are of."""
    encoder.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [*encoder.parameters(), *heads.parameters()], lr=learning_rate, weight_decay=0.01
    )
    bar = tqdm(range(num_updates), desc="text encoder", unit="update", mininterval=5)
    for step in bar:
        set_learning_rate(optimizer, schedule(step, num_updates, warmup=50))
        seeds = [seed_for(seed, "batch", step, place) for place in range(batch_size)]
        index = (uniform(seeds) * len(tokens)).long().to(tokens.device)
        loss = loss_of(encoder(tokens[index]).text_embeds, index)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
    encoder.eval().requires_grad_(False)


def _draw(
    tokenizer: object,
    categories: Sequence[str],
    num_samples: int,
    seed: int,
    split: Split,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Returns tokens and labels of random prompts, on a device."""
    samples = [
        draw_sample(Random(seed_for(seed, "prompts", 0, i)), categories[i % len(categories)], split)
        for i in range(num_samples)
    ]
    labels = torch.tensor([request_labels(s.request) for s in samples])
    return _tokens(tokenizer, [s.prompt for s in samples]).to(device), labels.to(device)


def _tokens(tokenizer: object, prompts: Sequence[str]) -> Tensor:
    batch = tokenizer(  # type: ignore[operator]
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(batch.input_ids)
