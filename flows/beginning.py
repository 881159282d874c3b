"""How every flow begins: with its checkout, its server and a log of one line for an error."""

import logging
from pathlib import Path

from danceflow.errors import DanceflowError
from danceflow.paths import find_root
from flows.home import stay_home
from flows.processes import end_with_parent


class _OneLine(logging.Filter):
    """Takes the traceback from errors that say everything in their message."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record stays."""
        if record.exc_info and isinstance(record.exc_info[1], DanceflowError):
            record.exc_info = None
        return True


_ONE_LINE = _OneLine()


def begin(root: Path | None) -> Path:
    """Return the checkout to work on, once Prefect's log is set up for this flow.

    A flow that a schedule has started ends with it.
    """
    stay_home()
    end_with_parent()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_ONE_LINE)
    return find_root(Path.cwd()) if root is None else root.resolve()
