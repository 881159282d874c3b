"""Hostile files and rows through every stage that meets them, to the page and the tables.

None ends a stage, none is read or written outside of the source's folder, none runs in the report.
"""

import csv
import json
import os
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile import (
    CANARY,
    FORMULAS,
    SCRIPTS,
    HostileFile,
    hostile_files,
    hostile_tables,
    hostile_texts,
    row,
)
from params_files import dump_yaml
from sweep_cells import cell
from tiny_models import awake
from tiny_project import as_a_stage_runs, write_teachers
from training_record import write_metrics
from user_rows import only, picture, row_data, write_jsonl

from danceflow.data import cache
from danceflow.data.buckets import read_bucket
from danceflow.data.intake.write import QUARANTINE
from danceflow.errors import DanceflowError
from danceflow.evaluate import stage as evaluate
from danceflow.models.family import open_family
from danceflow.models.package import FROZEN_FOLDER, save_package
from danceflow.params.read import parse_params
from danceflow.params.sections import Params
from danceflow.paths import Paths
from danceflow.report import stage as report
from danceflow.report.tables.table import make_table
from danceflow.report.tables.text import csv_text, markdown
from danceflow.worlds import prepare

COLUMNS = {
    "uid": "id",
    "task": "kind",
    "category": "sort",
    "prompt": "text",
    "target": "after",
    "split": "part",
}
SPLITS = ("train", "validation", "test")
# By element, what a page that asks for nothing and runs nothing may have.
RUNS = {"script", "iframe", "object", "embed", "base", "link", "form", "input", "applet", "frame"}


def data_of(table: str) -> dict[str, Any]:
    data = only("t2i", row_data(path=f"data/raw/{table}", columns=COLUMNS, max_bad=0.999))
    data["data"]["buckets"] = {"t2i": {f"num_{split}": 500 for split in SPLITS}}
    data["evaluate"]["num_samples"] = 1
    return data


def params_of(table: str) -> Params:
    return parse_params(data_of(table), "test")


@dataclass(frozen=True)
class Hostile:
    """A project after its stages.

    Attributes:
        files: what rows named.
        texts: what rows said.
        bad: the table of bad rows.
        before: what lay beside the project's folder before, and its size.
    """

    params: Params
    paths: Paths
    files: list[HostileFile]
    texts: list[str]
    bad: list[dict[str, str]]
    before: dict[str, int]


def around(root: Path) -> dict[str, int]:
    """What lies beside a project, in the working folder and in the home."""
    places = [*root.parent.iterdir(), *Path.cwd().iterdir(), *Path.home().iterdir()]
    return {str(place): place.lstat().st_size for place in places if place.is_file()}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    """All stages of the small model on hostile rows among a few that are not."""
    root = tmp_path_factory.mktemp("hostile") / "project"
    params, paths = params_of("t.jsonl"), Paths(root)
    files, texts = hostile_files(paths.raw), hostile_texts()
    rows = [
        row(f"file-{n}", f"file {n}", file.name, part=SPLITS[n % 2]) for n, file in enumerate(files)
    ]
    for number, text in enumerate(texts):
        for place, cells in enumerate(({"text": text}, {"sort": text}, {"id": text})):
            name = f"text-{number}-{place}.png"
            picture(10_000 + 3 * number + place).save(paths.raw / name)
            said = {"part": "train" if place == 2 else "test", "sort": f"kind {number}", **cells}
            rows.append(row(f"text-{number}-{place}", "a red circle", name) | said)
    for number, split in enumerate(SPLITS * 2):
        picture(20_000 + number).save(paths.raw / f"good-{number}.png")
        rows.append(row(f"good-{number}", "a red circle", f"good-{number}.png", part=split))
    write_jsonl(paths.raw / "t.jsonl", rows)
    before = around(root)
    with as_a_stage_runs(params):
        prepare.run(params, paths)
        # The words of all texts are known, or they would be scored apart and be on no page.
        words = {word for text in texts for word in text.lower().split() if len(word) < 1000}
        write_teachers(params, paths, sorted(words))
        cache.run(params, paths, "t2i")
        family = open_family(params.family.name, paths.teachers / FROZEN_FOLDER)
        paths.student.mkdir(parents=True)
        meta = {"image_sizes": [[32, 32]], "num_steps": 2, "num_updates": 60}
        meta["field_evaluations"] = {"rollout": 400, "training": 180}
        save_package(paths.student, family, awake(family, 9), meta)
        write_metrics(paths.distill_metrics)
        evaluate.run(params, paths, "t2i")
        comments = "".join(f"# {script}\n" for script in SCRIPTS[:5])
        paths.params.write_text(comments + dump_yaml(data_of("t.jsonl")))
        report.run(params, paths)
    with (paths.buckets / QUARANTINE).open(encoding="utf-8", newline="") as file:
        bad = list(csv.DictReader(file))
    return Hostile(params, paths, files, texts, bad, before)


def test_there_are_enough(hostile: Hostile) -> None:
    assert len(hostile.files) + 3 * len(hostile.texts) + len(hostile_tables()) >= 300
    assert len({file.name for file in hostile.files}) == len(hostile.files)
    kinds = Counter(file.kind for file in hostile.files)
    assert len(kinds) == 12


