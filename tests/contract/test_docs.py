"""What people read: lines of bounded width, cells and sentences that say little, one heading."""

import datetime
import json
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from repository import ROOT

from danceflow.params.read import load_params

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
MOST_OF_A_CELL, MOST_LINKS, MOST_NUMBERS = 120, 2, 2
NUMBER = re.compile(r"(?<![\w.`/-])\d(?:[\d,.:]*\d)?(?![\w.]*\w)")
_AMOUNT = r"[-+]?\.?\d(?:[\d,.:]*\d)?(?: ?(?:%|[a-zA-Z]+))?"
PAIR = re.compile(
    rf"(?<![\w.`/-])(?:{_AMOUNT} (?:to|±|of|x) |{_AMOUNT} \((?=\S+ to )"
    rf"|(?<=between ){_AMOUNT} and )(?=\.?\d)"
)
"""A span, a share, a size, or a value with its interval: what stands before the second number."""
NAMED = re.compile(
    r"\b(?:CUDA|Python|torch|Qwen-Image|SD3\.5|commit|decision) \w[\w.]*|\d{4}-\d\d-\d\d"
    r"|\((?:2509|2511|,| )+\)|Beta\([\d, ]+\)"
)
"""Numbers that are part of a name."""


def sentences(page: Path) -> Iterator[str]:
    """The sentences of a page, without its code, tables and the addresses of links."""
    text = re.sub(r"(?ms)^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"))
    text = re.sub(r"(?m)^(\||#).*$", "", text)
    text = re.sub(r"`[^`]*`", "`code`", re.sub(r"\]\([^)]*\)", "]", text))
    for paragraph in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", text):
        words = re.sub(r"^\s*\d+\. ", "", " ".join(paragraph.split()))
        if not paragraph.startswith("    "):  # what is indented so far is a formula
            yield from re.split(r"(?<=[.!?])\**\s+(?=[A-Z*`\[\d])", words)


def numbers(sentence: str) -> int:
    """How many things a sentence counts; a pair such as "from 5 to 7" is one."""
    return len(NUMBER.findall(PAIR.sub("", NAMED.sub("", sentence))))


def test_a_pair_is_one_number_and_a_name_none() -> None:
    for sentence, count in (
        ("It rose from 5 to 7 % in 30 s.", 2),
        ("A value of 7.1 ± 5.7 %.", 1),
        ("A share of 3 of 10, at 32 x 32 pixels.", 2),
        ("They lie between 8 % and 25 %.", 1),
        ("nf4 and int8 save 3.3 and 2.1 GB.", 2),
        ("It takes 3.3, 2.1 and 1.5 GB.", 3),
        ("95 % (91 to 99)", 1),
        ("95 % (reworded 91 %)", 2),
        ("SD3.5 on torch 2.11.0 with CUDA 13, in Python 3.11, at 512 pixels on 2026-11-27.", 1),
    ):
        assert numbers(sentence) == count, sentence


@pytest.mark.parametrize("page", DENSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_cell_and_a_sentence_say_little(page: Path) -> None:
    """A cell is a fact, and a sentence no table."""
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("|")]
    for cell in (cell.strip() for row in rows for cell in row.strip("|").split("|")):
        shown = re.sub(r"`[^`]*`", "`code`", re.sub(r"\]\([^)]*\)", "]", cell))
        assert cell.count("](") <= MOST_LINKS, cell
        assert len(re.sub(r"\]\([^)]*\)", "]", cell)) <= MOST_OF_A_CELL, cell
        assert numbers(shown) <= 1, cell
    for sentence in sentences(page):
        assert numbers(sentence) <= MOST_NUMBERS, sentence


@pytest.mark.parametrize(
    "page",
    [page for page in WRITTEN if "results" in page.parts],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_page_of_results_claims_something_and_has_its_evidence(page: Path) -> None:
    """The claim is bold and a few words; the evidence is a table, made by a command or a sweep."""
    text = page.read_text(encoding="utf-8")
    claims = [words for words in re.findall(r"\*\*([^*]+)\*\*", text) if len(words.split()) >= 3]
    assert claims
    assert re.search(r"(?m)^\|(?:-+:?\|)+$", text)
    assert re.search(r"danceflow |benchmarks/|sweeps/|\]\([\w/-]+\.md", text)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_one_heading_of_the_first_rank(page: Path) -> None:
    assert sum(line.startswith("# ") for line in prose(page)) == 1


def test_a_heading_of_the_log_is_a_dated_finding_and_the_newest_is_first() -> None:
    """What was found, in a few words: neither a question, nor that something was found."""
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "log.md").read_text("utf-8"), re.MULTILINE)
    dates = []
    for heading in headings:
        date, _, finding = heading.partition(": ")
        dates.append(datetime.date.fromisoformat(date))
        assert 4 <= len(finding.split()) <= 18, heading
        assert not re.match(r"(?:why|how|which)\b", finding), heading
        assert not re.search(r"(?:found|showed|[.?!:])$", finding), heading
    assert dates == sorted(dates, reverse=True)
    assert len(set(headings)) == len(headings)


def test_readme_is_one_screen() -> None:
    """What, for whom, one picture, two commands, three doors, and what it cannot do yet."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    assert text.count("![") == 1
    ranks = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert ranks == ["Two commands", "Three doors, one result", "What it cannot do yet"]
    for file in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / file).exists(), file


def test_the_default_run_is_told_the_same_everywhere() -> None:
    """Its scores are those of the committed metrics, its updates those of the parameters."""
    metrics = json.loads((ROOT / "reports" / "metrics.json").read_text(encoding="utf-8"))
    told = {
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "docs/results/README.md", "docs/howto/compare-runs.md")
    }
    shown = []
    for capability, name in (
        ("t2i", "text-to-image"),
        ("local_edit", "local edit"),
        ("global_edit", "global edit"),
    ):
        score, kept = (metrics[key][capability] for key in ("score", "retention"))
        exact = f"{score:.3f}" if capability == "t2i" else f"{score:.2f}"
        coarse = f"{score:.2f}".lstrip("0") if capability == "t2i" else f"{score:.1f}"
        first = rf"(?m)^\| {name}, 0 to \d+ \| {exact} \| .* \| {kept:.0%}".replace("%", " %")
        second = rf"(?m)^\| {name}, of \d+ \| {coarse} \| .* \| {kept:.0%} \|".replace("%", " %")
        assert re.search(first, told["README.md"]), first
        assert re.search(second, told["docs/results/README.md"]), second
        shown.append(rf"{exact} +{kept:.0%}")
    row = rf"(?m)^main +{' +'.join(shown)} +{metrics['verdict']} +{metrics['field_evaluations']:,} "
    assert re.search(row, told["docs/howto/compare-runs.md"]), row
    updates = load_params(ROOT / "params.yaml").distill.num_updates
    notebook = (ROOT / "notebooks" / "tour.ipynb").read_text(encoding="utf-8")
    assert f"the default run makes {updates:,}." in notebook


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
