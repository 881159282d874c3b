"""Look-up by name with an error that names the nearest known name."""

from collections.abc import Mapping
from typing import TypeVar

from danceflow.errors import unknown_name

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return the table's entry of that name.

    Args:
        table: known entries by name.
        name: the name asked for.
        kind: what the table holds, in the singular, for the message ("query").

    Raises:
        ValueError: the name is unknown; the message names the nearest one and lists all.
    """
    if name not in table:
        raise ValueError(unknown_name(kind, name, table))
    return table[name]
