"""Errors that a person can act on: one sentence that names the place."""

import difflib
from collections.abc import Iterable


class DanceflowError(Exception):
    """Something that the user or the surroundings must mend; its text is the whole message."""

    exit_code = 1


class ConfigError(DanceflowError):
    """A parameter is unknown, mistyped or contradicts another one."""

    exit_code = 2


class DataError(DanceflowError):
    """A source, a row, an image or a bucket cannot be used."""

    exit_code = 2


class WeightsError(DanceflowError):
    """Weights are missing, truncated, of another shape or not the recorded ones."""

    exit_code = 2


class UsageError(DanceflowError):
    """A command was given something it cannot use."""

    exit_code = 2


class StageError(DanceflowError):
    """A stage could not be found, started or finished."""


class TrackingError(DanceflowError):
    """The tracking server or the model registry cannot be reached or refuses."""


class StoreAwayError(TrackingError):
    """The tracking store does not answer now; what was to be recorded can be sent later."""


class HubError(DanceflowError):
    """The model hub has no such thing, refuses or does not answer."""


class DiskSpaceError(DanceflowError):
    """There is not enough room on a disk."""


class TrainingError(DanceflowError):
    """Training cannot go on: a non-finite loss, a zero gradient, teachers on different grids."""


class JudgeError(DanceflowError):
    """A judge cannot be reached, refuses or gives no usable answer."""


_BRIEF = 80


def brief(text: str, length: int = _BRIEF) -> str:
    """Return foreign text as a message may quote it: one printable line, of bounded length.

    Args:
        text: Whatever a file held.
        length: Characters after which it is cut; its own length is told then.
    """
    line = repr(" ".join(text[: 4 * length].split()))[1:-1]  # repr escapes what cannot be printed
    if len(text) <= 4 * length and len(line) <= length:
        return line
    return f"{line[:length]}... ({len(text)} characters)"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not in a table, with the nearest one that is.

    Args:
        kind: What the name stands for, such as ``"method"``.
        name: The name as it was written.
        known: Every name of the table.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}: {hint}known are {', '.join(names) or 'none'}"
