"""Tables of tensors, written shard by shard; a process that goes on keeps those that are whole.

A shard is a safetensors file of consecutive rows (``danceflow.data.shards`` reads it).
It is noted with its digest as soon as it is whole.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from danceflow.data.shards import MappedTable, mapped_tables
from danceflow.fields import Condition
from danceflow.ops.files import sha256, write_bytes, write_json
from danceflow.ops.group import ALONE, Group

_LOG = logging.getLogger(__name__)
ROWS_PER_SHARD = 512
_BYTES_PER_SHARD = 64 << 20
"""A shard ends with the batch that reaches either, if all are as large as the table's first one.

Rows of a large model are megabytes each. Where shards end is known after one batch, so that several
processes write the shards that one would write.
"""
_JOURNAL = "shards.json"


class ShardWriter:
    """Writes shards to a folder, those apart that are there already and whole.

    Of a group every process writes every so-manieth shard, with the bytes that one alone gives it.

    Attributes:
        files: the digest of every shard that was written or kept, by name.
    """

    def __init__(
        self, folder: Path, dtype: torch.dtype, batch_size: int, group: Group = ALONE
    ) -> None:
        """Take up what an earlier process wrote to ``folder``.

        Args:
            folder: this process, or its group, has it for itself.
            dtype: of stored numbers that are not whole.
            batch_size: rows that are computed together.
            group: the processes that write there together.
        """
        self.folder, self.dtype, self.batch_size, self.group = folder, dtype, batch_size, group
        self.files: dict[str, str] = {}
        self._noted = _read_journals(folder)
        self._journal = folder / (f"{_JOURNAL}.{group.rank}" if group.rank else _JOURNAL)
        # What all have noted before is the main one's from now on.
        self._own = dict(self._noted) if group.is_main else {}
        group.wait()

    def write(
        self,
        kind: str,
        rows: Sequence[int],
        make: Callable[[Sequence[int]], Mapping[str, Tensor]],
        rows_per_shard: int | None = None,
    ) -> list[str]:
        """Write a table, a row for each of ``rows``, and return the names of its shards.

        Args:
            kind: what is written, which the shards' names begin with.
            rows: what the table's rows are made of, in its order.
            make: gives the tensors of a batch of them, a row each.
            rows_per_shard: fewer than usual where a row takes long to make.
        """
        if not len(rows):
            return []
        first = None
        if self.group.is_main and not self._is_whole(f"{kind}-{0:05d}.safetensors"):
            first = self._made(make, rows[: self.batch_size])
        length = self.group.told(self._length(kind, first, rows_per_shard or ROWS_PER_SHARD))
        starts = range(0, len(rows), length)
        names = [f"{kind}-{number:05d}.safetensors" for number in range(len(starts))]
        with tqdm(total=len(rows), desc=kind, mininterval=2) as bar:
            for number in range(self.group.rank, len(names), self.group.size):
                part, begun = rows[starts[number] :][:length], first if number == 0 else None
                if begun is not None or not self._is_whole(names[number]):
                    self._write(names[number], part, make, begun)
                bar.update(len(part))
        mine = names[self.group.rank :: self.group.size]
        digests = {name: self._noted[name]["sha256"] for name in mine}
        found = {name: digest for part in self.group.all(digests) for name, digest in part.items()}
        self.files |= {name: found[name] for name in names}
        return names

    def _length(self, kind: str, first: Condition | None, most: int) -> int:
        """Return the rows of every shard of a table but its last, whole batches."""
        if first is None:
            noted = self._noted.get(f"{kind}-{0:05d}.safetensors")
            return int(noted["num_rows"]) if noted else 0
        size = sum(value.nbytes for value in first.tensors.values())
        num_batches = min(-(-most // self.batch_size), -(-_BYTES_PER_SHARD // size))
        return num_batches * self.batch_size

    def _is_whole(self, name: str) -> bool:
        """Return whether a shard is what was written; a warning says if it is not any more."""
        if name not in self._noted:
            return False
        path = self.folder / name
        if path.exists() and sha256(path) == self._noted[name]["sha256"]:
            return True
        _LOG.warning("%s: this shard is damaged or missing, and is made again", path)
        return False

    def _write(
        self,
        name: str,
        rows: Sequence[int],
        make: Callable[[Sequence[int]], Mapping[str, Tensor]],
        first: Condition | None,
    ) -> None:
        """Write a shard of ``rows``; ``first`` is its first batch, where that is made already."""
        parts = [] if first is None else [first]
        starts = range(self.batch_size * len(parts), len(rows), self.batch_size)
        parts += [self._made(make, rows[at : at + self.batch_size]) for at in starts]
        _save(self.folder / name, Condition.cat(parts).tensors)
        entry = {"sha256": sha256(self.folder / name), "num_rows": len(rows)}
        self._noted[name] = self._own[name] = entry
        write_json(self._journal, self._own)

    def _made(
        self, make: Callable[[Sequence[int]], Mapping[str, Tensor]], rows: Sequence[int]
    ) -> Condition:
        return Condition({key: self._stored(value) for key, value in make(rows).items()})

    def _stored(self, values: Tensor) -> Tensor:
        return values.to("cpu", self.dtype if values.is_floating_point() else values.dtype)


def _read_journals(folder: Path) -> dict[str, Any]:
    """Return what is noted of every shard, by however many processes that wrote together."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob(f"{_JOURNAL}*")):
        try:
            found = json.loads(path.read_text()) | found
        except ValueError:
            _LOG.warning("%s: is damaged; its shards are made again", path)
    return found


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    # A file that safetensors opens itself can be read by its owner alone.
    write_bytes(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def spilled(
    kind: str,
    rows: Sequence[int],
    make: Callable[[Sequence[int]], Mapping[str, Tensor]],
    batch_size: int,
) -> dict[str, MappedTable]:
    """Return tables in place of tensors that memory need not hold, float32.

    They lie on the disk, in the system's folder for temporary files (``TMPDIR``), as long as they
    are used. Their files have no name any more, so that nothing is left of a killed process.

    Args:
        kind: what they hold.
        rows: what their rows are made of.
        make: as for ``ShardWriter.write``.
        batch_size: rows that are computed together.
    """
    with tempfile.TemporaryDirectory(prefix="danceflow-") as folder:
        names = ShardWriter(Path(folder), torch.float32, batch_size).write(kind, rows, make)
        return mapped_tables([Path(folder) / name for name in names])


def link_shards(names: Iterable[str], source: Path, target: Path) -> None:
    """Put shards into another folder; they take no further room if it is on the same disk."""
    for name in names:
        try:
            (target / name).hardlink_to(source / name)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source / name, target / name)
