"""How every flow begins: with its checkout, its server and a log of one line for an error."""

import logging
from pathlib import Path

import httpx

from danceflow.errors import DanceflowError
from danceflow.paths import find_root
from flows.home import stay_home
from flows.processes import end_with_parent


class _OneLine(logging.Filter):
    """Takes the traceback from errors that say everything in their message.

    A server that is away has nothing to tell by its traceback, either.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: every record stays."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, DanceflowError | httpx.TransportError):
            record.exc_info = None
        return True


# Prefect's loggers that tell it, with every event and when a run has ended.
_AWAY_LOGGERS = (
    "prefect._internal.concurrency",
    "prefect.events.clients",
    "APILogWorker",
    "EventsWorker",
)
_AWAY_WORDS = ("failed to process item", "Unable to connect to")
_LEFT_WORDS = "Still processing items"


class _Away(logging.Filter):
    """Tells once that Prefect's page is not told any more, and not with every event."""

    _is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is told."""
        text = str(record.msg)
        if _LEFT_WORDS in text:
            return not self._is_told
        if not any(words in text for words in _AWAY_WORDS):
            return True
        is_first, self._is_told = not self._is_told, True
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "Prefect is away: its page misses what happens now", ()
        return is_first


_ONE_LINE, _AWAY = _OneLine(), _Away()


def begin(root: Path | None) -> Path:
    """Return the checkout to work on, once Prefect's log is set up for this flow.

    A flow that a schedule has started ends with it.
    """
    stay_home()
    end_with_parent()
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_ONE_LINE)
    for name in _AWAY_LOGGERS:
        logging.getLogger(name).addFilter(_AWAY)
    return find_root(Path.cwd()) if root is None else root.resolve()
