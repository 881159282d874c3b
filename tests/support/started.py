"""Which programs the tests of this process start, as the interpreter itself sees it.

The audit event of ``subprocess`` tells every command, whoever starts it and however.
``conftest.py`` holds tests to what ``doc_commands.EXECUTED`` says that they run.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from one_process import SCRIPT

GROUPS = {"team": 2, "models": 2}  # words of a subcommand
Shape = tuple[str, frozenset[str]]
"""Program with subcommand, and the options."""

_STARTED: set[Shape] = set()


def watch() -> None:
    """From now on see what is started."""
    sys.addaudithook(_hear)


def is_started(words: Sequence[str]) -> bool:
    """Return whether a program was started with this subcommand and at least these options."""
    name, options = shape(words)
    return any(name == other and options <= given for other, given in _STARTED)


def shape(words: Sequence[str]) -> Shape:
    """Return what is alike in commands that do the same with other values."""
    program, *rest = words
    names = [word for word in rest if not word.startswith("-")]
    count = GROUPS.get(names[0], 1) if names else 0
    options = [word.partition("=")[0] for word in rest if word.startswith("-")]
    return " ".join([program, *names[:count]]), frozenset(options)


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and isinstance(arguments[1], (list, tuple)):
        for words in _commands([str(word) for word in arguments[1]]):
            _STARTED.add(shape(words))


def _commands(words: list[str]) -> Iterator[list[str]]:
    """Yield what a command comes to: Python's modules and scripts are programs of their own."""
    program = Path(words[0]).name
    if words[1:3] == ["-c", SCRIPT]:
        yield from (["danceflow", *call] for call in json.loads(words[3]))
    elif program == "bash" and words[1:2] == ["-c"]:
        for part in words[2].split("&&"):
            yield shlex.split(part)
    elif program.startswith("python") and words[1:2] == ["-m"]:
        module = words[2].partition(".")[0]
        yield [module, *words[3:]]
    else:
        yield [program, *words[1:]]
