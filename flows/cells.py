"""The cells of a sweep as experiments and runs: planned, found again, recorded."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import ConfigError, DanceflowError, UsageError, unknown_name
from danceflow.ops.files import fingerprint
from danceflow.ops.tracking import TrackingSettings, open_store, record_run, recorded_runs
from danceflow.params.read import load_params
from danceflow.params.sections import Params, TrackingParams
from danceflow.params.sweep import Cell, SweepParams, cells_of, read_sweep
from danceflow.paths import Paths
from danceflow.report.tables.cells import CELL_FILE, CellRecord, from_tags, read_cell, tags_of
from danceflow.report.tables.table import Table, make_table
from flows import dvc_graph
from flows.experiment import Proposal, entries, kept_experiments, kept_file, plan

_SWEEP_TAG = "sweep.sweep"
_TICK_S = 0.001

# What lies at the top of the checkout and decides no number of a run; the parameters are part of a
# cell's name.
_BESIDE = frozenset(
    {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "README.md",
        "docs",
        "dvc.lock",
        "params.yaml",
        "recipes",
        "reports",
        "sweeps",
        "tests",
    }
)


@dataclass(frozen=True)
class PlannedCell:
    """A cell that was checked and may be started."""

    cell: Cell
    plan: Proposal

    @property
    def name(self) -> str:
        """The name of its experiment and of its run."""
        return self.plan.name


def plan_cells(root: Path, file: Path) -> tuple[SweepParams, tuple[PlannedCell, ...]]:
    """Return a sweep and its cells, all of them checked; nothing has been made for them yet.

    Args:
        root: the checkout.
        file: the sweep file.

    Raises:
        ConfigError: the file is wrong, or cells are: one message tells every problem of all cells.
        UsageError: the checkout has no commit to start from.
    """
    from danceflow.method import require_training

    sweep = read_sweep(file)
    recipe = None if sweep.recipe is None else root / sweep.recipe
    if recipe is not None:
        load_params(recipe)
    found: list[PlannedCell] = []
    wrong: dict[str, list[str]] = {}
    for cell in cells_of(sweep, str(file)):
        try:
            checked = plan(root, recipe, cell.overrides, f"{sweep.name}-{cell.slug}")
            require_training(checked.params, str(recipe or Paths(root).params))
        except ConfigError as error:
            wrong.setdefault(str(error), []).append(f"{cell.variant}, seed {cell.seed}")
            continue
        name = f"{checked.name}-{fingerprint(checked.params.model_dump(mode='json'))[:8]}"
        found.append(
            PlannedCell(cell, Proposal(name, checked.recipe, checked.overrides, checked.params))
        )
    problems = [f"{_some(names)}: {text}" for text, names in wrong.items()]
    problems += _target_problems(root, sweep)
    if problems:
        lines = "\n  ".join(problems)
        raise ConfigError(f"{file}: nothing was started, for {len(problems)} problems\n  {lines}")
    return sweep, tuple(found)


def code_of(root: Path, tree: str) -> str:
    """Return a digest of all that decides a cell's numbers beside its parameters.

    Args:
        root: the checkout.
        tree: a snapshot of it.
    """
    return fingerprint({k: v for k, v in entries(root, tree).items() if k not in _BESIDE})


def kept_cells(root: Path, sweep: str) -> dict[str, CellRecord]:
    """Return the cells of a sweep that DVC keeps as experiments, by name, the latest of each.

    Args:
        root: the checkout.
        sweep: the sweep's name.
    """
    found: dict[str, CellRecord] = {}
    for kept in kept_experiments(root):
        if not kept.name.startswith(f"{sweep}-"):
            continue
        text = kept_file(root, kept, CELL_FILE)
        if text is None:
            continue
        advice = f"(`dvc exp remove {kept.name}` forgets it)"
        record = read_cell(text, f"experiment {kept.name} {advice}: {CELL_FILE}")
        if record.sweep == sweep:
            _keep_later(found, record)
    return found


def recorded_cells(root: Path, tracking: TrackingParams, sweep: str) -> dict[str, CellRecord]:
    """Return the cells of a sweep that MLflow holds, by name.

    Args:
        root: the checkout.
        tracking: says where the store is.
        sweep: the sweep's name.

    Raises:
        UsageError: tracking is off.
        TrackingError: the store cannot be reached or refuses.
    """
    settings = TrackingSettings.of(root, tracking)
    if not settings.enabled:
        raise UsageError("tracking.enabled is false: there are no runs; use --from dvc")
    found: dict[str, CellRecord] = {}
    for run in recorded_runs(open_store(settings), _SWEEP_TAG, sweep):
        _keep_later(found, from_tags(run.tags, run.metrics, f"run {run.name}"))
    return found


def record_cell(
    root: Path, params: Params, record: CellRecord, further: Mapping[str, str] | None = None
) -> None:
    """Write a cell to MLflow; nothing where tracking is off.

    Args:
        root: the checkout.
        params: of the cell.
        record: what it came to.
        further: tags.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    settings = TrackingSettings.of(root, params.tracking)
    if settings.enabled:
        tags = {**(further or {}), **tags_of(record), "dvc.experiment": record.cell}
        record_run(
            open_store(settings), record.cell, tags, params.model_dump(mode="json"), record.scores
        )


