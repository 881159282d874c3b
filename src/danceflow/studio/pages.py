"""The templates, filled: every text in them is escaped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from danceflow import __version__
from danceflow.studio.models import Choice
from danceflow.studio.tree import Node

STATIC = Path(__file__).with_name("static")
_TEMPLATES = Path(__file__).with_name("templates")
_PIXELATED = 256
"""Pixels of the longer side up to which a picture is shown with its pixels as squares."""


class Pages:
    """The pages and their parts, as HTML."""

    def __init__(self) -> None:
        """Find the templates."""
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "percent": percent,
            "seconds": seconds,
            "pixelated": lambda node: max(node.width, node.height) <= _PIXELATED,
        }
        self._environment.globals["app_version"] = __version__

    def page(self, **shown: Any) -> str:
        """Return the whole page."""
        return self._render("page", **shown)

    def stage(self, node: Node, lineage: Sequence[Node]) -> str:
        """Return a picture with all that is known of it."""
        return self._render("stage", node=node, lineage=lineage)

    def empty(self, *, is_new: bool) -> str:
        """Return what stands in the middle while no picture is chosen."""
        return self._render("empty", is_new=is_new)

    def compare(self, **shown: Any) -> str:
        """Return two pictures over, beside and less each other."""
        return self._render("compare", **shown)

    def source(self, node: Node | None, *, oob: bool) -> str:
        """Return which picture is changed next."""
        return self._render("source", node=node, oob=oob)

    def tree(self, *, oob: bool = False, **shown: Any) -> str:
        """Return the tree."""
        return self._render("tree", oob=oob, **shown)

    def models(self, choices: Sequence[Choice], problem: str, *, full: bool) -> str:
        """Return the models of a list, under their groups in the order in which they come.

        Args:
            choices: the usual one first.
            problem: what is wrong with further ones; empty: nothing.
            full: whether the page's other list is to be renewed, too.
        """
        groups: dict[str, list[Choice]] = {}
        for choice in choices:
            groups.setdefault(choice.group, []).append(choice)
        return self._render("models", groups=groups, problem=problem, full=full)

    def usual(self, **shown: Any) -> str:
        """Return the fields that say what the usual model makes, to be put where they are."""
        return self._render("usual", oob=True, **shown)

    def further(self, **shown: Any) -> str:
        """Return fields for pictures beside the source."""
        return self._render("further", **shown)

    def queue(self, **shown: Any) -> str:
        """Return what people wait for."""
        return self._render("queue", **shown)

    def hints(self, **shown: Any) -> str:
        """Return what to write next, and what would not be read."""
        return self._render("hints", **shown)

    def history(self, **shown: Any) -> str:
        """Return prompts of before."""
        return self._render("history", **shown)

    def login(self, problem: str) -> str:
        """Return the page that asks for the token."""
        return self._render("login", problem=problem)

    def error(self, reason: str) -> str:
        """Return a page that says why there is no other."""
        return self._render("error", reason=reason)

    def _render(self, name: str, **shown: Any) -> str:
        return self._environment.get_template(f"{name}.html.j2").render(**shown)


def percent(share: float) -> str:
    """Return a share as people read it; 100 % is all of it, and 0 % nothing."""
    value = 100 * share
    if 0 < value < 1:
        return "under 1 %"
    if 99 < value < 100:
        return "over 99 %"
    return f"{value:.0f} %"


def seconds(value: float) -> str:
    """Return a time as people read it."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
