"""Ways between a flow run in Prefect, its run in MLflow, its DVC experiment and the report.

The report is an output that DVC keeps, the same for every run that leads to it. So it holds no
address: it shows a small page that lies beside it, which the flow writes anew.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, get_current_settings

from danceflow.errors import TrackingError
from danceflow.ops.files import write_text
from danceflow.ops.tracking import (
    ORIGIN_TAG,
    RunPointer,
    Store,
    TrackingSettings,
    main_checkout,
    open_store,
    run_page,
    store_errors,
    without_login,
)
from danceflow.paths import Paths
from flows.home import PORT, is_own_server

MLFLOW_PORT = 5000
"""Where `danceflow ui` shows MLflow unless it is told otherwise."""

_FLOW_RUN = "prefect.flow_run_id"
_FLOW_PAGE = "prefect.flow_run_url"
_EXPERIMENT = "dvc.experiment"
_NOTE = "mlflow.note.content"
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Runs behind this report</title>
<style>
:root {{ color-scheme: light dark; --ink: #23272e; --soft: #5c6470; --accent: #2f6f9f; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e8ea; --soft: #9aa3ad; --accent: #7db8e0; }}
}}
body {{ margin: 0; color: var(--ink); background: transparent;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }}
ul {{ margin: 0; padding-left: 20px; }}
a {{ color: var(--accent); }}
p {{ margin: 6px 0 0; color: var(--soft); font-size: 14px; }}
</style>
<ul>
{items}
</ul>
<p>Pages on this machine open while <code>danceflow ui</code> runs.</p>
</html>
"""


@dataclass(frozen=True)
class Links:
    """What belongs together.

    Attributes:
        flow_run: the id of the flow run.
        flow_page: its address on Prefect's page.
        experiment: the DVC experiment's name; None: the checkout itself.
        run: the id of the run in MLflow; None: there is none.
        page: its address on MLflow's page.
        key: of the training, by which its report looks for links; None: it left no pointer.
    """

    flow_run: str
    flow_page: str
    experiment: str | None
    run: str | None
    page: str | None
    key: str | None = None

    @property
    def message(self) -> str:
        """The message of the experiment's commit."""
        lines = [f"danceflow: experiment {self.experiment}", "", f"Prefect: {self.flow_page}"]
        return "\n".join([*lines, *([f"MLflow: {self.page}"] * bool(self.page))])

    @property
    def tags(self) -> dict[str, str]:
        """What the run is tagged with; its description is Markdown."""
        tags = {_FLOW_RUN: self.flow_run, _FLOW_PAGE: self.flow_page, _NOTE: self.line}
        return tags if self.experiment is None else {**tags, _EXPERIMENT: self.experiment}

    @property
    def line(self) -> str:
        """All of it as one line of Markdown."""
        parts = [f"[flow run]({self.flow_page})"]
        if self.page:
            parts.append(f"[MLflow run]({self.page})")
        if self.experiment:
            parts.append(f"DVC experiment `{self.experiment}`")
        return " · ".join(parts)

    @property
    def html(self) -> str:
        """All of it as the small page that the report shows; no address holds a login."""
        items = [_item("Flow run in Prefect", self.flow_page)]
        if self.page:
            items.append(_item("Run in MLflow", self.page))
        if self.experiment:
            items.append(f"<li>DVC experiment <code>{escape(self.experiment)}</code></li>")
        return _PAGE.format(items="\n".join(items))


def _item(text: str, address: str) -> str:
    """Return a link that leaves the page around it alone."""
    target = escape(without_login(address))
    return f'<li><a href="{target}" target="_blank" rel="noopener">{text}</a></li>'


def flow_environment() -> dict[str, str]:
    """Return the variables by which a training tags its run with the flow that it belongs to.

    ``danceflow.ops.tracking.source_tags`` reads them.
    """
    number = str(flow_run.id)
    return {"DANCEFLOW_FLOW_RUN": number, "DANCEFLOW_FLOW_PAGE": flow_page(number)}


def find(root: Path, settings: TrackingSettings, experiment: str | None) -> Links:
    """Return the links of the running flow; a store that is away costs the link and no more.

    Args:
        root: where its stages ran: the checkout, or an experiment's worktree.
        settings: where runs are recorded.
        experiment: the experiment's name; None: there is none.
    """
    number, pointer = str(flow_run.id), Paths(root).run_pointer
    key = RunPointer.read(pointer).key if pointer.is_file() else None
    try:
        run, page = _tracked(pointer, settings)
    except TrackingError as error:
        get_run_logger().warning("not linked with MLflow: %s", error)
        run = page = None
    return Links(number, flow_page(number), experiment, run, page, key)


def tell(links: Links, settings: TrackingSettings) -> None:
    """Write the links down: beside the report, at the run in MLflow, as an artifact of the flow.

    The report of an experiment finds them, too, once it is applied to the checkout.

    Args:
        links: what belongs together.
        settings: where runs are recorded.

    Raises:
        TrackingError: the store cannot be reached or refuses.
    """
    show_in_report(links, settings.root)
    if links.run is None or links.page is None:
        return
    store = open_store(settings)
    with store_errors(store.uri):
        for name, value in links.tags.items():
            store.client.set_tag(links.run, name, value)
    create_link_artifact(
        links.page,
        link_text="run in MLflow (`danceflow ui` shows it)",
        key="danceflow-run",
        description=links.line,
    )


def show_in_report(links: Links, root: Path) -> None:
    """Write the links where a report looks for them, in the checkout that outlives the others.

    Args:
        links: what belongs together.
        root: where the stages ran: the checkout, or an experiment's worktree.
    """
    if links.key is not None and Paths(root).report_page.is_file():
        write_text(Paths(main_checkout(root)).run_links(links.key), links.html)


def _tracked(pointer: Path, settings: TrackingSettings) -> tuple[str | None, str | None]:
    """Return the id and the page of the run that a training has left a pointer to, if any."""
    if not (settings.enabled and pointer.is_file()):
        return None, None
    store = open_store(settings)
    run = _run_of(store, RunPointer.read(pointer))
    is_server = store.uri.startswith(("http:", "https:"))
    address = store.uri if is_server else f"http://127.0.0.1:{MLFLOW_PORT}"
    return run, None if run is None else run_page(address, store, run)


def _run_of(store: Store, pointer: RunPointer) -> str | None:
    """Return the id of a training's run, or of the one that was rebuilt for it."""
    wanted = [f"tags.`{ORIGIN_TAG}` = '{pointer.origin}'"]
    if pointer.run_id is not None:
        wanted.insert(0, f"attributes.run_id = '{pointer.run_id}'")
    with store_errors(store.uri):
        for condition in wanted:
            for found in store.client.search_runs([store.experiment_id], condition, max_results=1):
                return str(found.info.run_id)
    return None


def flow_page(number: str) -> str:
    """Return the address of a flow run's page.

    The project's own server is another one each time; `danceflow ui` shows its runs.
    """
    url = get_current_settings().ui_url or str(PREFECT_API_URL.value() or "").removesuffix("/api")
    address = f"http://127.0.0.1:{PORT}" if is_own_server() or not url else url
    return f"{address.rstrip('/')}/runs/flow-run/{number}"
