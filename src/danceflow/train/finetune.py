"""Flow-matching training of one teacher on data: v_theta(z_sigma, sigma, c) towards eps - x."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from danceflow.errors import TrainingError
from danceflow.fields import Condition, seed_for
from danceflow.models.family import ModelFamily
from danceflow.train.optim import make_optimizer, schedule, set_learning_rate
from danceflow.train.state import Ema, load_checkpoint, save_checkpoint

_LOG = logging.getLogger(__name__)


class Batches(Protocol):
    """A source of training data that is a function of the step."""

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Condition]:
        """Returns clean latents [B, C, H, W] and their condition."""
        ...


class FinetuneConfig(Protocol):
    """The part of ``params.teachers.<name>`` that training reads."""

    num_updates: int
    batch_size: int
    optimizer: str
    learning_rate: float
    warmup: int
    weight_decay: float
    clip_norm: float
    ema_decay: float
    caption_dropout: float


def finetune(
    family: ModelFamily,
    backbone: nn.Module,
    batches: Batches,
    config: FinetuneConfig,
    *,
    seed: int,
    sigma_shift: float,
    work: Path,
    checkpoint_every: int = 500,
    observe: Callable[[int, nn.Module], dict[str, float]] | None = None,
    observe_every: int = 2000,
) -> None:
    """Trains ``backbone`` in place and leaves its moving average in it.

    Sigma is logit-normal, then shifted like the sampling grid. The loss is the velocity MSE,
    E || v_theta - (z - x) / max(sigma, sigma_min) ||^2 for clean prediction.

    Args:
        family: gives the field of ``backbone``.
        backbone: the network to train.
        batches: clean latents and conditions by step.
        config: numbers of the training.
        seed: decides noise, sigma and caption dropout.
        sigma_shift: shift s of sigma' = s sigma / (1 + (s - 1) sigma).
        work: folder of the rolling checkpoint and ``curve.jsonl``; running again resumes.
        checkpoint_every: updates between checkpoints.
        observe: measures the averaged network; its numbers go to the curve.
        observe_every: updates between observations.

    Raises:
        TrainingError: when the loss is not finite.
    """
    backbone.train().requires_grad_(True)
    params = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = make_optimizer(config.optimizer, params, config.learning_rate, config.weight_decay)
    ema = Ema(backbone, config.ema_decay)
    field = family.field(backbone)
    path = work / "checkpoint.pt"
    start, seconds = 0, 0.0
    if (saved := load_checkpoint(path)) is not None:
        backbone.load_state_dict(saved["backbone"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        start, seconds = saved["step"], saved["seconds"]
    began = time.monotonic()
    bar = tqdm(
        range(start, config.num_updates),
        initial=start,
        total=config.num_updates,
        unit="update",
        mininterval=5,
    )
    recent: list[float] = []
    for step in bar:
        set_learning_rate(optimizer, schedule(step, config.num_updates, config.warmup))
        generator = torch.Generator().manual_seed(seed_for(seed, "finetune", step, 0))
        clean, condition = batches.batch(step, config.batch_size)
        condition = _drop_captions(family, condition, config.caption_dropout, generator)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.sigmoid(torch.randn(len(clean), generator=generator))
        sigma = sigma_shift * sigma / (1 + (sigma_shift - 1) * sigma)
        wide = sigma[:, None, None, None]
        z = (1 - wide) * clean + wide * noise
        target = _target_velocity(family, z, clean, noise, wide)
        loss = (field(z, sigma, condition) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, config.clip_norm)
        optimizer.step()
        ema.update(backbone)
        recent.append(float(loss.detach()))
        if not math.isfinite(recent[-1]):
            raise TrainingError(f"update {step}: the loss is {recent[-1]}; lower the learning rate")
        done = step + 1
        if done % 100 == 0 or done == config.num_updates:
            mean = sum(recent) / len(recent)
            recent.clear()
            bar.set_postfix(loss=f"{mean:.4f}")
            elapsed = seconds + time.monotonic() - began
            _append(work, {"step": done, "loss": mean, "seconds": round(elapsed, 1)})
        if done % checkpoint_every == 0 or done == config.num_updates:
            save_checkpoint(
                path,
                {
                    "step": done,
                    "seconds": seconds + time.monotonic() - began,
                    "backbone": backbone.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                },
            )
        if observe is not None and (done % observe_every == 0 or done == config.num_updates):
            _append(work, {"step": done, **_observed(backbone, ema, observe, done)})
    ema.copy_to(backbone)
    backbone.eval().requires_grad_(False)


def _target_velocity(
    family: ModelFamily, z: Tensor, clean: Tensor, noise: Tensor, sigma: Tensor
) -> Tensor:
    """Returns eps - x, or its clamped form when the family predicts the clean latents."""
    if getattr(family, "prediction", "velocity") == "velocity":
        return noise - clean
    return (z - clean) / sigma.clamp_min(getattr(family, "sigma_min", 0.0))


def _drop_captions(
    family: ModelFamily, condition: Condition, share: float, generator: torch.Generator
) -> Condition:
    """Returns the condition with a random ``share`` of prompts replaced by the empty one."""
    drop = torch.rand(condition.num_samples, generator=generator) < share
    null = family.null(condition).tensors
    return Condition(
        {
            name: torch.where(drop.view(-1, *[1] * (value.ndim - 1)), null[name], value)
            for name, value in condition.tensors.items()
        }
    )


def _observed(
    backbone: nn.Module,
    ema: Ema,
    observe: Callable[[int, nn.Module], dict[str, float]],
    step: int,
) -> dict[str, float]:
    """Returns what ``observe`` measures on the averaged weights; the live ones are put back."""
    live = {name: value.clone() for name, value in backbone.state_dict().items()}
    ema.copy_to(backbone)
    backbone.eval()
    measured = observe(step, backbone)
    backbone.load_state_dict(live)
    backbone.train()
    return measured


def _append(work: Path, row: dict[str, Any]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    with (work / "curve.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    _LOG.info("%s", row)
