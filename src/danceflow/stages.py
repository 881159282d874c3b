"""The stages: one table that needs no torch, and the one way to run an entry of it.

``dvc.yaml`` repeats the table for DVC and lists the code that each stage reaches; ``danceflow
check`` holds it equal to the table and to the code.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danceflow.errors import StageError, UsageError, unknown_name
from danceflow.ops import determinism, files, group, launch, runtime, timings
from danceflow.ops.code import EVERY_STAGE
from danceflow.params.read import load_params
from danceflow.params.rules import require_weights
from danceflow.params.sections import RUN_KEYS, Params
from danceflow.paths import Paths, find_root

# A stage that starts on a nearly full disk would fail half-way.
_FREE_BYTES = 200_000_000


@dataclass(frozen=True)
class Out:
    """Something a stage writes.

    Attributes:
        path: Relative to the root; ``{item}`` stands for the stage's item.
        cached: Whether DVC keeps it; otherwise it is committed to git.
        persists: Whether it stays where it is until the stage replaces it. DVC deletes the others
            before the stage runs, and can bring back only what it keeps.
        is_metric: Whether its numbers are columns of ``dvc exp show`` and rows of ``dvc metrics
            diff``: what a person compares runs by, and nothing else. DVC keeps a stage with
            uncached outs that are no metrics out of its run-cache, so that it would be executed
            again in every experiment.
    """

    path: str
    cached: bool = True
    persists: bool = False
    is_metric: bool = False


@dataclass(frozen=True)
class Stage:
    """One stage of the graph. In every text ``{item}`` stands for the stage's item.

    Attributes:
        name: As in ``dvc.yaml`` and ``danceflow stage <name>``.
        function: ``module:function``; called with (params, paths) or (params, paths, item).
        params: Dotted names of the parameters that decide its outputs.
        deps: What it reads beside its code: files and folders.
        outs: What it writes.
        matrix: The section of the parameters whose keys are the stage's items, or None.
        axis: What one item is called on the command line, or None.
        frozen: Whether it runs only when asked for by name.
        beside: Modules that decide its outputs and that its imports do not reach.
        is_shared: Whether ``run.num_processes`` processes compute it together.
    """

    name: str
    function: str
    params: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[Out, ...]
    matrix: str | None = None
    axis: str | None = None
    frozen: bool = False
    beside: tuple[str, ...] = ()
    is_shared: bool = False

    @property
    def command(self) -> str:
        """The command in ``dvc.yaml``; it names no interpreter, which would be part of the key."""
        option = f" --{self.axis} {{item}}" if self.axis else ""
        return f"danceflow stage {self.name}{option}"

    @property
    def modules(self) -> tuple[str, ...]:
        """Where its code begins: what these import is what its key holds."""
        return (self.function.partition(":")[0], *self.beside, *EVERY_STAGE)

    def load(self) -> Callable[..., None]:
        """Return the stage's function.

        Raises:
            StageError: It is not there.
        """
        module, _, name = self.function.partition(":")
        try:
            function: Callable[..., None] = getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name != module:
                raise
            raise StageError(f"stage {self.name!r}: there is no {self.function}") from error
        return function


_TABLE = (
    Stage(
        name="prepare",
        function="danceflow.worlds.prepare:run",
        params=("data",),
        deps=("data/raw",),
        outs=(Out("data/buckets"), Out("reports/data.json")),
        beside=("danceflow.columns",),  # the parameters hold no more than a preset's name
    ),
    Stage(
        name="teachers",
        function="danceflow.train.teachers.stage:run",
        params=(*RUN_KEYS, "family", "data", "capabilities", "teachers", "evaluate"),
        deps=("data/buckets",),
        outs=(
            Out("models/teachers", cached=False, persists=True),
            Out("reports/teachers", cached=False, persists=True),
            Out("reports/teachers.json", cached=False, persists=True),
        ),
        frozen=True,
        is_shared=True,
    ),
    Stage(
        name="cache",
        function="danceflow.data.cache:run",
        params=(
            *RUN_KEYS,
            "family",
            "capabilities.{item}.bucket",  # not its weight, which is a matter of the training
            "capabilities.{item}.guidance",
            "capabilities.{item}.needs_source",
            "capabilities.{item}.teacher",
            "cache",
        ),
        deps=(
            "data/buckets",
            "models/teachers",
        ),
        outs=(Out("data/cache/{item}"),),
        matrix="capabilities",
        axis="capability",
        is_shared=True,
    ),
    Stage(
        name="distill",
        function="danceflow.train.distill.stage:run",
        params=(
            *RUN_KEYS,
            "family",
            "capabilities",
            "distill",
            "evaluate.num_steps",  # of its scores while it trains, and what its package says
            "data.world",
        ),
        deps=(
            "data/buckets",
            "data/cache",
            "models/teachers",
        ),
        outs=(Out("models/student"), Out("reports/distill")),
        is_shared=True,
    ),
    Stage(
        name="evaluate",
        function="danceflow.evaluate.stage:run",
        params=(
            *RUN_KEYS,
            "family",
            "capabilities",
            "distill.method",  # these three say what the student started from
            "distill.init",
            "distill.merge_weights",
            "evaluate",
            "data.world",
        ),
        deps=(
            "data/buckets",
            "data/cache/{item}",
            "models/student",
            "models/teachers",
        ),
        outs=(
            Out("reports/evaluate/{item}"),
            Out("reports/evaluate/{item}.json"),
        ),
        matrix="capabilities",
        axis="capability",
        is_shared=True,
    ),
    Stage(
        name="report",
        function="danceflow.report.stage:run",
        params=("capabilities", "evaluate", "gate"),
        deps=(
            "reports/data.json",
            "reports/distill",
            "reports/evaluate",
            "reports/teachers.json",
        ),
        outs=(
            Out("reports/gate.json"),
            Out("reports/metrics.json", cached=False, is_metric=True),
            Out("reports/report.html"),
            Out("reports/summary.json"),
        ),
    ),
)

# What they cost is lost where the distillation cannot start.
_BEFORE_TRAINING = ("prepare", "teachers", "cache", "distill")

STAGES: dict[str, Stage] = {stage.name: stage for stage in _TABLE}


def run_stage(name: str, item: str | None = None, root: Path | None = None) -> None:
    """Run one stage to its end, in this process or in ``run.num_processes`` that it starts.

    Args:
        name: A key of ``STAGES``.
        item: Which item of the stage's matrix, such as a capability.
        root: The checkout; None: the one that the working folder lies in.

    Raises:
        DanceflowError: Bad input, no disk space or a failure that the stage explains.
    """
    if name not in STAGES:
        raise UsageError(unknown_name("stage", name, STAGES))
    stage = STAGES[name]
    paths = Paths(find_root(Path.cwd()) if root is None else root)
    params = load_params(paths.params)
    arguments = _items(stage, item, params)
    require_weights(params, paths.root, str(paths.params))
    if name in _BEFORE_TRAINING:
        from danceflow.method import require_training  # brings torch, as these stages do

        require_training(params, str(paths.params))
    runtime.require_disk_space(paths.root, _FREE_BYTES)
    if group.is_member():
        with group.joined(params.run), files.disk_errors(paths.root):
            stage.load()(params, paths, *arguments)
        return
    full_name, meter = "@".join([name, *arguments]), timings.Meter()
    if stage.is_shared and launch.is_needed(params.run):
        words = ["stage", name, *(word for item in arguments for word in (f"--{stage.axis}", item))]
        launch.launch(params.run, "danceflow.cli", words, f"stage {full_name!r}")
    else:
        function = stage.load()
        determinism.prepare(params.run)
        meter = timings.Meter()
        with files.disk_errors(paths.root):
            function(params, paths, *arguments)
    timings.record(paths.scratch, full_name, meter.read())


def _items(stage: Stage, item: str | None, params: Params) -> tuple[str, ...]:
    if stage.matrix is None:
        if item is not None:
            raise UsageError(f"stage {stage.name!r} takes no item, found {item!r}")
        return ()
    known: Any = getattr(params, stage.matrix)
    if item is None:
        raise UsageError(f"stage {stage.name!r} needs --{stage.axis}: one of {', '.join(known)}")
    if item not in known:
        raise UsageError(unknown_name(stage.axis or "item", item, known))
    return (item,)
