"""Pretrains a small text encoder to read prompts.

A pretrained text encoder knows what words mean before any image is drawn. The small one learns the
same from text alone: linear heads on its pooled output must answer the questions of the world's
``Reading`` about each prompt. Only training wordings are shown. The heads are thrown away.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from danceflow.fields import seed_for, uniform
from danceflow.train.optim import schedule, set_learning_rate
from danceflow.worlds.world import Lesson, Reading

_LOG = logging.getLogger(__name__)
_READ_AT_ONCE = 512


def pretrain_text_encoder(
    tokenizer: object,
    encoder: nn.Module,
    reading: Reading,
    *,
    num_updates: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Train ``encoder`` in place, where it is, and return the share of prompts read whole.

    Args:
        tokenizer: the ``transformers`` tokenizer of the encoder.
        encoder: a ``CLIPTextModelWithProjection``.
        reading: the prompts, and what is to be told about them.
        num_updates: AdamW updates.
        batch_size: prompts per update.
        learning_rate: peak of the cosine schedule.
        seed: decides order and the heads' initial weights.
    """
    are_words = set(reading.num_classes) == {2}
    sizes = [len(reading.num_classes)] if are_words else list(reading.num_classes)
    heads = _heads(encoder, sizes, seed)
    device = _device(encoder)
    tokens = _tokens(tokenizer, reading.train.prompts).to(device)
    labels = reading.train.labels.to(device)

    def loss_of(pooled: Tensor, index: Tensor) -> Tensor:
        if are_words:  # one yes or no for every word
            wanted = labels[index].float()
            loss = nn.functional.binary_cross_entropy_with_logits(heads[0](pooled), wanted)
            return loss * wanted.shape[1]
        return torch.stack(
            [
                nn.functional.cross_entropy(head(pooled), labels[index, column])
                for column, head in enumerate(heads)
            ]
        ).sum()

    _fit(encoder, heads, tokens, loss_of, num_updates, batch_size, learning_rate, seed)
    accuracy = _accuracy(tokenizer, encoder, heads, reading.validation, are_words=are_words)
    _LOG.info("text encoder reads %.1f %% of prompts whole", 100 * accuracy)
    return accuracy


def _accuracy(
    tokenizer: object,
    encoder: nn.Module,
    heads: nn.ModuleList,
    lesson: Lesson,
    *,
    are_words: bool,
) -> float:
    """Return the share of prompts about which every question is answered rightly."""
    told = []
    with torch.no_grad():
        tokens = _tokens(tokenizer, lesson.prompts).to(_device(encoder))
        for part in tokens.split(_READ_AT_ONCE):
            pooled = encoder(part).text_embeds
            if are_words:
                told.append((heads[0](pooled) > 0).long())
            else:
                told.append(torch.stack([head(pooled).argmax(-1) for head in heads], dim=1))
    return float((torch.cat(told) == lesson.labels.to(told[0].device)).all(dim=1).float().mean())


def _device(encoder: nn.Module) -> torch.device:
    return next(encoder.parameters()).device


def _heads(encoder: nn.Module, sizes: Sequence[int], seed: int) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "heads", 0, 0))
        width = int(encoder.config.projection_dim)  # type: ignore[union-attr,arg-type]
        heads = nn.ModuleList([nn.Linear(width, size) for size in sizes])
    return heads.to(_device(encoder))


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
    """Train encoder and heads; ``loss_of`` takes pooled outputs and the rows they are of."""
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


def _tokens(tokenizer: object, prompts: Sequence[str]) -> Tensor:
    batch = tokenizer(  # type: ignore[operator]
        list(prompts), padding="max_length", truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(batch.input_ids)
