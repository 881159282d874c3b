"""Tables, folders and data sets give the same rows, from any row on and in any number of shards."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from user_rows import encoded, pets, picture, row_params, write_csv, write_jsonl

from danceflow.data.sources import Source, open_source
from danceflow.errors import DataError

COUNT = 150


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    data = encoded(picture(0))
    return [
        {"id": f"pet-{n}", "kind": "make", "text": f"a pet {n}", "before": None, "after": data}
        for n in range(COUNT)
    ]


def saved(root: Path, kind: str, rows: list[dict]) -> Source:
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
        ("table", "t.jsonl", b"", "row 1 is no JSON object"),
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
    assert open_source("table", config, tmp_path).columns() == list(released[0])
    omniedit = row_params("dataset", columns="omniedit").data.input
    assert omniedit.columns["prompt"] == "edited_prompt_list"
