"""Stock diffusers pipeline folders: what their configs say about the transformer and the grid."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.models.weights import read_json

PIPELINE_FILE = "model_index.json"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def read_pipeline_class(folder: Path) -> str:
    """Returns the class name of the pipeline saved in ``folder``.

    Raises:
        WeightsError: if ``folder`` holds no diffusers pipeline.
    """
    return str(read_json(folder / PIPELINE_FILE).get("_class_name"))


def read_transformer_config(folder: Path, transformer_class: Any) -> dict[str, Any]:
    """Returns the arguments of the transformer in ``folder / "transformer"``.

    Arguments that its ``config.json`` leaves out have the class's own defaults.

    Raises:
        WeightsError: if the file is missing or describes another class.
    """
    path = folder / "transformer" / "config.json"
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


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Returns the config of the scheduler in ``folder``.

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


def scheduler_grid(config: Mapping[str, Any], num_steps: int, num_tokens: int) -> Tensor:
    """Returns the sigmas that the stock pipeline visits, [num_steps + 1] float32 from 1 to 0.

    The scheduler is called as ``StableDiffusion3Pipeline`` calls it. Its smallest sigma is shifted
    twice, so this is not ``shifted_grid``: the last step starts near 0.01, whatever ``num_steps``.

    Args:
        config: the scheduler's config.
        num_steps: steps of the solver.
        num_tokens: image tokens of the transformer, which decide a dynamic shift.

    Raises:
        ValueError: ``num_steps`` below 1.
        WeightsError: if the scheduler's sigmas do not fall from 1 to 0.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    if num_steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {num_steps}")
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    dynamic = {}
    if config.get("use_dynamic_shifting"):
        dynamic["mu"] = calculate_shift(
            num_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.16),
        )
    scheduler.set_timesteps(num_steps, **dynamic)
    grid: Tensor = scheduler.sigmas.clone()
    if float(grid[0]) != 1 or float(grid[-1]) != 0 or not bool((grid.diff() < 0).all()):
        raise WeightsError(f"the scheduler's sigmas {grid.tolist()} do not fall from 1 to 0")
    return grid
