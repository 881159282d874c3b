"""What people read: lines of bounded width, and one heading a file."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from repository import ROOT

MOST = 100
# `danceflow table` writes these; their widest lines are rows and the one below the heading.
MADE = {path.with_suffix(".md") for path in (ROOT / "docs" / "results").glob("*.csv")}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
WRITTEN = [
    page
    for page in PAGES
    if page not in MADE
    and "reference" not in page.parts
    and page != ROOT / "docs" / "decisions" / "index.md"
]


def prose(page: Path) -> Iterator[str]:
    """The lines of a page beside tables and blocks of code."""
    is_code = False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            is_code = not is_code
        elif not (is_code or line.startswith(("|", "    "))):
            yield line


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_wraps(page: Path) -> None:
    long = [line for line in prose(page) if len(line) > MOST and not re.match(r"!?\[.*\)$", line)]
    assert not long, long[0]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_heading_of_the_first_rank(page: Path) -> None:
    assert sum(line.startswith("# ") for line in prose(page)) == 1
