"""Whatever a row holds, it is a row, a bad row or left out; it never ends the stage."""

import base64
import csv
import json
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from user_rows import encoded, picture, row_data

from danceflow.data.buckets import read_bucket
from danceflow.data.intake.write import QUARANTINE
from danceflow.errors import DanceflowError
from danceflow.params.read import parse_params
from danceflow.paths import Paths
from danceflow.pictures import MAX_BYTES
from danceflow.worlds import prepare
from danceflow.worlds.world import open_world

SPLITS = ("train", "validation", "test")
COLUMNS = {
    "uid": "id",
    "task": "kind",
    "category": "sort",
    "prompt": "text",
    "source": "before",
    "target": "after",
    "split": "part",
    "variant": "version",
    "score": "mark",
    "spec": "facts",
}
SECRET = "outside.png"


def good_rows(folder: Path) -> list[dict[str, Any]]:
    """One row of each bucket and split, their pictures written to ``folder``."""
    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, (bucket, part) in enumerate(
        (b, s) for b in ("make", "object swap") for s in SPLITS
    ):
        names = {"before": f"images/{number}.png", "after": f"images/{number}-after.png"}
        for seed, name in enumerate(names.values()):
            picture(10 * number + seed).save(folder / name)
        if bucket == "make":
            names["before"] = ""
        row = {"id": f"good-{number}", "kind": bucket, "text": f"pet {number}", **names}
        rows.append(row | {"part": part, "mark": 9})
    return rows


