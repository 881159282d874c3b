"""A finished checkout for benchmarks: its parameters and a trainer on what lies there."""

import time
from collections.abc import Callable
from pathlib import Path

from random_model import open_trainer

from danceflow.ops import determinism
from danceflow.params.read import override, parse_params
from danceflow.params.sections import Params
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.train.distill.trainer import Trainer


def prepared(checkout: Path) -> tuple[Params, Paths]:
    """Return a checkout's parameters, without tracking, which this process computes by from now."""
    paths = Paths(checkout.resolve())
    data = override(read_yaml(paths.params), {"tracking.enabled": False})
    params = parse_params(data, f"{paths.params}, without tracking")
    determinism.prepare(params.run)
    determinism.prepare_torch(params.run)
    return params, paths


def trainer_of(params: Params, paths: Paths, work: Path) -> Trainer:
    """Return a trainer on a checkout's teachers and caches that writes to ``work`` alone."""
    caches = {name: paths.cache(name) for name in params.capabilities}
    return open_trainer(params, paths.teachers, caches, work)


def seconds_of(work: Callable[[], object]) -> float:
    """Return what a piece of work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