def test_every_file_has_the_fate_that_it_should(hostile: Hostile) -> None:
    rows = {
        row["uid"] for split in SPLITS for row in read_bucket(hostile.paths.bucket("t2i"), split)
    }
    told = {row["place"]: row for row in hostile.bad}
    for number, file in enumerate(hostile.files):
        place = f"t.jsonl: row {number + 1}"
        is_taken = f"file-{number}" in rows
        assert is_taken or place in told or file.fate != "bad", file
        if file.fate != "either":
            assert is_taken == (file.fate == "taken"), (file, told.get(place))
        if place in told:
            assert told[place]["field"] in {"target", "after"}, told[place]
            assert told[place]["reason"].isprintable()
            assert len(told[place]["reason"]) < 300


def test_every_text_is_a_row_or_told(hostile: Hostile) -> None:
    found = [row for split in SPLITS for row in read_bucket(hostile.paths.bucket("t2i"), split)]
    texts = [row["prompt"] for row in found] + [row["category"] for row in found]
    for text in (*SCRIPTS, *FORMULAS):
        assert any(" ".join(text.split()) in " ".join(seen.split()) for seen in texts), text
    assert {"good-0", "good-1", "good-2"} <= {row["uid"] for row in found}


def test_nothing_outside_is_read_or_written(hostile: Hostile) -> None:
    canary = (hostile.paths.root / "data" / CANARY).read_bytes()
    assert canary
    wanted = picture(999, (24, 24)).tobytes()
    from danceflow.pictures import read_own

    for split in SPLITS:
        for found in read_bucket(hostile.paths.bucket("t2i"), split):
            image = read_own(found["target"]["bytes"]).resize((24, 24))
            assert image.tobytes() != wanted
    assert around(hostile.paths.root) == hostile.before
    made = {path.name for path in hostile.paths.root.rglob("*") if path.name == "pwned"}
    assert made == set()
    for path in hostile.paths.root.rglob("*"):
        if not path.is_relative_to(hostile.paths.raw):
            assert not path.is_symlink() or path.resolve().is_relative_to(hostile.paths.root)


class Page(HTMLParser):
    """Collects what could run, ask or lead away, and what is read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.runs: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs) -> None:
        found = dict(attrs)
        words = [(found.get(name) or "").strip().lower() for name in ("href", "src", "action")]
        if (
            tag in RUNS
            or any(name.startswith("on") or name in {"srcdoc", "http-equiv"} for name in found)
            or any(word and not word.startswith(("#", "data:image/png;base64,")) for word in words)
        ):
            self.runs.append((tag, found))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_nothing_runs_in_the_page(hostile: Hostile) -> None:
    text = hostile.paths.report_page.read_text(encoding="utf-8")
    page = Page(text)
    assert page.runs == []
    seen = " ".join("".join(page.words).split())
    for script in SCRIPTS:
        assert " ".join(script.split()) in seen
    for script in SCRIPTS[:6]:
        assert script not in text


def test_tables_of_bad_rows_reckon_nothing(hostile: Hostile) -> None:
    for bad in hostile.bad:
        for value in bad.values():
            assert not value.startswith(("=", "+", "-", "@", "\t", "\r", "|")), bad


def test_tables_of_sweeps_reckon_and_run_nothing() -> None:
    cells = [cell("=1+1", 0, 0.5, 1.0), cell("<b>", 1, 0.5, 1.0)]
    for item in cells:
        for text in (*FORMULAS, *SCRIPTS):
            name = text.replace("/", " ")
            item.scores[f"student/t2i/category/{name}"] = 0.5
    found = make_table("s", cells)
    for line in csv.reader(csv_text(found).splitlines()):
        for value in line[:6]:
            assert not value.startswith(("=", "+", "-", "@", "\t", "\r", "|")), line
    text = markdown(found)
    assert "<script" not in text
    assert "<img" not in text
    widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if "=1+1" in line}
    assert len(widths) <= 3  # a column for each name, whatever it holds


@pytest.mark.parametrize("name", hostile_tables())
def test_a_table_that_cannot_be_read_is_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path / "project")
    paths.raw.mkdir(parents=True)
    (paths.raw / name).write_bytes(hostile_tables()[name])
    with pytest.raises(DanceflowError) as caught:
        prepare.run(params_of(name), paths)
    text = str(caught.value)
    assert name in text or "data.input" in text
    assert len(text) < 1500
    assert not paths.buckets.exists()


def test_a_table_that_is_no_file_is_one_error(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "project")
    paths.raw.mkdir(parents=True)
    os.mkfifo(paths.raw / "pipe.csv")
    (paths.raw / "folder.csv").mkdir()
    (paths.raw / "loop.csv").symlink_to("loop.csv")
    (paths.raw / "zero.csv").symlink_to("/dev/zero")
    (paths.raw / "nowhere.csv").symlink_to("gone.csv")
    for name in ("pipe.csv", "folder.csv", "loop.csv", "zero.csv", "nowhere.csv", "gone.csv"):
        with pytest.raises(DanceflowError, match=name):
            prepare.run(params_of(name), paths)


def test_reports_of_bad_rows_are_data(hostile: Hostile) -> None:
    counts = json.loads(hostile.paths.data_report.read_text())
    assert counts["rows"]["bad"] == len(hostile.bad)
    assert counts["rows"]["written"] >= 6
