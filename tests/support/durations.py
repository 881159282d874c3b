"""How long tests took when they were last recorded: what is quick, and which file begins first.

``make test ARGS=--record-durations`` writes ``tests/durations.json``, on an idle machine.
"""

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import pytest
from repository import ROOT

RECORD = ROOT / "tests" / "durations.json"
FILES, CASES = "files", "cases"
LEAST = {FILES: 1.0, CASES: 0.05}  # seconds; what took less is not worth a line
QUICK = 0.2
"""Seconds of a case, without its fixtures, from which on ``--quick`` leaves a test out."""


@functools.cache
def recorded(record: Path = RECORD) -> dict[str, dict[str, float]]:
    """Return the seconds of whole files, and those of one case of a test."""
    kinds: dict[str, dict[str, float]] = json.loads(record.read_text(encoding="utf-8"))
    return kinds


def test_of(nodeid: str) -> str:
    """Return the name of a test without its case."""
    return nodeid.partition("[")[0]


def file_of(nodeid: str) -> str:
    """Return the file of a test, from the repository's root."""
    return nodeid.partition("::")[0]


def is_quick(nodeid: str) -> bool:
    """Return whether a test is known to be short, or not known at all."""
    return recorded()[CASES].get(test_of(nodeid), 0.0) < QUICK


def of_files(files: Iterable[str]) -> float:
    """Return the seconds that files take together, those of a new one being 0."""
    return sum(recorded()[FILES].get(file, 0.0) for file in files)


class Recorder:
    """A pytest plugin that sums what a run's tests take and writes it at the end.

    Seconds are those of the clock, so that waiting counts, too. Files that did not run keep theirs.
    """

    def __init__(self, record: Path = RECORD) -> None:
        self._record = record
        self._files: Counter[str] = Counter()
        self._cases: defaultdict[str, list[float]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._files[file_of(report.nodeid)] += report.duration
        if report.when == "call":
            self._cases[test_of(report.nodeid)].append(report.duration)

    def pytest_sessionfinish(self) -> None:
        cases = {name: mean(seconds) for name, seconds in self._cases.items()}
        new = {FILES: dict(self._files), CASES: cases}
        kinds = {kind: self._merged(kind, new[kind]) for kind in (FILES, CASES)}
        self._record.write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")

    def _merged(self, kind: str, new: dict[str, float]) -> dict[str, float]:
        """Return the seconds of a kind, sorted by name."""
        kept = {
            name: seconds
            for name, seconds in recorded(self._record)[kind].items()
            if file_of(name) not in self._files and (ROOT / file_of(name)).is_file()
        }
        long = {name: round(took, 2) for name, took in new.items() if took >= LEAST[kind]}
        return dict(sorted((kept | long).items()))
