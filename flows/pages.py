"""The pages of MLflow and Prefect, side by side until one ends or the user interrupts."""

import logging
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from danceflow.errors import DanceflowError, TrackingError
from danceflow.ops.tracking import (
    VIEW,
    TrackingSettings,
    open_store,
    resolve_uri,
    runs_page,
    save_view,
)
from danceflow.params.sections import Params
from flows.home import at_home
from flows.processes import ProcessGroups
from flows.servers import Server, mlflow_server

_LOG = logging.getLogger(__name__)


def serve_pages(root: Path, params: Params, mlflow_port: int, prefect_port: int) -> None:
    """Serve both pages on this machine until interrupted.

    Servers elsewhere have pages of their own, whose addresses are told; that one is away is a
    warning. So has a Prefect server that another command of the project has started.

    Args:
        root: The checkout.
        params: Say where runs are recorded, and of which capabilities.
        mlflow_port: Port of MLflow's page.
        prefect_port: Port of Prefect's page.

    Raises:
        DanceflowError: A page ended by itself.
        TrackingError: The project's own store cannot be used.
        UsageError: Prefect's port is taken.
    """
    settings = TrackingSettings.of(root, params.tracking)
    uri = resolve_uri(root, params.tracking.uri)
    is_elsewhere = uri.startswith(("http:", "https:"))
    address = uri if is_elsewhere else f"http://127.0.0.1:{mlflow_port}"
    try:
        store = open_store(settings)
        save_view(store, list(params.capabilities))
        _LOG.info("MLflow: %s", runs_page(address, store, VIEW))
    except TrackingError as error:
        if not is_elsewhere:
            raise
        _LOG.warning("%s", error)
    servers = {} if is_elsewhere else {"MLflow": mlflow_server(mlflow_port, uri)}
    try:
        with at_home(root, prefect_port, is_asked=False) as home:
            _LOG.info("Prefect: %s", home.page)
            keep_running(servers, {"Prefect": home.is_alive})
    except KeyboardInterrupt:
        _LOG.info("interrupted: the pages are closed")


def keep_running(
    servers: Mapping[str, Server], others: Mapping[str, Callable[[], bool]], poll_s: float = 0.2
) -> None:
    """Run several servers until the user interrupts, or one ends; then all are ended.

    They end, too, when this process is killed.

    Args:
        servers: What to run, by a name for messages.
        others: What runs already, and whether it still does.
        poll_s: Seconds between two looks.

    Raises:
        DanceflowError: A server ended by itself.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as stack, ProcessGroups(grace_s=5.0) as groups:
        for name, server in servers.items():
            running[name] = server.start()
            stack.enter_context(groups.holding(running[name]))
        while True:
            for name, process in running.items():
                if process.poll() is not None:
                    raise DanceflowError(f"{name} ended with exit code {process.returncode}")
            for name, is_alive in others.items():
                if not is_alive():
                    raise DanceflowError(f"{name} ended")
            time.sleep(poll_s)
