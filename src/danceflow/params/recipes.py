"""The recipes of a checkout, as their headers tell of them."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

# From its name to the next name, an empty line or an indented one.
_PARAGRAPH = re.compile(
    r"^(?P<name>Purpose|Hardware|Expected)(?:, `[^`]*`)?[^:\n]*: "
    r"(?P<text>.*(?:\n(?!\s|[A-Z]\w+: |Expected, ).+)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Recipe:
    """A complete params file with a header.

    Attributes:
        path: of the file.
        title: its first line.
        purpose: what it is for.
        hardware: what it needs.
        expected: time and memory.
    """

    path: Path
    title: str
    purpose: str
    hardware: str
    expected: str


def recipes_below(folder: Path) -> list[Recipe]:
    """Return the recipes of a folder and of those below it, by name; those on top come first."""
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return [read_recipe(path) for path in paths]


def read_recipe(path: Path) -> Recipe:
    """Return what a recipe's header says; a paragraph that it lacks is empty.

    Args:
        path: a params file whose comment at the top has paragraphs that begin with ``Purpose:``,
            ``Hardware:`` and ``Expected``; each ends where another begins, a command stands
            (indented) or an empty line.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(
        line.removeprefix("#").removeprefix(" ")
        for line in itertools.takewhile(lambda line: line.startswith("#"), lines)
    )
    title, _, rest = header.partition("\n\n")
    parts = {match["name"]: _line(match["text"]) for match in _PARAGRAPH.finditer(rest)}
    purpose, hardware, expected = (
        parts.get(name, "") for name in ("Purpose", "Hardware", "Expected")
    )
    return Recipe(path, _line(title), purpose, hardware, expected)


def _line(text: str) -> str:
    return " ".join(text.split())
