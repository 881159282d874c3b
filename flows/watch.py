"""Are served requests still like the training? A flow that compares, tells, and asks or retrains.

It reads what ``danceflow serve-model --sample-rate`` kept. Where limits are crossed the parameters
say what follows: nothing but the report, a question on Prefect's page, or a run of the pipeline.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.utilities.urls import url_for
from pydantic import Field, StringConstraints

from danceflow.errors import UsageError
from danceflow.ops.tracking import TrackingSettings, open_store, record_run, store_errors
from danceflow.params.read import load_params
from danceflow.params.sections import Params
from danceflow.paths import Paths, find_root
from danceflow.registry.open import is_folder, open_student
from danceflow.watch.compare import PAGE, RESULT, Comparison, compare, write_comparison
from flows.dvc_stage import Outcome
from flows.home import wait_for_server
from flows.pipeline import STEADY, run_pipeline

PATIENCE_S = 86_400.0
"""How long an answer is waited for."""

TAG = "danceflow.watch"
_POLL_S = 2
_LOG = logging.getLogger(__name__)

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Retraining(RunInput):
    """Shall the student be trained anew?"""

    decision: Literal["retrain", "leave"] = Field(title="Decision")
    who: Words = Field(
        title="Who decides", description="Your name; it is kept with the comparison."
    )
    why: Words = Field(title="Why", description="It is kept with the comparison.")


@dataclass(frozen=True)
class Watched:
    """What a comparison came to.

    Attributes:
        comparison: every check.
        folder: of its page and JSON.
        followed: what was done, in a sentence.
    """

    comparison: Comparison
    folder: Path
    followed: str


@task(name="compare", **STEADY)
def compare_task(root: Path, samples: Path, source: str, days: float) -> tuple[Comparison, Path]:
    """Compare, and write page and JSON."""
    params, paths = load_params(Paths(root).params), Paths(root)
    settings = TrackingSettings.of(root, params.tracking)
    student = open_student(source, settings)
    found = compare(params, paths, student, samples, days)
    return found, write_comparison(found, paths)


@task(name="record", **STEADY)
def record_task(root: Path, found: Comparison, folder: Path, followed: str) -> None:
    """Keep numbers, page and what followed as a run of the tracking store."""
    params = load_params(Paths(root).params)
    if not params.tracking.enabled:
        return
    store = open_store(TrackingSettings.of(root, params.tracking))
    crossed = ", ".join(f"{check.kind} {check.name}" for check in found.crossed)
    tags = {
        TAG: "crossed" if crossed else "within",
        "watch.crossed": crossed,
        "watch.followed": followed,
    }
    limits = {"watch": params.watch.model_dump(mode="json")}
    run_id = record_run(store, f"watch-{found.time}", tags, limits, found.metrics())
    with store_errors(store.uri):
        for name in (PAGE, RESULT):
            store.client.log_artifact(run_id, str(folder / name), "watch")


@flow(name="danceflow-watch", persist_result=False)
def run_watch(
    root: Path | None = None,
    samples: Path | None = None,
    source: str = "champion",
    days: float = 7.0,
    patience_s: float = PATIENCE_S,
) -> Watched:
    """Compare served requests with the training, and do what the parameters say.

    Args:
        root: the checkout; left out, it is the one that the working folder lies in.
        samples: folder of what the service kept; left out, ``.danceflow/served`` of the checkout.
        source: the student whose text encoder embeds prompts: as ``danceflow generate --from``.
        days: how far to look back.
        patience_s: seconds that an answer is waited for.

    Raises:
        UsageError: there are no samples, or a question has no page to stand on.
        DataError: a sample, a bucket or an evaluation is missing or damaged.
    """
    place = find_root(Path.cwd()) if root is None else root
    params = load_params(Paths(place).params)
    require_page(params)
    kept = Paths(place).served if samples is None else samples
    wanted = str(Path(source).resolve()) if is_folder(source) else source
    found, folder = compare_task(place, kept, wanted, days)
    wait_for_server()
    create_markdown_artifact(as_markdown(found, folder), "watch", "served requests and training")
    followed = follow(place, params, found, patience_s)
    record_task(place, found, folder, followed)
    return Watched(found, folder, followed)


def require_page(params: Params) -> None:
    """Check that somebody can be asked, where the parameters want that.

    Raises:
        UsageError: a temporary server has no page that outlives the question.
    """
    if params.watch.on_drift == "ask" and not PREFECT_API_URL.value():
        raise UsageError(
            "watch.on_drift: ask needs a Prefect server with a page; start `danceflow ui` and set "
            "PREFECT_API_URL, or write report or retrain"
        )


def follow(root: Path, params: Params, found: Comparison, patience_s: float) -> str:
    """Do what the parameters say about crossed limits, and return it in a sentence."""
    if not found.crossed:
        return "no limit is crossed"
    if params.watch.on_drift == "report":
        return "limits are crossed; it is told, and nothing else is done"
    if params.watch.on_drift == "ask":
        answer = _ask(found, patience_s)
        if answer is None:
            return f"limits are crossed; nobody answered within {patience_s:g} s"
        said = f"{answer.who} says {answer.decision}: {answer.why}"
        if answer.decision == "leave":
            return f"limits are crossed; {said}"
        return f"limits are crossed; {said}; {_retrain(root)}"
    return f"limits are crossed; {_retrain(root)}"


def as_markdown(found: Comparison, folder: Path) -> str:
    """Return the comparison as a page of Prefect shows it; prompts are left out."""
    rows = [
        f"| {check.kind} | {check.name} | "
        f"{'' if check.value is None else f'{check.value:.3f}'} | {check.limit:g} | "
        f"{check.decision} |"
        for check in found.checks
    ]
    head = ["| kind | check | measured | limit | decision |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", f"Page: `{folder / PAGE}`"])


def watch_table(found: Watched) -> str:
    """Return a line for each check, what followed, and where the page is."""
    width = max(len(check.name) for check in found.comparison.checks)
    lines = [
        f"{check.kind:8} {check.name:{width}}  {check.decision:8} {check.text} "
        f"(limit {check.limit:g})"
        for check in found.comparison.checks
    ]
    return "\n".join([*lines, found.followed, str(found.folder / PAGE)])


def _ask(found: Comparison, patience_s: float) -> Retraining | None:
    """Pause until a person has answered; None: nobody has."""
    lines = [f"* {check.kind}: {check.text}" for check in found.crossed]
    _LOG.info(
        "limits are crossed; answer at %s", url_for("flow-run", flow_run.id) or "Prefect's page"
    )
    try:
        return pause_flow_run(
            wait_for_input=Retraining.with_initial_data(
                description="\n".join(["Served requests differ from the training:", "", *lines])
            ),
            timeout=round(patience_s),
            poll_interval=_POLL_S,
        )
    except FlowPauseTimeout:
        return None


def _retrain(root: Path) -> str:
    """Run the pipeline, and say whether there was anything new to learn from."""
    result = run_pipeline(root=root)
    ran = [item.name for item in result.stages if item.outcome is Outcome.RAN]
    if not ran:
        return (
            "the pipeline was run and nothing was stale: data and parameters are those of the "
            "student; add rows like the prompts of the page"
        )
    version = "" if result.standing is None else f"; it gave version {result.standing.version}"
    return f"the pipeline was run: {', '.join(ran)}{version}"