def sweep_table(root: Path, sweep: str, source: str) -> tuple[Table, tuple[str, ...]]:
    """Return a sweep's results and the names of its cells that are not finished.

    Args:
        root: the checkout.
        sweep: a sweep's file, whose cells are shown and no others; or its name, for what was run
            last for each variant and seed.
        source: ``dvc`` or ``mlflow``; both hold the same numbers.

    Raises:
        ConfigError: the file is wrong.
        DataError: no cell is finished.
        TrackingError: the store cannot be reached or refuses.
    """
    file = Path(sweep)
    name, wanted = sweep, None
    if file.suffix or file.is_file():
        params, cells = plan_cells(root, file)
        name, wanted = params.name, [cell.name for cell in cells]
    if source == "dvc":
        found = kept_cells(root, name)
    else:
        found = recorded_cells(root, load_params(Paths(root).params).tracking, name)
    if wanted is None:
        return make_table(name, latest(found)), ()
    missing = tuple(cell for cell in wanted if cell not in found)
    return make_table(name, [found[cell] for cell in wanted if cell in found]), missing


def latest(cells: Mapping[str, CellRecord]) -> tuple[CellRecord, ...]:
    """Return one cell for each variant and seed: the one that ended last.

    A cell whose parameters were changed since has another name and the same variant and seed.
    """
    found: dict[tuple[str, int], CellRecord] = {}
    for record in sorted(cells.values(), key=lambda cell: cell.finished):
        found[record.variant, record.seed] = record
    return tuple(found.values())


def ends_now(kept: Iterable[CellRecord]) -> float:
    """Return the time at which a cell ends: later than those that are kept.

    What was run last is what counts, and the clock may have been set back since.

    Args:
        kept: cells that ended before.
    """
    return max([time.time(), *(record.finished + _TICK_S for record in kept)])


def _keep_later(found: dict[str, CellRecord], record: CellRecord) -> None:
    known = found.get(record.cell)
    if known is None or known.finished < record.finished:
        found[record.cell] = record


def _some(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _target_problems(root: Path, sweep: SweepParams) -> Sequence[str]:
    """Return what is wrong with the targets."""
    if sweep.targets is None:
        return []
    nodes = dvc_graph.stage_graph(root)
    known = {node.name for node in nodes} | {node.name.partition("@")[0] for node in nodes}
    problems = [
        f"targets: {unknown_name('stage', target, known)}"
        for target in sweep.targets
        if target not in known
    ]
    if problems:
        return problems
    reached: set[str] = set()
    for node in nodes:
        if {node.name, node.name.partition("@")[0]} & set(sweep.targets):
            above = dvc_graph.ancestry(nodes, node.name)
            reached |= {item.name.partition("@")[0] for item in above}
    if "evaluate" not in reached:
        return ["targets: none of them needs evaluate, whose results the table is made of"]
    return []


class SweepFailedError(DanceflowError):
    """Some cells of a sweep failed; the others are kept."""
