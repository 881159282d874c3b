"""Flow-matching training of one teacher on data: v_theta(z_sigma, sigma, c) towards eps - x."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from danceflow.errors import TrainingError
from danceflow.fields import Condition, VelocityField, derive_seeds, normal, seed_for, uniform
from danceflow.models.family import ModelFamily
from danceflow.ops.group import current
from danceflow.train.log import MetricsFile
from danceflow.train.optim import make_optimizer, schedule, set_learning_rate, sum_gradients
from danceflow.train.state import Ema, load_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from danceflow.params.sections import TeacherParams

_LOG = logging.getLogger(__name__)

_LOG_EVERY = 100


class Batches(Protocol):
    """A source of training data that is a function of the step."""

    def batch(self, step: int, samples: range) -> tuple[Tensor, Condition]:
        """Return clean latents [B, C, H, W] and their condition, of some of a step's samples."""
        ...


def finetune(
    family: ModelFamily,
    backbone: nn.Module,
    batches: Batches,
    config: "TeacherParams",
    *,
    seed: int,
    work: Path,
    checkpoint_every: int = 500,
) -> None:
    """Train what of ``backbone`` requires gradients, and leave its moving average in it.

    Sigma is logit-normal, then shifted like the sampling grid, sigma' = s sigma / (1 + (s - 1)
    sigma). The loss is sigma^p times the squared difference of the field's velocity to the family's
    target velocity, eps - x, on average. At p = 2 that is the squared error of the clean image,
    since x = z - sigma * v.

    Args:
        family: gives the field of ``backbone`` and its target.
        backbone: the network to train.
        batches: clean latents and conditions by step.
        config: numbers of the training; ``sigma_shift`` is s, ``sigma_power`` is p.
        seed: decides noise, sigma and caption dropout.
        work: folder of the rolling checkpoint and ``curve.jsonl``; running again resumes.
        checkpoint_every: updates between checkpoints.

    Raises:
        TrainingError: when the loss or the gradient is not finite; the last checkpoint stays.
    """
    params = [param for param in backbone.train().parameters() if param.requires_grad]
    device, group = params[0].device, current()
    samples = group.share(config.batch_size)
    optimizer = make_optimizer(config.optimizer, params, config.learning_rate, config.weight_decay)
    ema = Ema(backbone, config.ema_decay)
    field = family.field(backbone)
    path = work / "checkpoint.safetensors"
    start, seconds, curve_size = 0, 0.0, 0
    recent: list[float] = []
    if (saved := load_checkpoint(path)) is not None:
        backbone.load_state_dict(saved["backbone"])
        optimizer.load_state_dict(saved["optimizer"])
        ema.load_state_dict(saved["ema"])
        start, seconds = saved["step"], saved["seconds"]
        recent, curve_size = saved["recent"], saved["curve_size"]
    group.wait()  # all have read what the main process writes anew
    curve = MetricsFile(work / "curve.jsonl", curve_size) if group.is_main else None
    began = time.monotonic()
    bar = tqdm(
        range(start, config.num_updates),
        initial=start,
        total=config.num_updates,
        unit="update",
        mininterval=5,
    )
    for step in bar:
        set_learning_rate(optimizer, schedule(step, config.num_updates, config.warmup))
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        if samples:
            clean, condition = batches.batch(step, samples)
            clean, condition = clean.to(device), condition.to(device)
            loss = _backward(family, field, clean, condition, config, (seed, step, samples))
        loss = sum_gradients(params, loss[None], group)[0]
        norm = nn.utils.clip_grad_norm_(params, config.clip_norm)
        _require_finite(float(norm), "gradient norm", step)
        optimizer.step()
        ema.update(backbone)
        recent.append(float(loss))
        done = step + 1
        last = done == config.num_updates
        if curve is None:
            recent.clear()
            continue
        if done % _LOG_EVERY == 0 or last:
            mean = sum(recent) / len(recent)
            recent.clear()
            bar.set_postfix(loss=f"{mean:.4f}")
            elapsed = seconds + time.monotonic() - began
            curve.append({"step": done, "loss": mean, "seconds": round(elapsed, 1)})
            _LOG.info("update %d: loss %.5f", done, mean)
        if done % checkpoint_every == 0 or last:
            save_checkpoint(
                path,
                {
                    "step": done,
                    "seconds": seconds + time.monotonic() - began,
                    "recent": recent,
                    "curve_size": curve.size,
                    "backbone": backbone.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.state_dict(),
                },
            )
    ema.copy_to(backbone)
    backbone.eval().requires_grad_(False)


def _backward(
    family: ModelFamily,
    field: VelocityField,
    clean: Tensor,
    condition: Condition,
    config: "TeacherParams",
    place: tuple[int, int, range],
) -> Tensor:
    """Add the gradients of an update's samples, at (seed, step, samples), and return their loss.

    It is their part of the mean over all samples of the update.
    """
    seed, step, samples = place
    seeds = [seed_for(seed, "finetune", step, index) for index in samples]
    condition = _drop_captions(family, condition, config.caption_dropout, seeds)
    loss = _loss(family, field, clean, condition, config, seeds)
    loss = loss * (len(samples) / config.batch_size)
    _require_finite(float(loss.detach()), "loss", step)
    loss.backward()
    return loss.detach()


def _loss(
    family: ModelFamily,
    field: VelocityField,
    clean: Tensor,
    condition: Condition,
    config: "TeacherParams",
    seeds: Sequence[int],
) -> Tensor:
    """Return the weighted mean squared error of the field at one random state per sample.

    Noise and sigma of a sample come from its own seed.
    """
    noise = normal(clean.shape[1:], derive_seeds(seeds, "noise")).to(clean)
    sigma = torch.sigmoid(normal((), derive_seeds(seeds, "sigma"))).to(clean)
    sigma = config.sigma_shift * sigma / (1 + (config.sigma_shift - 1) * sigma)
    wide = sigma[:, None, None, None]
    z = (1 - wide) * clean + wide * noise
    target = family.target_velocity(z, clean, noise, sigma)
    error = (field(z, sigma, condition) - target).square()
    return (wide**config.sigma_power * error).mean()


def _require_finite(value: float, what: str, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingError(f"update {step}: the {what} is {value}; lower the learning rate")


def _drop_captions(
    family: ModelFamily, condition: Condition, share: float, seeds: Sequence[int]
) -> Condition:
    """Return the condition with a random ``share`` of prompts replaced by the empty one.

    Whether a sample's prompt is dropped comes from its own seed.
    """
    drop = uniform(derive_seeds(seeds, "caption")) < share
    null = family.null(condition).tensors
    return Condition(
        {
            name: torch.where(
                drop.to(value.device).view(-1, *[1] * (value.ndim - 1)), null[name], value
            )
            for name, value in condition.tensors.items()
        }
    )
