"""Stock diffusers pipeline folders: what their configs say about the transformer and the grid."""

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.models.frozen.part import FROZEN_FILE
from danceflow.models.weights import CONFIG_FILE, read_json

__all__ = ["FROZEN_FILE"]

PIPELINE_FILE = "model_index.json"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_NOT_FROZEN = ("transformer", "scheduler")
_NO_STEPS = "a grid needs at least 1 step, got {}"


def read_pipeline_class(folder: Path) -> str:
    """Return the class name of the pipeline saved in ``folder``.

    Raises:
        WeightsError: if ``folder`` holds no diffusers pipeline.
    """
    return str(read_json(folder / PIPELINE_FILE).get("_class_name"))


def read_transformer_config(folder: Path, transformer_class: Any) -> dict[str, Any]:
    """Return the arguments of the transformer in ``folder / "transformer"``.

    Arguments that its ``config.json`` leaves out have the class's own defaults.

    Raises:
        WeightsError: if the file is missing or describes another class.
    """
    path = folder / "transformer" / CONFIG_FILE
    config = read_json(path)
    name = transformer_class.__name__
    if config.get("_class_name") != name:
        raise WeightsError(f"{path}: expected a {name}, found {config.get('_class_name')}")
    arguments = inspect.signature(transformer_class.__init__).parameters
    return {
        key: config.get(key, argument.default)
        for key, argument in arguments.items()
        if key != "self"
    }


def read_vae_factor(folder: Path, factor: Callable[[Mapping[str, Any]], int]) -> int:
    """Return image pixels per latent pixel of the codec in ``folder``, 1 where there is none.

    Args:
        folder: of a pipeline, or of frozen parts.
        factor: the same of an autoencoder's configuration, along a side.

    Raises:
        WeightsError: the autoencoder's configuration cannot be read.
    """
    if not (folder / "vae").is_dir():
        return 1
    return factor(read_json(folder / "vae" / CONFIG_FILE))


def count_frozen(folder: Path) -> dict[str, int]:
    """Return the parameters of every frozen part, from the headers of its weight files.

    Raises:
        WeightsError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, int] = {}
    for part in sorted(child for child in folder.iterdir() if child.is_dir()):
        if part.name in _NOT_FROZEN:
            continue
        for path in sorted(part.glob("*.safetensors")):
            count = 0
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118
                        count += math.prod(file.get_slice(key).get_shape())
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{path}: cannot be read: {error}") from error
            found[part.name] = found.get(part.name, 0) + count
    return found


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Return the config of the scheduler in ``folder``.

    Raises:
        WeightsError: if it is missing, or no deterministic flow-matching Euler scheduler.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    if config.get("_class_name") != SCHEDULER or config.get("stochastic_sampling"):
        raise WeightsError(
            f"{path}: expected a {SCHEDULER} without stochastic_sampling, "
            f"found {config.get('_class_name')}"
        )
    return config


def shifted_scheduler(config: Mapping[str, Any], shift: float) -> dict[str, Any]:
    """Return a scheduler's config with another shift of its sigmas.

    Raises:
        WeightsError: if it shifts them by the picture's size.
    """
    if config.get("use_dynamic_shifting"):
        raise WeightsError(
            "this pipeline's scheduler shifts its sigmas by the picture's size, so that a student "
            f"of it has no one shift ({shift:g}): set distill.shift to null"
        )
    return {**config, "shift": shift}


def scheduler_grid(config: Mapping[str, Any], num_steps: int, num_tokens: int) -> Tensor:
    """Return the sigmas that ``StableDiffusion3Pipeline`` visits, [num_steps + 1] float32.

    It lets the scheduler choose its sigmas, whose smallest is shifted twice, so this is not
    ``shifted_grid``: the last step starts near 0.01, whatever ``num_steps``.

    Args:
        config: the scheduler's config.
        num_steps: steps of the solver.
        num_tokens: image tokens of the transformer, which decide a dynamic shift.

    Raises:
        ValueError: ``num_steps`` below 1.
        WeightsError: if the scheduler's sigmas do not fall from 1 to 0.
    """
    return _grid(config, num_steps, interpolated_mu(config, num_tokens, 1.16))


def linear_scheduler_grid(config: Mapping[str, Any], num_steps: int, mu: float) -> Tensor:
    """Return the sigmas of pipelines that give the scheduler sigmas from 1 to 1 / num_steps.

    Args:
        config: the scheduler's config.
        num_steps: steps of the solver.
        mu: the pipeline's dynamic shift, if the scheduler is one that shifts so.

    Raises:
        ValueError: ``num_steps`` below 1.
        WeightsError: if the scheduler's sigmas do not fall from 1 to 0.
    """
    if num_steps < 1:
        raise ValueError(_NO_STEPS.format(num_steps))
    return _grid(config, num_steps, mu, np.linspace(1.0, 1 / num_steps, num_steps).tolist())


def interpolated_mu(config: Mapping[str, Any], num_tokens: int, max_shift: float = 1.15) -> float:
    """Return the shift that grows linearly with the number of image tokens.

    Args:
        config: the scheduler's config.
        num_tokens: image tokens of the transformer.
        max_shift: at ``max_image_seq_len`` tokens, where the config does not say.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (high - low) / (many - few)
    return float(num_tokens * slope + (low - slope * few))


def _grid(
    config: Mapping[str, Any], num_steps: int, mu: float, sigmas: list[float] | None = None
) -> Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if num_steps < 1:
        raise ValueError(_NO_STEPS.format(num_steps))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(num_steps, sigmas=sigmas, mu=mu)
    grid: Tensor = scheduler.sigmas.clone()
    if float(grid[0]) != 1 or float(grid[-1]) != 0 or not bool((grid.diff() < 0).all()):
        raise WeightsError(f"the scheduler's sigmas {grid.tolist()} do not fall from 1 to 0")
    return grid
