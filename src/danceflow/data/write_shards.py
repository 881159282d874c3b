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

_LOG = logging.getLogger(__name__)
ROWS_PER_SHARD = 512
_BYTES_PER_SHARD = 64 << 20
"""A shard ends with the batch that reaches either; rows of a large model are megabytes each."""
_JOURNAL = "shards.json"


class ShardWriter:
    """Writes shards to a folder, those apart that are there already and whole.

    Attributes:
        files: the digest of every shard that was written or kept, by name.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, batch_size: int) -> None:
        """Take up what an earlier process wrote to ``folder``.

        Args:
            folder: this process has it for itself.
            dtype: of stored numbers that are not whole.
            batch_size: rows that are computed together.
        """
        self.folder, self.dtype, self.batch_size = folder, dtype, batch_size
        self.files: dict[str, str] = {}
        self._noted = _read_journal(folder / _JOURNAL)

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
        names: list[str] = []
        start = 0
        with tqdm(total=len(rows), desc=kind, mininterval=2) as bar:
            while start < len(rows):
                names.append(f"{kind}-{len(names):05d}.safetensors")
                if not self._is_whole(names[-1]):
                    self._write(names[-1], rows[start:], make, rows_per_shard or ROWS_PER_SHARD)
                noted = self._noted[names[-1]]
                self.files[names[-1]] = noted["sha256"]
                start += noted["num_rows"]
                bar.update(noted["num_rows"])
        return names

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
        rows_per_shard: int,
    ) -> None:
        parts: list[Condition] = []
        count = size = 0
        while count < min(len(rows), rows_per_shard) and size < _BYTES_PER_SHARD:
            made = make(rows[count : count + self.batch_size])
            parts.append(Condition({key: self._stored(value) for key, value in made.items()}))
            count += parts[-1].num_samples
            size += sum(value.nbytes for value in parts[-1].tensors.values())
        _save(self.folder / name, Condition.cat(parts).tensors)
        self._noted[name] = {"sha256": sha256(self.folder / name), "num_rows": count}
        write_json(self.folder / _JOURNAL, self._noted)

    def _stored(self, values: Tensor) -> Tensor:
        return values.to("cpu", self.dtype if values.is_floating_point() else values.dtype)


def _read_journal(path: Path) -> dict[str, Any]:
    """Return what is noted of every shard, nothing where nothing is noted or can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        _LOG.warning("%s: is damaged; its shards are made again", path)
        return {}
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
