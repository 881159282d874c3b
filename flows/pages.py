"""The pages of MLflow and Prefect, side by side until one ends or the user interrupts."""

import logging
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from danceflow.errors import DanceflowError, TrackingError
from danceflow.ops.tracking import TrackingSettings, open_store, resolve_uri, runs_page
from danceflow.params.sections import TrackingParams
from flows.processes import ProcessGroups
from flows.servers import Server, mlflow_server, prefect_server

_LOG = logging.getLogger(__name__)


def serve_pages(root: Path, tracking: TrackingParams, mlflow_port: int, prefect_port: int) -> None:
    """Serve both pages on this machine until interrupted.

    A tracking server elsewhere has a page of its own: its address is told and only Prefect's is
    served.

    Args:
        root: The checkout.
        tracking: Where runs are recorded.
        mlflow_port: Port of MLflow's page.
        prefect_port: Port of Prefect's page.

    Raises:
        DanceflowError: A page ended by itself.
        TrackingError: The project's own store cannot be used.
    """
    settings = TrackingSettings.of(root, tracking)
    uri = resolve_uri(root, tracking.uri)
    servers = {"Prefect": prefect_server(prefect_port)}
    _LOG.info("Prefect: http://127.0.0.1:%d", prefect_port)
    if uri.startswith(("http:", "https:")):
        try:
            _LOG.info("MLflow: %s", runs_page(uri, open_store(settings)))
        except TrackingError as error:
            _LOG.warning("%s", error)
    else:
        address = f"http://127.0.0.1:{mlflow_port}"
        _LOG.info("MLflow: %s", runs_page(address, open_store(settings)))
        servers["MLflow"] = mlflow_server(mlflow_port, uri)
    keep_running(servers)


def keep_running(servers: Mapping[str, Server], poll_s: float = 0.2) -> None:
    """Run several servers until the user interrupts; then, or when one ends, all are ended.

    They end, too, when this process is killed.

    Args:
        servers: What to run, by a name for messages.
        poll_s: Seconds between two looks.

    Raises:
        DanceflowError: A server ended by itself.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        with ExitStack() as stack, ProcessGroups(grace_s=5.0) as groups:
            for name, server in servers.items():
                running[name] = server.start()
                stack.enter_context(groups.holding(running[name]))
            while True:
                for name, process in running.items():
                    if process.poll() is not None:
                        raise DanceflowError(f"{name} ended with exit code {process.returncode}")
                time.sleep(poll_s)
    except KeyboardInterrupt:
        _LOG.info("interrupted: the pages are closed")
