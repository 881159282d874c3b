"""The pipeline as a Prefect flow: one task per stage of DVC's graph, then the registry.

DVC says what is stale and records what was made; Prefect says when, repeats what failed for a
passing reason, and shows it live. ``dvc repro`` does the same without Prefect.
"""

import os
import queue
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.tasks import Task, exponential_backoff

from danceflow.errors import DanceflowError, StoreAwayError, TrackingError
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.params.read import load_params
from danceflow.params.rules import require_trained_here, require_weights
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.registry.promotion import Standing
from flows import approval, dvc_graph, dvc_remote, dvc_stage, home, links, promote, sync
from flows.beginning import begin
from flows.dvc_graph import StageNode
from flows.dvc_stage import Outcome, StageFailedError, StageResult, StageStoppedError
from flows.experiment import Experiment, check_raw, experiment, plan
from flows.parameters import AtOnce, Name, Overrides, Recipe, Seconds
from flows.processes import ProcessGroups
from flows.result import PipelineResult, picture, result_table, sample_sheets

NUM_RETRIES = 2
RETRY_BACKOFF_S = 5.0
_TEACHERS = "teachers"


@dataclass(frozen=True)
class _Settings:
    """What a run of the pipeline may do beside the parameters."""

    max_parallel: int = 1
    enter_registry: bool = True
    timeout_s: float | None = None
    force: str | None = None
    with_teachers: bool = False
    pull: bool = False
    push: bool = False
    wait_for_approval: bool = False

    @property
    def thawed(self) -> str | None:
        """The frozen stage that may run, if any."""
        return _TEACHERS if self.with_teachers else None


