"""What people read: lines of bounded width, cells and sentences that say little, one heading."""

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
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


# The log and decisions tell how it was; a change log lists.
DENSE = [
    page
    for page in WRITTEN
    if page.name not in ("log.md", "CHANGELOG.md") and "decisions" not in page.parts
]
MOST_OF_A_CELL, MOST_LINKS, MOST_NUMBERS = 120, 3, 4
NUMBER = re.compile(r"(?<![\w.`/-])\d(?:[\d,.]*\d)?(?![\w.]*\w)")


def sentences(page: Path) -> Iterator[str]:
    """The sentences of a page, without its code, tables and the addresses of links."""
    text = re.sub(r"(?ms)^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^(\||#).*$", "", text)
    text = re.sub(r"`[^`]*`", "code", re.sub(r"\]\([^)]*\)", "]", text))
    for paragraph in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", text):
        yield from re.split(r"(?<=[.!?:;])\s+(?=[A-Z*])", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", DENSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_cell_and_a_sentence_say_little(page: Path) -> None:
    """A cell is a fact, and a sentence no table."""
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    for cell in (cell.strip() for row in rows for cell in row.strip("|").split("|")):
        assert cell.count("](") <= MOST_LINKS, cell
        assert len(re.sub(r"\]\([^)]*\)", "]", cell)) <= MOST_OF_A_CELL, cell
    for sentence in sentences(page):
        assert len(NUMBER.findall(sentence)) <= MOST_NUMBERS, sentence


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_heading_of_the_first_rank(page: Path) -> None:
    assert sum(line.startswith("# ") for line in prose(page)) == 1


def test_the_reference_says_since_when_parameters_are_there() -> None:
    """True of all while nothing else was released; a release must tell the newer ones apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = (ROOT / "docs" / "_site" / "reference.py").read_text(encoding="utf-8")
    assert f"All are there since version {project['version']}." in code
    released = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert released in (["Unreleased"], [project["version"]])


def test_every_page_is_in_the_navigation_or_named_beside_it() -> None:
    """What `mkdocs build --strict` says in `make check`, without a build."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    beside = re.search(r"not_in_nav: \|\n((?:  .*\n)+)", text)
    assert beside is not None
    for page in WRITTEN:
        if page.is_relative_to(ROOT / "docs"):
            name = page.relative_to(ROOT / "docs").as_posix()
            hidden = any(fnmatch(name, line.strip()) for line in beside[1].splitlines())
            assert hidden or re.search(rf"[:-] {re.escape(name)}$", text, re.MULTILINE), name
