"""What a user brings becomes buckets: checked, split without leaks, resumable, in flat memory."""

import csv
import hashlib
import json
import os
import tracemalloc
from concurrent.futures import Future
from pathlib import Path

import pytest
from user_rows import encoded, only, pets, picture, row_data, write_csv, write_jsonl

from danceflow.data.buckets import images_of, read_bucket, read_framing
from danceflow.data.intake import parts as ingest
from danceflow.data.intake.write import QUARANTINE
from danceflow.errors import ConfigError, DataError
from danceflow.ops import keys
from danceflow.params.read import parse_params
from danceflow.paths import Paths
from danceflow.worlds import prepare

COUNT = 120
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a table of pets, one of which has no picture."""
    root = tmp_path_factory.mktemp("raw")
    rows = pets(root / "data/raw/pets", COUNT)
    rows[7]["after"] = "nowhere.png"
    write_csv(root / "data/raw/pets/pets.csv", rows)
    return root


def sizes(data: dict, **numbers: int) -> dict:
    for bucket in data["data"]["buckets"]:
        data["data"]["buckets"][bucket] = {f"num_{name}": n for name, n in numbers.items()}
    return data


def prepared(root: Path, raw: Path, data: dict) -> Paths:
    data["data"]["input"]["path"] = str(raw / data["data"]["input"]["path"])
    paths = Paths(root)
    prepare.run(parse_params(data, "test"), paths)
    return paths


def whole(paths: Paths) -> dict:
    return {
        (bucket, split): read_bucket(paths.bucket(bucket), split)
        for bucket in ("t2i", "local_edit")
        for split in SPLITS
    }


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_rows_come_into_their_buckets(
    tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = prepared(tmp_path, raw, sizes(row_data(), train=90, validation=20, test=20))
    progress = capsys.readouterr().err
    assert f"rows: {COUNT}row" in progress
    assert "buckets: 100%|" in progress
    found = whole(paths)
    uids = [uid for dataset in found.values() for uid in dataset["uid"]]
    assert sorted(uids) == sorted(f"pet-{n}" for n in range(COUNT) if n != 7)
    edit = found["local_edit", "train"]
    number = int(edit["uid"][0].removeprefix("pet-"))
    assert edit["category"][0] == "object_swap"
    assert edit["prompt"][0] == f"swap pet {number}"
    source, target = (images_of(edit, [0], name) for name in ("source", "target"))
    assert source.shape == (1, 3, 32, 32)
    assert not source.equal(target)
    assert [cell is None for cell in found["t2i", "test"]["source"]].count(False) == 0
    report = json.loads(paths.data_report.read_text())
    assert report["rows"]["read"] == COUNT
    assert report["rows"]["bad"] == 1
    with (paths.buckets / QUARANTINE).open() as file:
        bad = list(csv.DictReader(file))
    assert [(row["place"], row["field"]) for row in bad] == [("pets.csv: row 8", "after")]
    assert "nowhere.png" in bad[0]["reason"]
    assert list(paths.scratch.rglob("*.parquet")) == []


def test_the_framing_of_the_pictures_stands_beside_them(tmp_path: Path, raw: Path) -> None:
    content = row_data(fit="pad", paper="#204060")
    paths = prepared(tmp_path, raw, sizes(content, train=30, validation=8, test=8))
    assert read_framing(paths.buckets) == {"fit": "pad", "paper": "#204060"}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, raw: Path) -> None:
    data = [sizes(row_data(), train=30, validation=8, test=8) for _ in range(2)]
    one, other = (prepared(tmp_path / str(n), raw, content) for n, content in enumerate(data))
    assert digests(one.root) == digests(other.root)
    report = json.loads(one.data_report.read_text())
    assert report["rows"]["spare"] > 0
    assert report["buckets"]["t2i"]["train"]["num_samples"] == 30


def test_a_row_of_edits_without_a_source_is_bad(tmp_path: Path, raw: Path) -> None:
    rows = pets(tmp_path / "x", 30)
    rows[3]["before"] = ""
    write_csv(tmp_path / "x/pets.csv", rows)
    data = sizes(row_data(path="x/pets.csv"), train=10, validation=10, test=10)
    paths = prepared(tmp_path, tmp_path, data)
    text = (paths.buckets / QUARANTINE).read_text()
    reason = "is empty, and other rows of bucket 'local_edit' have one"
    assert f'pets.csv: row 4,source,"{reason}"' in text


def test_too_many_bad_rows_stop_the_run(tmp_path: Path, raw: Path) -> None:
    former = tmp_path / "data/buckets/former"
    former.parent.mkdir(parents=True)
    former.write_text("whole")
    data = sizes(row_data(max_bad=0.001), train=90, validation=20, test=20)
    with pytest.raises(DataError, match=r"1 of 120 rows are bad.*row 8, after: nowhere") as error:
        prepared(tmp_path, raw, data)
    table = Path(str(error.value).rpartition(": ")[2])
    assert table.read_text().count("\n") == 2
    assert former.read_text() == "whole"


def test_a_split_without_rows_is_told(tmp_path: Path) -> None:
    rows = pets(tmp_path / "x", 4)
    write_csv(tmp_path / "x/pets.csv", rows)
    data = sizes(row_data(path="x/pets.csv"), train=90, validation=1, test=1)
    with pytest.raises(DataError, match=r"data\.buckets\.\w+: no row of the source is left for"):
        prepared(tmp_path, tmp_path, data)


def test_no_picture_stands_in_two_splits(tmp_path: Path) -> None:
    """Copy under other names, with other prompts, and targets that are another row's source."""
    folder = tmp_path / "x"
    rows = [row for row in pets(folder, 200) if row["before"]]
    for number, row in enumerate(rows):
        picture(5000 + number % 30).save(folder / row["before"])
        if number % 7 == 0:
            row["after"] = rows[(number + 3) % len(rows)]["before"]
    write_csv(folder / "pets.csv", rows)
    data = only("local_edit", row_data(path="x/pets.csv"))
    data = sizes(data, train=60, validation=30, test=30)
    paths = prepared(tmp_path, tmp_path, data)
    pictures: dict[str, set[bytes]] = {}
    for split in SPLITS:
        dataset = read_bucket(paths.bucket("local_edit"), split)
        pictures[split] = {
            images_of(dataset, [row], name).numpy().tobytes()
            for row in range(len(dataset))
            for name in ("source", "target")
        }
    assert not pictures["train"] & pictures["test"]
    assert not pictures["train"] & pictures["validation"]
    assert not pictures["validation"] & pictures["test"]
    assert json.loads(paths.data_report.read_text())["rows"]["in_two_splits"] > 0


