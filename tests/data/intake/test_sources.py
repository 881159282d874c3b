"""Tables, folders and data sets give the same rows, from any row on and in any number of shards."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from user_rows import encoded, only, pets, picture, row_data, row_params, write_csv, write_jsonl

from danceflow.data.intake.sources import RowSource, open_source
from danceflow.errors import DataError
from danceflow.params.read import parse_params
from danceflow.params.sections import InputParams

COUNT = 150


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    data = encoded(picture(0))
    return [
        {"id": f"pet-{n}", "kind": "make", "text": f"a pet {n}", "before": None, "after": data}
        for n in range(COUNT)
    ]


def saved(root: Path, kind: str, rows: list[dict]) -> RowSource:
    """The rows as a source of some kind."""
    from datasets import Dataset, Features, Image, Value

    names = {**dict.fromkeys(("id", "kind", "text"), Value("string"))}
    features = Features({**names, "before": Image(), "after": Image()})
    by_path = [row | {"before": "", "after": "x.png"} for row in rows]
    if kind == "csv":
        write_csv(root / "t.csv", by_path)
    elif kind == "jsonl":
        write_jsonl(root / "t.jsonl", by_path)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), root / "t.parquet", row_group_size=40)
    elif kind == "folder":
        write_csv(root / "t.folder" / "metadata.csv", by_path)
    elif kind == "saved":
        Dataset.from_list(rows, features=features).save_to_disk(str(root / "t.saved"))
    else:
        for part in range(3):
            table = Dataset.from_list(rows[part * 50 : part * 50 + 50], features=features)
            (root / "t.files").mkdir(exist_ok=True)
            table.to_parquet(str(root / "t.files" / f"train-{part}.parquet"))
    name = {"folder": "folder", "saved": "dataset", "files": "dataset"}.get(kind, "table")
    return open_source(name, row_params(path=f"t.{kind}").data.input, root)


KINDS = ["csv", "jsonl", "parquet", "folder", "saved", "files"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_comes_once_in_any_number_of_shards(tmp_path: Path, rows, kind: str) -> None:
    source = saved(tmp_path, kind, rows)
    assert set(source.columns()) == set(rows[0])
    whole = list(source.records(0, 1, 0))
    assert [record.cells["id"] for record in whole] == [row["id"] for row in rows]
    assert [record.number for record in whole] == list(range(COUNT))
    assert not any(record.fault for record in whole)
    for num_shards in (2, 3):
        shards = [list(source.records(shard, num_shards, 0)) for shard in range(num_shards)]
        parts = [record for part in shards for record in part]
        assert sorted(record.cells["id"] for record in parts) == sorted(row["id"] for row in rows)
        assert len({record.number for record in parts}) == COUNT
        for shard, part in enumerate(shards):
            rest = source.records(shard, num_shards, 30)
            assert [(r.number, r.cells["id"]) for r in rest] == [
                (r.number, r.cells["id"]) for r in part[30:]
            ]
    late = list(source.records(0, 1, 130))
    assert [record.cells["id"] for record in late] == [row["id"] for row in rows[130:]]
    assert [record.place for record in late] == [record.place for record in whole[130:]]
    assert str(late[0].place).endswith("row 131")


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved"])
def test_the_fingerprint_follows_the_content(tmp_path: Path, rows, kind: str) -> None:
    (tmp_path / "other").mkdir()
    one, again = saved(tmp_path, kind, rows), saved(tmp_path, kind, rows)
    other = saved(tmp_path / "other", kind, rows[:-1])
    assert (
        again.fingerprint()
        == open_source(
            "dataset" if kind == "saved" else "table",
            row_params(path=f"t.{kind}").data.input,
            tmp_path,
        ).fingerprint()
    )
    assert one.fingerprint() != other.fingerprint()


def test_lines_that_are_no_rows_are_faults_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "id,kind,text,before,after\n1,make,a,,x.png\n2,make\n\n3,m,b,,y,z\n"
    )
    source = open_source("table", row_params(path="t.csv").data.input, tmp_path)
    found = [(r.place, r.fault) for r in source.records(0, 1, 0)]
    assert found == [
        ("t.csv: row 1", None),
        ("t.csv: row 2", "has 2 fields, the first line has 5"),
        ("t.csv: row 3", "has 6 fields, the first line has 5"),
    ]
    row = json.dumps(dict.fromkeys(("id", "kind", "text", "before", "after"), "x"))
    (tmp_path / "t.jsonl").write_text(f"{row}\n{{broken\n[1]\n{row}\n")
    source = open_source("table", row_params(path="t.jsonl").data.input, tmp_path)
    faults = [record.fault for record in source.records(0, 1, 0)]
    assert faults == [None, "is no JSON object", "is no JSON object", None]


def test_a_table_of_excel_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = 'id,kind,text,before,after\n1,make,"a cat,\nsleeping",,x.png\n'
    (tmp_path / "t.csv").write_text(text, encoding="utf-8-sig")
    source = open_source("table", row_params(path="t.csv").data.input, tmp_path)
    assert next(source.records(0, 1, 0)).cells["text"] == "a cat,\nsleeping"


@pytest.mark.parametrize(
    ("kind", "path", "content", "words"),
    [
        ("table", "t.csv", None, "there is no such table"),
        ("table", "t.xlsx", b"x", r"should end in \.csv, \.jsonl, \.parquet"),
        ("table", "t.csv", b"id,id\n", "should name the columns, each once"),
        ("table", "t.csv", b"", "should name the columns"),
        ("table", "t.csv", b"id,text\n1,2\n", r"lacks the columns for task \(kind\).*it has id"),
        ("table", "t.jsonl", b"", "holds no row that is a JSON object"),
        ("table", "t.parquet", b"PAR1 no", "is no readable parquet file"),
        ("folder", "t.csv", b"x", "there is no such folder"),
        ("folder", ".", None, r"holds no table of its images \(metadata\.csv"),
    ],
)
def test_a_source_that_cannot_be_read_is_told(
    tmp_path: Path, kind: str, path: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_source(kind, row_params(kind, path=path).data.input, tmp_path)


def test_a_data_set_that_is_nowhere_is_told(tmp_path: Path, monkeypatch) -> None:
    import datasets

    def offline(*_args, **_options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    config = row_params("dataset", path="nobody/nothing").data.input
    with pytest.raises(DataError, match="nobody/nothing: cannot be opened as a data set"):
        open_source("dataset", config, tmp_path)


def test_a_data_set_is_streamed_by_its_name(tmp_path: Path, rows, monkeypatch) -> None:
    import datasets

    saved(tmp_path, "files", rows)
    real, asked = datasets.load_dataset, []

    def hub(name, config=None, **options):
        asked.append((name, config, options))
        return real(str(tmp_path / "t.files"), split="train", streaming=options["streaming"])

    monkeypatch.setattr(datasets, "load_dataset", hub)
    named = {"path": "somebody/pets", "config": "small", "revision": "v1", "subset": "clean"}
    source = open_source("dataset", row_params("dataset", **named).data.input, tmp_path)
    options = {"split": "clean", "revision": "v1", "streaming": True}
    assert asked == [("somebody/pets", "small", options)]
    assert isinstance(source.stream, datasets.IterableDataset)
    assert set(source.columns()) == set(rows[0])
    for num_shards in (1, 2, 3):
        parts = [list(source.records(shard, num_shards, 0)) for shard in range(num_shards)]
        records = [record for part in parts for record in part]
        assert sorted(r.cells["id"] for r in records) == sorted(row["id"] for row in rows)
        assert len({record.number for record in records}) == COUNT
        assert all(r.cells["after"]["bytes"] == rows[0]["after"] for r in records)
        assert {len(part) for part in parts} == {COUNT // num_shards}
        late = list(source.records(num_shards - 1, num_shards, 20))
        assert [r.number for r in late] == [r.number for r in parts[-1][20:]]
    assert late[0].place == "somebody/pets, part 2: row 21"
    fingerprint = source.fingerprint()
    for change in ({"path": "somebody/cats"}, {"config": "large"}, {"revision": "v2"}):
        other = row_params("dataset", **(named | change)).data.input
        assert open_source("dataset", other, tmp_path).fingerprint() != fingerprint
    usual = row_params("dataset", path="somebody/pets").data.input
    open_source("dataset", usual, tmp_path)
    assert asked[-1] == ("somebody/pets", None, options | {"split": "train", "revision": None})


def test_presets_name_the_columns_of_released_data(tmp_path: Path) -> None:
    rows = pets(tmp_path, 2)
    released = [
        {
            "uid": row["id"],
            "task": "edit",
            "raw_task": "subject-add",
            "prompt": row["text"],
            "source_image": row["before"],
            "target_image": row["after"],
        }
        for row in rows
    ]
    write_csv(tmp_path / "t.csv", released)
    config = row_params(path="t.csv", columns="danceopd").data.input
    assert list(open_source("table", config, tmp_path).columns()) == list(released[0])
    omniedit = row_params("dataset", columns="omniedit").data.input
    assert omniedit.columns["prompt"] == "edited_prompt_list"


def edits(path: str, source: str = "table", **columns: str) -> InputParams:
    """A table of the columns text, before and after, all of one bucket."""
    columns = {"prompt": "text", "source": "before", "target": "after", **columns}
    data = only("local_edit", row_data(source, path=path, columns=columns))
    return parse_params(data, "test").data.input


@pytest.mark.parametrize(
    "first", ["", "[1]\n", "{broken\n", "{}\n", '{"text": "a", "after": "x"}\n']
)
def test_json_lines_need_not_all_have_every_column(tmp_path: Path, first: str) -> None:
    """A row without a key has nothing there; what no row has is still told."""
    edit = json.dumps({"text": "edit", "before": "2.png", "after": "3.png"})
    (tmp_path / "f.jsonl").write_text(f"{first}{edit}\n")
    source = open_source("table", edits("f.jsonl"), tmp_path)
    assert set(source.columns()) == {"text", "before", "after"}
    records = list(source.records(0, 1, 0))
    assert [record.cells.get("before") for record in records][-1] == "2.png"
    assert all("before" not in record.cells for record in records[:-1])
    config = edits("f.jsonl", category="sort")
    with pytest.raises(DataError, match=r"lacks the columns for category \(sort\); it has .*text"):
        open_source("table", config, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1252", r"line 2 is not UTF-8 but seems to be cp1252"),
        ("cp1250", r"line 2 is not UTF-8 but seems to be cp1252"),
        ("cp932", r"line 2 is not UTF-8 but of another encoding"),
        ("utf-16", r"is encoded in UTF-16"),
        ("utf-16-le", r"is encoded in UTF-16-LE"),
        ("utf-16-be", r"is encoded in UTF-16-BE"),
        ("utf-32", r"is encoded in UTF-32"),
    ],
)
def test_a_table_in_another_encoding_is_told_with_its_name(
    tmp_path: Path, kind: str, encoding: str, words: str
) -> None:
    caption = "猫、犬" if encoding == "cp932" else "un café"
    table = {
        "csv": f"text,before,after\r\n{caption},,a.png\r\n",
        "jsonl": '{"text": "a", "before": null, "after": "a.png"}\n'
        f'{{"text": "{caption}", "after": "a.png"}}\n',
    }
    path = tmp_path / f"t.{kind}"
    path.write_bytes(table[kind].encode(encoding))
    with pytest.raises(DataError, match=rf"t\.{kind}: {words}.*; save it as UTF-8") as error:
        open_source("table", edits(path.name), tmp_path)
    assert error.value.exit_code == 2
    path.write_bytes(table[kind].encode("utf-8-sig"))
    source = open_source("table", edits(path.name), tmp_path)
    assert [record.fault for record in source.records(0, 1, 0)][-1] is None


def test_a_header_that_is_data_is_told_in_short(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{'iVBORw0KGgo' * 50_000},b\n1,2\n")
    with pytest.raises(DataError, match=r"it has iVBOR.*\(550003 characters\)") as error:
        open_source("table", edits("t.csv"), tmp_path)
    assert len(str(error.value)) < 1000


def damage(path: Path, how: str) -> None:
    """Damages a file as disks and broken copies do."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[len(content) // 2 :]
    elif how == "empty":
        content.clear()
    elif how == "pages":
        content[4:400] = b"\xff" * 396
    else:  # a letter of a text
        place = content.index(b"pet-")
        content[place : place + 1] = b"\xff"
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "empty", "pages", "letter"])
@pytest.mark.parametrize("kind", ["parquet", "files", "saved"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_damaged_files_are_named(
    tmp_path: Path, rows, kind: str, how: str, num_shards: int
) -> None:
    """Whatever the library raises, and where: one error with exit code 2 that names the file."""
    saved(tmp_path, kind, rows)
    names = {"parquet": "t.parquet", "files": "t.files/train-1.parquet"}
    name = names.get(kind, "t.saved/data-00000-of-00001.arrow")
    damage(tmp_path / name, how)
    config = row_params(path=f"t.{kind}").data.input
    with pytest.raises(DataError) as error:
        source = open_source("table" if kind == "parquet" else "dataset", config, tmp_path)
        for shard in range(num_shards):
            list(source.records(shard, num_shards, 0))
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_data_set_of_text_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_bytes(
        '{"text": "café", "before": "a.png", "after": "b.png"}\n'.encode("cp1252")
    )
    with pytest.raises(DataError, match=r"texts/a\.jsonl: line 1 is not UTF-8 but .*cp1252"):
        list(open_source("dataset", edits("texts", "dataset"), tmp_path).records(0, 1, 0))


def test_the_fingerprint_is_of_content_not_of_sizes_and_times(tmp_path: Path, rows) -> None:
    import os

    source = saved(tmp_path, "saved", rows)
    before = source.fingerprint()
    path = tmp_path / "t.saved" / "data-00000-of-00001.arrow"
    facts = path.stat()
    path.write_bytes(path.read_bytes().replace(b"a pet 7", b"a cat 7"))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    config = row_params("dataset", path="t.saved").data.input
    changed = open_source("dataset", config, tmp_path).fingerprint()
    assert changed != before
    os.utime(path)
    assert open_source("dataset", config, tmp_path).fingerprint() == changed
