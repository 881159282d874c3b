"""What a parameter is in danceflow's own files: what is told to a file that lacks it.

Code takes no value from here. ``defaults.json`` beside this module is made from ``params.yaml`` and
``recipes`` by ``python -m danceflow.params.defaults``, in the checkout of danceflow itself.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from danceflow.params.meaning import ANY_NAME, parameter_names
from danceflow.params.yaml12 import read_value, read_yaml

DEFAULTS = Path(__file__).with_name("defaults.json")
# What a capability lacks is the default's number, of one that it does not have another one's.
_NUMBERS_BY_NAME = ("gate.min_retention", "evaluate.num_steps")
_PLAIN = re.compile(r"[A-Za-z][\w./+-]*")


def line_to_add(name: str) -> str | None:
    """Return the line of YAML that a file lacks, such as ``base: float``; None: it has no default.

    Args:
        name: dotted, of a parameter or a section; names that a file gives itself are any.
    """
    *above, last = name.split(".")
    for known, value in _defaults().items():
        if _is_called([*above, last], known):
            return f"{last}: {_text(value)}"
        if known in _NUMBERS_BY_NAME and _is_called(above, known):
            return f"{last}: {_text(value.get(last, next(iter(value.values()))))}"
    return None


def defaults_of(root: Path) -> dict[str, Any]:
    """Return the value of every parameter and section by its name: the first file's that has it.

    Args:
        root: of danceflow's checkout, with ``params.yaml`` and ``recipes``.
    """
    files = [root / "params.yaml", *sorted((root / "recipes").glob("*.yaml"))]
    contents = [read_yaml(file) for file in files]
    names: dict[str, None] = {}
    for name in parameter_names():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            if parts[depth - 1] != ANY_NAME or depth == len(parts):
                names.setdefault(".".join(parts[:depth]))
    found = {}
    for name in names:
        values = [value for data in contents for value in _held(data, name.split("."))]
        if values:
            found[name] = values[0]
    return found


def _is_called(parts: Sequence[str], known: str) -> bool:
    """Return whether a name is a known one; a free name is any."""
    wanted = known.split(".")
    return len(wanted) == len(parts) and all(
        one in (ANY_NAME, other) for one, other in zip(wanted, parts, strict=True)
    )


def _held(data: Any, parts: Sequence[str]) -> Iterator[Any]:
    """Yield what a file holds under a name, of every section whose name is free."""
    if not parts:
        yield data
    elif isinstance(data, dict):
        first, *rest = parts
        for value in data.values() if first == ANY_NAME else [data[first]] * (first in data):
            yield from _held(value, rest)


def _text(value: Any) -> str:
    """Return a value as it can be written on one line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and read_value(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


@functools.cache
def _defaults() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DEFAULTS.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    DEFAULTS.write_text(json.dumps(defaults_of(Path.cwd()), indent=1) + "\n", encoding="utf-8")