def test_no_picture_stands_in_two_splits_of_different_buckets(tmp_path: Path) -> None:
    """What one capability trains to make, or changes, another one is tested with."""
    folder = tmp_path / "x"
    rows = [row | {"part": SPLITS[number // 2 % 3]} for number, row in enumerate(pets(folder, 60))]
    made, edited = rows[0], rows[5]  # of t2i/train and of local_edit/test
    picture(5).save(folder / "copy.bmp")
    made["after"] = "copy.bmp"
    changed, asked = rows[3], rows[4]  # of local_edit/validation and of t2i/test
    changed["after"] = asked["after"]
    write_csv(folder / "pets.csv", rows)
    data = row_data(path="x/pets.csv")
    data["data"]["input"]["columns"] |= {"split": "part"}
    paths = prepared(tmp_path, tmp_path, sizes(data, train=20, validation=20, test=20))
    found = {place: set(dataset["uid"]) for place, dataset in whole(paths).items()}
    assert set().union(*found.values()) == {row["id"] for row in rows} - {made["id"], changed["id"]}
    assert edited["id"] in found["local_edit", "test"]
    assert asked["id"] in found["t2i", "test"]
    counts = json.loads(paths.data_report.read_text())["rows"]
    assert (counts["in_two_splits"], counts["duplicates"], counts["bad"]) == (2, 0, 0)


def test_repeated_rows_and_names_are_left_out(tmp_path: Path) -> None:
    rows = pets(tmp_path / "x", 60)
    (tmp_path / "x/copy.png").write_bytes((tmp_path / "x/0-after.png").read_bytes())
    rows.append(rows[0] | {"id": "copy", "after": "copy.png"})
    rows.append(rows[2] | {"id": "pet-0", "text": "another"})
    write_csv(tmp_path / "x/pets.csv", rows)
    data = sizes(row_data(path="x/pets.csv"), train=40, validation=20, test=20)
    paths = prepared(tmp_path, tmp_path, data)
    report = json.loads(paths.data_report.read_text())
    assert (report["rows"]["duplicates"], report["rows"]["bad"]) == (1, 1)
    assert "'pet-0' is the name of pets.csv: row 1, too" in (paths.buckets / QUARANTINE).read_text()


def test_the_splits_of_the_source_are_kept(tmp_path: Path) -> None:
    rows = [
        row | {"part": SPLITS[number // 2 % 3]}
        for number, row in enumerate(pets(tmp_path / "x", 60))
    ]
    write_jsonl(tmp_path / "x/pets.jsonl", rows)
    data = row_data(path="x/pets.jsonl")
    data["data"]["input"]["columns"] |= {"split": "part"}
    paths = prepared(tmp_path, tmp_path, sizes(data, train=20, validation=20, test=20))
    for (_, split), dataset in whole(paths).items():
        assert {SPLITS[int(uid.removeprefix("pet-")) // 2 % 3] for uid in dataset["uid"]} == {split}
        assert len(dataset) == 10


def test_an_interrupted_run_goes_on_and_gives_the_same(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_PART_ROWS", 16)
    data = sizes(row_data(), train=90, validation=20, test=20)
    straight = prepared(tmp_path / "one", raw, json.loads(json.dumps(data)))
    read, real = [], ingest.RowReader.read

    def failing(self, record):
        read.append(record.number)
        if len(read) == 50:
            raise KeyboardInterrupt
        return real(self, record)

    monkeypatch.setattr(ingest.RowReader, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "two", raw, json.loads(json.dumps(data)))
    assert not (tmp_path / "two/data").exists()
    assert not list((tmp_path / "two").rglob("*.partial"))
    resumed = prepared(tmp_path / "two", raw, json.loads(json.dumps(data)))
    assert read[50] == 48
    assert digests(resumed.buckets) == digests(straight.buckets)


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("change", ["mended", "replaced", "removed", "put back"])
def test_parts_are_kept_only_while_their_pictures_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, num_shards: int
) -> None:
    """Stopped, then a picture changes, then the same command: as if it had run at once.

    The picture has the size and the times of the one before.
    """
    monkeypatch.setattr(ingest, "_PART_ROWS", 16)
    monkeypatch.setattr(ingest, "ProcessPoolExecutor", InThisProcess)  # where patches reach
    folder = tmp_path / "x"
    write_csv(folder / "pets.csv", pets(folder, 160))
    path = folder / "3-after.png"
    whole = path.read_bytes()
    noise = picture(77, (20, 20))
    contents = {"replaced": encoded(noise).ljust(len(whole), b"\0")[: len(whole)]}
    if change == "mended":
        path.write_bytes(b"\0" * len(whole))
    facts = path.stat()
    data = row_data(path="x/pets.csv", num_shards=num_shards)
    data["data"]["input"]["max_bad"] = 0.001 if change == "mended" else 0.2
    data = sizes(data, train=90, validation=30, test=30)
    read, real = [], ingest.RowReader.read
    stop = 0 if change == "mended" else 130

    def counting(self, record):
        read.append(record.number)
        if len(read) == stop:
            raise KeyboardInterrupt
        return real(self, record)

    monkeypatch.setattr(ingest.RowReader, "read", counting)
    with pytest.raises(KeyboardInterrupt if stop else DataError):
        prepared(tmp_path / "two", tmp_path, json.loads(json.dumps(data)))
    num_kept = 128 if stop else 160
    stop = 0
    if change == "removed":
        path.unlink()
    else:
        path.write_bytes(contents.get(change, whole))
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        assert path.stat().st_size == facts.st_size
    read.clear()
    resumed = prepared(tmp_path / "two", tmp_path, json.loads(json.dumps(data)))
    assert (3 in read) == (change != "put back")
    assert len(read) == 160 - num_kept + (0 if change == "put back" else 16)
    assert ("row 4" in (resumed.buckets / QUARANTINE).read_text()) == (change == "removed")
    straight = prepared(tmp_path / "one", tmp_path, json.loads(json.dumps(data)))
    assert digests(resumed.buckets) == digests(straight.buckets)


class InThisProcess:
    """A pool whose jobs run when they are handed in."""

    def __init__(self, *_args, **_options) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_error) -> None:
        pass

    def submit(self, job, *arguments):
        future = Future()
        future.set_result(job(*arguments))
        return future


def test_parts_that_other_code_wrote_are_not_gone_on_with(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_PART_ROWS", 16)
    data = sizes(row_data(), train=90, validation=20, test=20)
    read, real = [], ingest.RowReader.read

    def failing(self, record):
        read.append(record.number)
        if len(read) == 50:
            raise KeyboardInterrupt
        return real(self, record)

    monkeypatch.setattr(ingest.RowReader, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, raw, json.loads(json.dumps(data)))
    monkeypatch.setattr(keys, "code_digest", lambda *modules: "other code")
    prepared(tmp_path, raw, json.loads(json.dumps(data)))
    assert read[50] == 0


def test_shards_prepare_the_same_rows(tmp_path: Path, raw: Path) -> None:
    data = sizes(row_data(num_shards=2), train=90, validation=20, test=20)
    sharded = prepared(tmp_path / "two", raw, data)
    single = prepared(tmp_path / "one", raw, sizes(row_data(), train=90, validation=20, test=20))
    for place, dataset in whole(single).items():
        assert sorted(whole(sharded)[place]["uid"]) == sorted(dataset["uid"])


def test_released_edits_in_parquet(tmp_path: Path) -> None:
    """OmniEdit's columns, streamed from several files, with its own task names and scores."""
    from datasets import Dataset, Features, Image, List, Value

    features = Features(
        {
            "omni_edit_id": Value("string"),
            "task": Value("string"),
            "src_img": Image(),
            "edited_img": Image(),
            "edited_prompt_list": List(Value("string")),
            "o_score": Value("float64"),
        }
    )
    tasks = ("object_swap", "background_swap", "attribute_modification", "env")
    folder = tmp_path / "omni"
    folder.mkdir()
    for part in range(2):
        rows = [
            {
                "omni_edit_id": f"{part}-{n}",
                "task": tasks[n % 4],
                "src_img": {"bytes": encoded(picture(100 * part + n), "JPEG"), "path": None},
                "edited_img": {"bytes": encoded(picture(900 + 100 * part + n)), "path": None},
                "edited_prompt_list": [f"edit {n}", f"please edit {n}"],
                "o_score": 9.0 if n % 5 else 4.0,
            }
            for n in range(80)
        ]
        Dataset.from_list(rows, features=features).to_parquet(str(folder / f"train-{part}.parquet"))
    data = row_data("dataset", path="omni", columns="omniedit", min_score=8.0)
    data["data"]["input"]["tasks"] = {
        "t2i": ["background swap"],  # whatever the bucket is called
        "local_edit": ["swap", "modification"],
    }
    paths = prepared(tmp_path, tmp_path, sizes(data, train=60, validation=30, test=30))
    report = json.loads(paths.data_report.read_text())
    assert report["skipped"] == {"task 'env' belongs to no bucket": 40, "score below 8": 24}
    assert report["rows"]["written"] == 96
    categories = set(whole(paths)["local_edit", "train"]["category"])
    assert categories == {"swap", "modification"}
    assert {p.split()[0] for p in whole(paths)["local_edit", "train"]["prompt"]} == {
        "edit",
        "please",
    }


def test_frames_of_several_aspects_do_not_mix_in_a_batch(tmp_path: Path) -> None:
    rows = [row for row in pets(tmp_path / "x", 60) if not row["before"]]
    for number, row in enumerate(rows):
        picture(number, (48, 32) if number % 2 else (32, 32)).save(tmp_path / "x" / row["after"])
    write_csv(tmp_path / "x/pets.csv", rows)
    data = only("t2i", row_data(path="x/pets.csv", aspect_ratios=["1:1", "3:2"]))
    paths = prepared(tmp_path, tmp_path, sizes(data, train=20, validation=20, test=20))
    dataset = read_bucket(paths.bucket("t2i"), "train")
    shapes = {tuple(images_of(dataset, [row], "target").shape[2:]) for row in range(len(dataset))}
    assert shapes == {(32, 32), (24, 40)}
    with pytest.raises(DataError, match="cannot be computed together"):
        images_of(dataset, range(len(dataset)), "target")


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("table", None, r"data\.input: is missing: where does the table lie\?"),
        ("table", {"columns": "omnedit"}, "did you mean 'omniedit'"),
        ("table", {"columns": {"prompt": "p"}}, "target: is missing"),
        ("table", {"columns": {"promt": "p", "target": "t"}}, "did you mean 'prompt'"),
        ("table", {"columns": {"prompt": "p", "target": "t"}}, "a column must tell them apart"),
        ("table", {"tasks": {"t2i": ["a"]}}, r"tasks\.local_edit: is missing"),
        ("table", {"tasks": {"t3i": ["a"]}}, r"unknown bucket 't3i'"),
        ("table", {"aspect_ratios": ["square"]}, "aspect_ratios"),
        ("tabel", {}, "did you mean 'table'"),
    ],
)
def test_wrong_parameters_are_told(source: str, changes: dict | None, words: str) -> None:
    data = row_data(source, **(changes or {}))
    if changes is None:
        data["data"]["input"] = None
    with pytest.raises(ConfigError, match=words):
        parse_params(data, "test")


def test_a_world_that_is_drawn_reads_nothing() -> None:
    data = row_data()
    data["data"]["world"] = "scenes"
    with pytest.raises(
        ConfigError, match=r"(?s)data\.source: should be null.*data\.input: should"
    ) as e:
        parse_params(data, "test")
    assert "the rows of the world 'scenes' are drawn, not read" in str(e.value)


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,200 rows more, 15 MB of pictures, cost hardly anything: neither Python nor arrow hold them.

    Resident memory, which the allocators decide, is measured by benchmarks/prepare_memory.py.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(ingest, "_GROUP_BYTES", 200_000)
    peaks = []
    for count in (400, 1600):
        root = tmp_path / str(count)
        root.mkdir()
        rows = [{"text": f"pet {n}", "after": encoded(picture(n, (64, 64)))} for n in range(count)]
        pq.write_table(pa.Table.from_pylist(rows), root / "pets.parquet", row_group_size=64)
        data = row_data(path="pets.parquet", columns={"prompt": "text", "target": "after"})
        data["data"]["image_size"] = 64
        data = sizes(only("t2i", data), train=2000, validation=200, test=200)
        del rows
        pool = pa.default_memory_pool()
        counted = pa.proxy_memory_pool(pool)
        pa.set_memory_pool(counted)
        tracemalloc.start()
        try:
            prepared(root, root, data)
            peaks.append(tracemalloc.get_traced_memory()[1] + counted.max_memory())
        finally:
            tracemalloc.stop()
            pa.set_memory_pool(pool)
    assert peaks[1] - peaks[0] < 4e6
