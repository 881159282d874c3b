"""Tables of tensors on disk, read memory-mapped: safetensors files of consecutive rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from danceflow.errors import DataError
from danceflow.ops.files import sha256


def require_whole(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    """Raise ``DataError`` naming the first shard that is not what was written.

    Args:
        folder: where the shards are; files there may be links, and read-only.
        files: the digest of each.
        remedy: what to do about it, for the message.
    """
    shards = tqdm(files.items(), desc=f"check {folder.name}", mininterval=2, leave=False)
    for name, digest in shards:
        path = folder / name
        try:
            found = sha256(path)
        except OSError as error:
            raise DataError(f"{path}: this shard cannot be read ({error}); {remedy}") from error
        if found != digest:
            raise DataError(f"{path}: this shard is not what was written; {remedy}")


class MappedTable:
    """A table of tensors in shards; a row is read from the disk when it is asked for.

    Attributes:
        row_shape: of one row; tensors [L, ...] of several lengths L are padded to the longest.
    """

    def __init__(self, shards: Sequence[Tensor]) -> None:
        """Take the shards' tensors, [R, ...] each, which are mapped files."""
        self._shards = tuple(shards)
        self._ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
        self._dtype = torch.float32 if shards[0].is_floating_point() else shards[0].dtype
        lengths = [shard.shape[1] for shard in shards if shard.ndim > 1]
        self.row_shape = (*([max(lengths)] if lengths else []), *shards[0].shape[2:])

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._ends[-1])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return copies of rows, [B, ...], zeros behind shorter ones; fractions as float32."""
        found = torch.zeros(len(rows), *self.row_shape, dtype=self._dtype)
        places = torch.searchsorted(self._ends, rows, right=True)
        for number in places.unique().tolist():
            shard, at = self._shards[number], (places == number).nonzero().flatten()
            values = shard[rows[at] - (self._ends[number] - len(shard))].to(self._dtype)
            if values.ndim > 1:
                found[at, : values.shape[1]] = values
            else:
                found[at] = values
        return found


def mapped_tables(paths: Sequence[Path]) -> dict[str, MappedTable]:
    """Return the tables in shards, by name; their rows stay on the disk.

    Raises:
        DataError: a shard is missing or no safetensors file.
    """
    shards = [_mapped(path) for path in paths]
    return {name: MappedTable([shard[name] for shard in shards]) for name in shards[0]}


def _mapped(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:  # its tensors are views of the mapped file
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: this shard is missing or damaged: {error}") from error