def worth_repeating(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:  # noqa: ARG001
    """Return whether a failed task may succeed when it is simply repeated.

    Bad input stays bad, an error of the code comes again, and what was stopped shall not start
    again. What is left are servers that are away, disks, memory, and processes that were killed.
    """
    error = state.data
    if isinstance(error, StageStoppedError):
        return False
    if isinstance(error, StageFailedError):
        is_input = error.command_exit_code == dvc_stage.BAD_INPUT_EXIT_CODE
        return not (is_input or error.is_bug)
    return isinstance(error, TrackingError) or not isinstance(
        error, (DanceflowError, *dvc_stage.BUGS)
    )


STEADY: dict[str, Any] = {
    "retries": NUM_RETRIES,
    "retry_delay_seconds": exponential_backoff(backoff_factor=RETRY_BACKOFF_S),
    "retry_condition_fn": worth_repeating,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


@task(name="stage", task_run_name="{stage}", **STEADY)
def run_stage(
    root: Path,
    stage: str,
    *,
    known: Outcome | None,
    processes: ProcessGroups,
    environment: Mapping[str, str] | None,
    timeout_s: float | None,
    force: bool,
    thaw: bool,
    pull: bool,
) -> StageResult:
    """Bring one stage up to date; its output goes to the log as it comes.

    Args:
        root: the root of the DVC repository.
        stage: the stage's name.
        known: what comes out, where it is known without asking DVC again.
        processes: where the running command is kept.
        environment: what the command starts with; None: this process's.
        timeout_s: seconds it may take; None: as long as it needs.
        force: run it also when nothing changed.
        thaw: run it also where it is frozen.
        pull: take what the DVC remote has of it.
    """
    log = get_run_logger()
    if known is not None:
        log.info("Stage '%s' is %s", stage, known)
        return StageResult(stage, known, 0.0)
    return dvc_stage.reproduce(
        root,
        stage,
        processes=processes,
        report=log.info,
        environment=environment,
        timeout_s=timeout_s,
        force=force,
        thaw=thaw,
        pull=pull,
    )


@task(name="push", task_run_name="push", **STEADY)
def push_results(root: Path, environment: Mapping[str, str] | None) -> None:
    """Send data, outputs and the run-cache to the DVC remote.

    Args:
        root: the checkout, or an experiment's worktree.
        environment: what the command starts with; None: this process's.
    """
    dvc_remote.push(root, environment)
    get_run_logger().info("the DVC remote has what this run has made")


@task(name="record", task_run_name="record", **STEADY)
def record_result(root: Path, params: Params) -> None:
    """Send MLflow what it lacks of the run; to one that is away ``danceflow sync`` sends later."""
    try:
        sync.send(root, params)
    except StoreAwayError as error:
        get_run_logger().warning("%s; `danceflow sync` sends the run later", error)


@task(name="register", task_run_name="register", **STEADY)
def register_student(root: Path, params: Params) -> int:
    """Register the student and return its version."""
    number = promote.register(root, params)
    get_run_logger().info("the student is version %d", number)
    return number


@task(name="gate", task_run_name="gate", **STEADY)
def pass_gate(root: Path, params: Params, number: int, wait_for_approval: bool) -> Standing:
    """Judge a version against the champion and set the aliases."""
    standing = promote.consider(root, params, number, wait_for_approval=wait_for_approval)
    log = get_run_logger()
    for check in standing.verdict.checks:
        log.info("%s: %s", check.decision, check)
    log.info("version %d is the %s", number, "champion" if standing.champion else "challenger")
    return standing


@flow(name="danceflow", persist_result=False)
def run_pipeline(
    overrides: Overrides | None = None,
    recipe: Recipe | None = None,
    name: Name | None = None,
    root: Path | None = None,
    max_parallel: AtOnce = 1,
    enter_registry: bool = True,
    stage_timeout_s: Seconds | None = None,
    with_teachers: bool = False,
    pull: bool = False,
    push: bool = False,
    wait_for_approval: bool = False,
) -> PipelineResult:
    """Bring every stage up to date, then register and judge the student.

    With overrides or a recipe it runs in a worktree of its own and is kept as a DVC experiment;
    the checkout stays as it is.

    Args:
        overrides: new parameter values by dotted name, such as {"distill.num_updates": 2000}.
        recipe: a complete params file in place of params.yaml; its path in the checkout.
        name: the experiment's name; left out, it is made from the recipe and the parameters.
        root: the checkout; left out, it is the one that the working folder lies in.
        max_parallel: how many stages may run at once where the graph allows it.
        enter_registry: register the student and judge it; otherwise the registry stays as it is.
        stage_timeout_s: seconds that one stage may take; left out, as long as it needs.
        with_teachers: let the frozen stage of the teachers run, too, where it is stale.
        pull: take from the DVC remote what others have made of the same inputs.
        push: send what was made to the DVC remote, before it is registered.
        wait_for_approval: ask a person on Prefect's page before a version becomes champion.

    Raises:
        ConfigError: the parameters are wrong.
        StageFailedError: a stage failed; what was done is kept, and the next run goes on there.
    """
    root = begin(root)
    recipe = None if recipe is None else root / recipe
    settings = _Settings(
        max_parallel,
        enter_registry,
        stage_timeout_s,
        with_teachers=with_teachers,
        pull=pull,
        push=push,
        wait_for_approval=wait_for_approval,
    )
    if recipe is None and not overrides and name is None:
        check_raw(root)
        return _run(root, load_params(Paths(root).params), None, settings)
    checked = plan(root, recipe, overrides, name)
    with experiment(root, checked) as place:
        get_run_logger().info("experiment %s runs in %s", place.name, place.root)
        return _run(place.root, checked.params, place, settings)


@flow(name="danceflow-teachers", persist_result=False)
def run_teachers(root: Path | None = None) -> tuple[StageResult, ...]:
    """Train the teachers again: run their frozen stage and what it needs.

    Args:
        root: the checkout; None: the one that the working folder lies in.
    """
    root = begin(root)
    require_trained_here(load_params(Paths(root).params), str(Paths(root).params))
    check_raw(root)
    settings = _Settings(force=_TEACHERS, with_teachers=True)
    with ProcessGroups() as processes:
        nodes = dvc_graph.ancestry(dvc_graph.stage_graph(root, settings.thawed), "teachers")
        return _run_stages(root, nodes, processes, None, settings)


def _run(
    root: Path,
    params: Params,
    place: Experiment | None,
    settings: _Settings,
) -> PipelineResult:
    """Run the stages and what follows them, in a checkout or an experiment's worktree."""
    from danceflow.method import require_training

    paths = Paths(root)
    require_weights(params, root, str(paths.params))
    require_training(params, str(paths.params))
    if settings.with_teachers:
        require_trained_here(params, str(paths.params))
    if settings.pull or settings.push:
        dvc_remote.require_remote(root)
    register = settings.enter_registry and params.tracking.enabled
    if register:
        _look_at_the_store(TrackingSettings.of(root, params.tracking))
    base = os.environ if place is None else place.environment
    environment = {**base, **links.flow_environment()}
    with ProcessGroups() as processes:
        nodes = dvc_graph.stage_graph(root, settings.thawed)
        stages = _run_stages(root, nodes, processes, environment, settings)
    tracking = TrackingSettings.of(root, params.tracking)
    name = None if place is None else place.name
    if place is not None:
        place.save(message=links.find(root, tracking, name).message)
    if settings.push:
        push_results(root, environment)
    summary = promote.read_summary(paths.summary)
    if params.tracking.enabled and not register:
        record_result(root, params)
    standing = None
    if register:
        number = register_student(root, params)
        standing = pass_gate(root, params, number, settings.wait_for_approval)
        if settings.wait_for_approval:
            standing = approval.asked(root, params, standing)
    home.wait_for_server()  # stages need none, and it may have been killed meanwhile
    found = links.find(root, tracking, name)  # a run that was lost is there again by now
    links.tell(found, tracking)
    _show(paths, f"{result_table(summary, stages, standing)}\n{found.line}\n")
    return PipelineResult(stages, summary, None if place is None else place.name, standing)


def _look_at_the_store(settings: TrackingSettings) -> None:
    """Open the store before hours of training, so that a wrong login or place is told at once.

    One that is away may be back by then.
    """
    try:
        open_store(settings)
    except StoreAwayError as error:
        get_run_logger().warning("%s; the stages run without it", error)


def _run_stages(
    root: Path,
    nodes: tuple[StageNode, ...],
    processes: ProcessGroups,
    environment: Mapping[str, str] | None,
    settings: _Settings,
) -> tuple[StageResult, ...]:
    """Run the stages in the order of the graph and return what happened to them.

    After a failure nothing new starts; what runs beside it may end, and is not lost.
    """
    dvc_graph.tidy(root, get_run_logger().info)
    changed = dvc_graph.changed_stages(root, settings.thawed)
    up_to_date: set[str] = set()
    futures: dict[str, PrefectFuture[StageResult]] = {}
    ended: queue.SimpleQueue[PrefectFuture[StageResult]] = queue.SimpleQueue()
    names: dict[UUID, str] = {}
    results: dict[str, StageResult] = {}
    waiting = {node.name: node for node in nodes}
    num_running = 0
    failed: str | None = None
    while True:
        for node in list(waiting.values()):
            if failed or num_running >= settings.max_parallel:
                break
            if any(need not in results for need in node.needs):
                continue
            known = None
            stale = node.name in changed or node.name == settings.force
            if not stale and up_to_date.issuperset(node.needs):
                up_to_date.add(node.name)
                known = Outcome.FROZEN if node.frozen else Outcome.UNCHANGED
            del waiting[node.name]
            future = run_stage.submit(
                root,
                node.name,
                known=known,
                processes=processes,
                environment=environment,
                timeout_s=settings.timeout_s,
                force=node.name == settings.force,
                thaw=node.name == settings.thawed,
                pull=settings.pull,
                wait_for=[futures[need] for need in node.needs],
                return_state=False,
            )
            futures[node.name] = future
            names[future.task_run_id] = node.name
            future.add_done_callback(ended.put)
            num_running += 1
        if num_running == 0:
            break
        future = ended.get()
        future.wait()
        num_running -= 1
        name = names[future.task_run_id]
        if future.state.is_completed():
            results[name] = future.result()
        else:
            failed = failed or name
    if failed:
        if waiting:
            get_run_logger().error("not started: %s", ", ".join(waiting))
        futures[failed].result()
    return tuple(results.values())


def _show(paths: Paths, table: str) -> None:
    """Put the result into Prefect's artifacts."""
    create_markdown_artifact(table, key="danceflow-result", description="Scores, gate and stages")
    uri = picture(sample_sheets(paths.evaluations))
    if uri is not None:
        create_image_artifact(uri, key="danceflow-samples", description="Samples per capability")
