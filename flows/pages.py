"""The pages of MLflow and Prefect, side by side until one ends or the user interrupts."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from danceflow.config import TrackingParams
from danceflow.errors import DanceflowError, TrackingError
from danceflow.ops.tracking import TrackingSettings, open_store, resolve_uri, runs_page
from flows.processes import ProcessGroups

logger = logging.getLogger(__name__)


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
    python = (sys.executable, "-m")
    settings = TrackingSettings.of(root, tracking)
    uri = resolve_uri(root, tracking.uri)
    commands = {
        "Prefect": [*python, "prefect", "server", "start", "--port", str(prefect_port)],
    }
    logger.info("Prefect: http://127.0.0.1:%d", prefect_port)
    if uri.startswith(("http:", "https:")):
        try:
            logger.info("MLflow: %s", runs_page(uri, open_store(settings)))
        except TrackingError as error:
            logger.warning("%s", error)
    else:
        address = f"http://127.0.0.1:{mlflow_port}"
        logger.info("MLflow: %s", runs_page(address, open_store(settings)))
        commands["MLflow"] = [
            *(*python, "mlflow", "ui"),
            *("--backend-store-uri", uri, "--port", str(mlflow_port)),
        ]
    keep_running(commands)


def keep_running(commands: Mapping[str, Sequence[str]], poll_s: float = 0.2) -> None:
    """Run several commands until the user interrupts; then, or when one ends, all are ended.

    Args:
        commands: What to run, by a name for messages.
        poll_s: Seconds between two looks.

    Raises:
        DanceflowError: A command ended by itself.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    groups = ProcessGroups(grace_s=5.0)
    with ExitStack() as stack:
        try:
            for name, command in commands.items():
                running[name] = subprocess.Popen(command, start_new_session=True)
                stack.enter_context(groups.holding(running[name]))
            while True:
                for name, process in running.items():
                    if process.poll() is not None:
                        raise DanceflowError(f"{name} ended with exit code {process.returncode}")
                time.sleep(poll_s)
        except KeyboardInterrupt:
            logger.info("interrupted: the pages are closed")
        finally:
            groups.stop()
