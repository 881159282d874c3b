"""A sweep as a Prefect flow: one task per cell, each in a worktree of its own.

A cell is a DVC experiment and a run in MLflow. What ended well is found again, so a sweep that was
interrupted goes on when the same command is run again: finished cells are not started, a training
goes on from its checkpoint, and what the run-cache holds is not computed. A cell that fails costs
the others nothing.

The stages of a cell run in one ``dvc repro``, not one per task: a sweep consists of many short
trainings, and starting DVC seven times for each would take longer than some of them.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.futures import PrefectFuture

from danceflow.errors import DanceflowError
from danceflow.evaluate.records import read_evaluation
from danceflow.ops.files import fingerprint, write_json
from danceflow.ops.tracking import TrackingSettings
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.report.curves import read_curves
from danceflow.report.metrics import metrics_of
from danceflow.report.tables.cells import CELL_FILE, CellRecord, scores_of, write_cell
from danceflow.stages import STAGES
from flows import dvc_graph, dvc_stage, links
from flows.beginning import begin
from flows.cells import (
    PlannedCell,
    SweepFailedError,
    code_of,
    ends_now,
    kept_cells,
    plan_cells,
    record_cell,
    recorded_cells,
)
from flows.dvc_stage import Outcome, StageResult, StageStoppedError
from flows.experiment import experiment, snapshot
from flows.home import wait_for_server
from flows.parameters import AtOnce, Seconds, SweepFile
from flows.pipeline import STEADY
from flows.processes import ProcessGroups

KEPT = "kept"  # a finished cell was found
DONE = "done"
FAILED = "failed"


@dataclass(frozen=True)
class CellResult:
    """What happened to one cell.

    Attributes:
        name: the name of its experiment and run.
        variant: what it is called in tables.
        seed: of its training.
        state: ``kept``, ``done`` or ``failed``.
        seconds: wall time of this call; 0 where it was kept.
        stages: what happened to its stages.
        reason: why it failed.
    """

    name: str
    variant: str
    seed: int
    state: str
    seconds: float = 0.0
    stages: tuple[StageResult, ...] = ()
    reason: str = ""


class Groundwork:
    """Work that several cells share: whoever comes first does it, the others wait for it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._done: set[str] = set()

    def once(self, key: str, work: Callable[[], object]) -> None:
        """Do a piece of work unless it was done; when it fails, the next one tries again."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._done:
                work()
                self._done.add(key)


@dataclass(frozen=True)
class _Sweep:
    """What all cells of a sweep share."""

    root: Path
    name: str
    tree: str
    code: str
    targets: tuple[str, ...]
    ground: tuple[str, ...]
    groundwork: Groundwork
    git: threading.Lock
    processes: ProcessGroups
    timeout_s: float | None
    kept: tuple[CellRecord, ...]


@task(name="cell", task_run_name="{name}", **STEADY)
def run_cell(name: str, work: Callable[[], tuple[StageResult, ...]]) -> tuple[StageResult, ...]:  # noqa: ARG001
    """Run one cell and return what its stages did.

    Args:
        name: the cell's name.
        work: runs it; a closure, since Prefect looks into every other kind of argument.
    """
    return work()


@flow(name="danceflow-sweep", persist_result=False)
def run_sweep(
    file: SweepFile,
    root: Path | None = None,
    parallel: AtOnce | None = None,
    cell_timeout_s: Seconds | None = None,
) -> tuple[CellResult, ...]:
    """Run every cell of a sweep that is not finished yet, and return what happened to each.

    Args:
        file: the sweep file, such as sweeps/guidance.yaml; its path in the checkout.
        root: the checkout; left out, it is the one that the working folder lies in.
        parallel: cells at once; left out, what the file says.
        cell_timeout_s: seconds that the stages of one cell may take; left out, what they need.

    Raises:
        ConfigError: the file or some cells are wrong; nothing was started.
        SweepFailedError: some cells failed; the others are finished.
    """
    root = begin(root)
    file = root / file
    sweep, cells = plan_cells(root, file)
    limit = sweep.parallel if parallel is None else parallel
    log = get_run_logger()
    dvc_graph.tidy(root, get_run_logger().info)
    tree = snapshot(root)
    targets = sweep.targets or ()
    code = code_of(root, tree)
    kept = kept_cells(root, sweep.name)
    finished = _finished(root, sweep.name, kept, cells, code, " ".join(targets))
    results = [
        CellResult(cell.name, cell.cell.variant, cell.cell.seed, KEPT)
        for cell in cells
        if cell.name in finished
    ]
    waiting = [cell for cell in cells if cell.name not in finished]
    log.info("%d cells, %d of them finished, %d at once", len(cells), len(results), limit)
    progress = create_progress_artifact(0.0, key="danceflow-sweep", description=sweep.name)
    assert isinstance(progress, UUID)  # outside of an event loop it is no coroutine
    with ProcessGroups() as processes:
        shared = _Sweep(
            root=root,
            name=sweep.name,
            tree=tree,
            code=code,
            targets=targets,
            ground=_ground(root) if limit > 1 else (),
            groundwork=Groundwork(),
            git=threading.Lock(),
            processes=processes,
            timeout_s=cell_timeout_s,
            kept=tuple(kept.values()),
        )
        results += _run_all(waiting, shared, limit, len(cells), progress)
    wait_for_server()
    create_markdown_artifact(cells_table(results), key="danceflow-cells", description=sweep.name)
    failed = [result for result in results if result.state == FAILED]
    if failed:
        reasons = "\n  ".join(f"{result.name}: {result.reason}" for result in failed)
        raise SweepFailedError(
            f"sweep {sweep.name}: {len(failed)} of {len(cells)} cells failed, the others are kept; "
            f"the same command tries these again\n  {reasons}"
        )
    return tuple(results)


def cells_table(results: Sequence[CellResult]) -> str:
    """Return what happened to the cells as Markdown."""
    rows = ["| variant | seed | cell | seconds | stages that ran |", "|---|---|---|---|---|"]
    for result in results:
        ran = [stage.name for stage in result.stages if stage.outcome == Outcome.RAN]
        rows.append(
            f"| {result.variant} | {result.seed} | {result.state} | {result.seconds:.0f} | "
            f"{', '.join(ran) or '-'} |"
        )
    return "\n".join(rows) + "\n"


def _run_all(
    waiting: Sequence[PlannedCell], shared: _Sweep, limit: int, num_cells: int, progress: UUID
) -> list[CellResult]:
    """Run cells, ``limit`` at once, and return what happened to each, as they end."""
    log = get_run_logger()
    left = list(waiting)
    ended: queue.SimpleQueue[PrefectFuture[tuple[StageResult, ...]]] = queue.SimpleQueue()
    running: dict[UUID, tuple[PlannedCell, float]] = {}
    results: list[CellResult] = []
    while left or running:
        while left and len(running) < limit:
            planned = left.pop(0)
            work = partial(_work, planned, shared)
            future = run_cell.submit(planned.name, work, return_state=False)
            running[future.task_run_id] = (planned, time.monotonic())
            future.add_done_callback(ended.put)
        future = ended.get()
        future.wait()
        planned, began = running.pop(future.task_run_id)
        results.append(_result(planned, time.monotonic() - began, future))
        num_done = num_cells - len(left) - len(running)
        log.info("[%d/%d] %s: %s", num_done, num_cells, planned.name, results[-1].state)
        _show_progress(progress, 100 * num_done / num_cells)
    return results


def _show_progress(progress: UUID, percent: float) -> None:
    """Tell Prefect's page; a server that is away costs no cell."""
    try:
        update_progress_artifact(progress, percent)
    except httpx.TransportError as error:
        get_run_logger().warning("the progress is not shown, as Prefect is away: %s", error)