def spoil(folder: Path) -> None:
    """Lay out what a picture's path should not lead to."""
    picture(99).save(folder.parent / SECRET)
    (folder / "link.png").symlink_to(f"../{SECRET}")
    (folder / "up").symlink_to("..")
    (folder / "round.png").symlink_to("round.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    os.mknod(folder / "socket.png", stat.S_IFSOCK | 0o600)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    with (folder / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)


def run(root: Path, lines: list[bytes]) -> Paths:
    """Prepare the lines as they stand in a JSON lines table, whose folder may be there."""
    folder = root / "raw"
    folder.mkdir(exist_ok=True)
    (folder / "t.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    data = row_data(path="raw/t.jsonl", columns=COLUMNS, min_score=5.0, max_bad=0.999)
    for bucket in data["data"]["buckets"]:
        data["data"]["buckets"][bucket] = {f"num_{name}": 50 for name in SPLITS}
    paths = Paths(root)
    prepare.run(parse_params(data, "test"), paths)
    return paths


def names(paths: Paths) -> set[str]:
    folders = [paths.bucket(bucket) for bucket in ("t2i", "local_edit")]
    return {uid for f in folders for split in SPLITS for uid in read_bucket(f, split)["uid"]}


def nested(depth: int, content: str = "1") -> str:
    return "[" * depth + content + "]" * depth


PICTURE = base64.b64encode(encoded(picture(3, (64, 64)))).decode()
HALF = "\ud800"
NUMBERS = [5, 1.5, -(10**30), True, False, float("nan"), float("inf"), 1e999]
CELLS = [
    *[("after", cell) for cell in ("", None, *NUMBERS, [], ["images/0.png"], {}, {"path": 3})],
    *[
        ("after", {"path": name})
        for name in ("pipe.png", f"../{SECRET}", "a\0b", HALF, "/dev/zero")
    ],
    *[("after", name) for name in (".", "images", "link.png", f"up/{SECRET}", f"../{SECRET}")],
    *[
        ("after", name)
        for name in ("/dev/zero", "/etc/hostname", "~/x.png", "file:///etc/hostname")
    ],
    *[("after", name) for name in ("zero.png", "pipe.png", "socket.png", "round.png", "huge.png")],
    *[
        ("after", name)
        for name in ("empty.png", "text.png", "a\0b.png", f"{HALF}.png", "\udcff.png")
    ],
    *[
        ("after", name)
        for name in ("a" * 300, "a/" * 3000, PICTURE, f"data:image/png;base64,{PICTURE}")
    ],
    *[
        ("before", cell)
        for cell in (5, float("nan"), [5], "pipe.png", f"../{SECRET}", "a\0b", PICTURE)
    ],
    *[
        ("text", cell)
        for cell in ("", " \n", None, *NUMBERS, {}, {"a": "b"}, "a\0b", HALF, f"a{HALF}")
    ],
    *[("text", cell) for cell in ([], [None], [""], [1], ["a", 1], ["a", HALF], [["a"]], ["a\0"])],
    *[("id", cell) for cell in ("\0", HALF, float("nan"), float("-inf"), True, [], {}, ["a"])],
    *[("kind", cell) for cell in ("", None, "\0", HALF, float("nan"), True, [], {}, ["make"])],
    *[("sort", cell) for cell in ("\0", f"x{HALF}", float("nan"), False, [], {})],
    *[("version", cell) for cell in ("\0", HALF, float("inf"), True, [], {})],
    *[("part", cell) for cell in ("", None, "some", PICTURE, HALF, 3, float("nan"), True, [], {})],
    *[
        ("mark", cell)
        for cell in ("", None, "good", "nan", "1e999", PICTURE, float("nan"), True, [])
    ],
    *[
        ("facts", cell)
        for cell in ("[1]", "3", "null", "{", '{"a": NaN}', '{"a": 1e999}', {}, [], 5)
    ],
    *[("facts", cell) for cell in ('{"a": "\\ud800"}', '{"\\ud800": 1}', f'{{"a": {nested(60)}}}')],
    *[("facts", cell) for cell in (f'{{"a": {nested(100_000)}}}', '{"a": 1')],
]
LINES = [
    b"{broken", b"[1]", b"5", b"NaN", b"null", b'"text"', b'"\\ud800"', b"{} {}", b"\0", b"{",
    nested(100_000).encode(), b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"9" * 5000, b"{}",
    b'{"id": "x", "text": ' + nested(100_000).encode() + b"}", b'{"\\ud800": 1}', b'{"": ""}',
]  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, list[dict[str, str]]]:
    """All bad rows at once, one after the other among good ones, and the table of the bad."""
    root = tmp_path_factory.mktemp("bad")
    rows = good_rows(root / "raw")
    spoil(root / "raw")
    lines = [json.dumps(row).encode() for row in rows]
    for number, (column, cell) in enumerate(CELLS):
        row = rows[5 if column == "before" else 2] | {"id": f"bad-{number}", "text": f"{number}"}
        lines.append(json.dumps(row | {column: cell}).encode())
    paths = run(root, lines + LINES)
    with (paths.buckets / QUARANTINE).open(encoding="utf-8", newline="") as file:
        return paths, list(csv.DictReader(file))


def test_good_rows_beside_bad_ones_are_kept(report) -> None:
    paths, bad = report
    assert names(paths) == {f"good-{number}" for number in range(6)}
    assert len(bad) == len(CELLS) + len(LINES)
    counts = json.loads(paths.data_report.read_text())["rows"]
    assert (counts["bad"], counts["skipped"], counts["written"]) == (len(bad), 0, 6)


@pytest.mark.parametrize("number", range(len(CELLS)), ids=lambda n: f"{n}-{CELLS[n][0]}")
def test_each_bad_cell_is_told_with_its_row_and_column(report, number: int) -> None:
    bad = report[1][number]
    assert bad["place"] == f"t.jsonl: row {7 + number}"
    assert bad["field"] == CELLS[number][0]
    assert bad["reason"].isprintable()
    assert len(bad["reason"]) < 300
    if isinstance(CELLS[number][1], str) and len(CELLS[number][1]) > 5000:
        assert " characters)" in bad["reason"] or bad["field"] == "facts"


@pytest.mark.parametrize("number", range(len(LINES)))
def test_each_line_that_is_no_row_is_told(report, number: int) -> None:
    bad = report[1][len(CELLS) + number]
    assert bad["place"] == f"t.jsonl: row {7 + len(CELLS) + number}"
    assert len(bad["reason"]) < 300


TEXTS = st.text(max_size=20) | st.text(st.characters(categories=("Cs", "Cc", "Zs")), max_size=5)
PATHS = st.lists(
    st.sampled_from(["..", ".", "", "images", "up", "link.png", "pipe.png", "zero.png", "0.png"])
    | TEXTS,
    max_size=5,
).map("/".join)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | PATHS
CELL = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["make", "object swap", "other"])
ROW = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(COLUMNS.values(), CELL),
        "kind": KINDS | CELL,
        "text": TEXTS | CELL,
        "before": PATHS | CELL,
        "after": st.just("images/1-after.png") | PATHS | CELL,
        "part": st.sampled_from(SPLITS) | CELL,
        "mark": st.just(9) | CELL,
        "facts": CELL.map(json.dumps) | CELL,
    },
)
LINE = ROW.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=30)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lines=st.lists(LINE, min_size=1, max_size=12))
def test_any_rows_end_in_buckets_or_in_one_error(lines: list[bytes]) -> None:
    with TemporaryDirectory() as place:
        root = Path(place)
        rows = good_rows(root / "raw")
        spoil(root / "raw")
        told = ""
        try:
            paths = run(root, [json.dumps(row).encode() for row in rows] + lines)
        except DanceflowError as error:
            told = str(error)
        assert len(told) < 2000
        assert (root / "data").exists() == (not told)
        if told:
            return
        world = open_world("rows")
        for bucket in ("t2i", "local_edit"):
            for split in SPLITS:
                for row in read_bucket(paths.bucket(bucket), split):
                    assert world.sample(row).prompt.strip()
        (paths.buckets / QUARANTINE).read_text(encoding="utf-8")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=PATHS)
def test_no_path_reaches_what_lies_outside(name: str) -> None:
    from danceflow.data.intake.reader import BadRow, RowReader
    from danceflow.data.intake.sources import RawRecord

    with TemporaryDirectory() as place:
        folder = Path(place) / "raw"
        folder.mkdir()
        spoil(folder)
        columns = {"prompt": "text", "target": "after", "task": "kind"}
        data = parse_params(row_data(columns=columns), "test").data
        cells = {"text": "a pet", "kind": "make", "after": name}
        found = RowReader(data, folder).read(RawRecord("t: row 1", 0, cells))
        assert isinstance(found, BadRow)
        found.reason.encode()
