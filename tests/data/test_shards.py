"""Rows that lie in shards are read like rows of one tensor, and stay on the disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from danceflow.data.shards import MappedTable, mapped_tables
from danceflow.errors import DataError
from danceflow.fields import Condition


def held() -> int:
    """Return the bytes of this process's own memory, without the files that it maps."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in x)
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_rows_are_those_of_the_shards_joined(tmp_path: Path, dtype: torch.dtype) -> None:
    shards = [torch.arange(n * 6).reshape(n, 3, 2).add(n).to(dtype) for n in (4, 1, 3)]
    for number, shard in enumerate(shards):
        save_file({"a": shard, "row": torch.arange(len(shard))}, tmp_path / f"{number}")
    tables = mapped_tables([tmp_path / str(number) for number in range(3)])
    assert (len(tables["a"]), tables["a"].row_shape, tables["row"].row_shape) == (8, (3, 2), ())
    rows = torch.tensor([7, 0, 4, 4, 5, 3])
    expected = torch.cat(shards)[rows]
    found = tables["a"][rows]
    assert found.dtype == (torch.float32 if dtype.is_floating_point else dtype)
    assert torch.equal(found, expected.to(found.dtype))
    assert tables["row"][rows].tolist() == [2, 0, 0, 0, 0, 3]
    assert tables["a"][rows[:0]].shape == (0, 3, 2)


def test_shorter_prompts_are_padded_as_a_condition_pads_them() -> None:
    shards = [torch.rand(2, length, 4) for length in (3, 7, 5)]
    masks = [torch.ones(2, length, dtype=torch.bool) for length in (3, 7, 5)]
    pairs = zip(shards, masks, strict=True)
    whole = Condition.cat([Condition({"a": a, "mask": mask}) for a, mask in pairs])
    rows = torch.tensor([5, 0, 3])
    for name, parts in (("a", shards), ("mask", masks)):
        assert torch.equal(MappedTable(parts)[rows], whole.tensors[name][rows])


def test_what_is_read_takes_memory_and_the_rest_none(tmp_path: Path) -> None:
    table = torch.rand(1000, 64, 256)  # 65 MB
    save_file({"a": table}, tmp_path / "a")
    mapped = mapped_tables([tmp_path / "a"])["a"]
    before = held()
    for row in range(1000):
        assert torch.equal(mapped[torch.tensor([row])][0], table[row])
    assert held() - before < 10e6


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"nothing")
    for name in ("a", "b"):
        with pytest.raises(DataError, match=f"{tmp_path / name}: this shard is missing or damaged"):
            mapped_tables([tmp_path / name])
