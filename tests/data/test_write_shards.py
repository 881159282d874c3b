"""Shards are of a bounded size, whatever a row takes, and another disk gets copies."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from danceflow.data import write_shards
from danceflow.data.write_shards import ShardWriter, link_shards, spilled


def numbered(rows) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(rows)[:, None].repeat(1, 256).float(), "row": torch.tensor(rows)}


def lengths(folder: Path, names: list[str]) -> list[int]:
    return [len(load_file(folder / name)["a"]) for name in names]


def test_a_shard_ends_with_rows_or_with_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(range(100, 130))
    few = ShardWriter(tmp_path / "few", torch.float32, batch_size=4)
    (tmp_path / "few").mkdir()
    names = few.write("a", rows, numbered, rows_per_shard=8)
    assert lengths(few.folder, names) == [8, 8, 8, 6]
    assert list(few.files) == names == [f"a-0000{number}.safetensors" for number in range(4)]
    parts = [load_file(few.folder / name)["row"] for name in names]
    assert torch.cat(parts).tolist() == rows

    monkeypatch.setattr(write_shards, "_BYTES_PER_SHARD", 10_000)
    (tmp_path / "small").mkdir()
    small = ShardWriter(tmp_path / "small", torch.float32, batch_size=4)
    assert lengths(small.folder, small.write("a", rows, numbered)) == [12, 12, 6]
    (tmp_path / "half").mkdir()
    half = ShardWriter(tmp_path / "half", torch.bfloat16, batch_size=4)
    assert lengths(half.folder, half.write("a", rows, numbered)) == [20, 10]
    assert small.write("nothing", [], numbered) == []
    assert {file.stat().st_mode & 0o777 for file in few.folder.iterdir()} == {0o666 & ~umask()}


def umask() -> int:
    os.umask(found := os.umask(0o22))
    return found


def test_a_journal_that_cannot_be_read_is_told_and_begun_anew(tmp_path: Path, caplog) -> None:
    names = ShardWriter(tmp_path, torch.float32, batch_size=4).write("a", range(6), numbered)
    before = (tmp_path / names[0]).read_bytes()
    (tmp_path / "shards.json").write_text("{")
    again = ShardWriter(tmp_path, torch.float32, batch_size=4)
    assert "shards.json: is damaged; its shards are made again" in caplog.text
    assert again.write("a", range(6), numbered) == names
    assert (tmp_path / names[0]).read_bytes() == before


def test_links_take_no_room_and_where_there_are_none_there_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "linked", "copied"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "a").write_bytes(b"rows")
    link_shards(["a"], tmp_path / "work", tmp_path / "linked")
    assert (tmp_path / "linked" / "a").samefile(tmp_path / "work" / "a")

    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    link_shards(["a"], tmp_path / "work", tmp_path / "copied")
    assert not (tmp_path / "copied" / "a").samefile(tmp_path / "work" / "a")
    assert (tmp_path / "copied" / "a").read_bytes() == b"rows"


def test_what_is_spilled_lies_on_the_disk_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tables = spilled("a", range(30), numbered, batch_size=7)
    assert list(tmp_path.iterdir()) == []
    rows = torch.tensor([29, 0, 7, 7])
    for name, values in numbered(rows.tolist()).items():
        assert torch.equal(tables[name][rows], values)
    mapped = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}/danceflow-" in mapped
    assert "a-00000.safetensors (deleted)" in mapped