def _result(
    planned: PlannedCell, seconds: float, future: PrefectFuture[tuple[StageResult, ...]]
) -> CellResult:
    """Return what happened to a cell whose task has ended; no failure leaves."""
    cell = planned.cell
    try:
        stages = future.result()
    except Exception as error:
        known = isinstance(error, DanceflowError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        return CellResult(planned.name, cell.variant, cell.seed, FAILED, seconds, (), reason)
    return CellResult(planned.name, cell.variant, cell.seed, DONE, seconds, stages)


def _work(planned: PlannedCell, sweep: _Sweep) -> tuple[StageResult, ...]:
    """Run a cell, keep it as an experiment, record it, and return what its stages did."""
    name, params, log = planned.name, planned.plan.params, get_run_logger()
    if sweep.processes.stopped:
        raise StageStoppedError(f"cell {name} was not started: the sweep ends", name, None)
    with experiment(sweep.root, planned.plan, sweep.tree, sweep.git) as place:

        def bring(*targets: str) -> tuple[StageResult, ...]:
            return dvc_stage.reproduce_all(
                place.root,
                targets,
                processes=sweep.processes,
                report=lambda line: log.info("%s: %s", name, line),
                environment={**place.environment, **links.flow_environment()},
                timeout_s=sweep.timeout_s,
            )

        if sweep.ground:
            sweep.groundwork.once(_ground_key(params), lambda: bring(*sweep.ground))
        stages = bring(*sweep.targets)
        record = _record(planned, sweep, Paths(place.root))
        file = place.root / CELL_FILE
        write_cell(file, record)
        found = links.find(place.root, TrackingSettings.of(place.root, params.tracking), name)
        links.show_in_report(found, place.root)
        kept = [file, Paths(place.root).metrics]
        with sweep.git:
            place.save([stage.name for stage in stages], kept, found.message)
    record_cell(sweep.root, params, record, found.tags)
    return stages


def _record(planned: PlannedCell, sweep: _Sweep, paths: Paths) -> CellRecord:
    """Return what a cell came to, from the evaluations in its worktree.

    Where the stage report did not run, the metrics that git brought along are another run's: those
    of the cell take their place.
    """
    params = planned.plan.params
    evaluations = {
        capability: read_evaluation(paths.evaluation(capability), capability)
        for capability in params.capabilities
    }
    if sweep.targets:
        seconds = read_curves(paths.distill_metrics).seconds
        write_json(paths.metrics, metrics_of(evaluations, seconds))
    return CellRecord(
        sweep=sweep.name,
        cell=planned.name,
        variant=planned.cell.variant,
        seed=planned.cell.seed,
        targets=" ".join(sweep.targets),
        code=sweep.code,
        finished=ends_now(sweep.kept),
        scores=scores_of(params, evaluations),
    )


def _finished(
    root: Path,
    sweep: str,
    kept: Mapping[str, CellRecord],
    cells: Sequence[PlannedCell],
    code: str,
    targets: str,
) -> frozenset[str]:
    """Return the names of the cells that ended well with this code and these targets.

    One that was stopped between its experiment and its run in MLflow is recorded now.
    """
    finished = {
        cell.name: kept[cell.name]
        for cell in cells
        if cell.name in kept and (kept[cell.name].code, kept[cell.name].targets) == (code, targets)
    }
    tracked = [cell for cell in cells if cell.plan.params.tracking.enabled]
    if tracked:
        # The store is made here, before cells that run at the same time would all make it.
        known = recorded_cells(root, tracked[0].plan.params.tracking, sweep)
        for cell in tracked:
            if cell.name in finished and known.get(cell.name) != finished[cell.name]:
                record_cell(root, cell.plan.params, finished[cell.name])
    return frozenset(finished)


def _ground(root: Path) -> tuple[str, ...]:
    """Return the stages that all trainings stand on, without their items."""
    nodes = {node.name: node for node in dvc_graph.stage_graph(root)}
    if "distill" not in nodes:
        return ()
    names = (name for name in nodes["distill"].needs if not nodes[name].frozen)
    return tuple(dict.fromkeys(name.partition("@")[0] for name in names))


def _ground_key(params: Params) -> str:
    """Return what stands for the results of the stages that trainings stand on."""
    names = {
        text.format(item=capability)
        for stage in ("prepare", "cache")
        for text in STAGES[stage].params
        for capability in params.capabilities
    }
    return fingerprint(params.select(tuple(names)))
