"""What the stage ``cache`` wrote about a capability, in memory: rows of one size together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danceflow.data.sizes import Size, draw_group
from danceflow.errors import DataError, WeightsError
from danceflow.fields import Condition, uniform, with_source
from danceflow.ops.files import sha256

INDEX = "index.json"
TEXTS = "prompts.safetensors"


def load_tensors(path: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file.

    Args:
        path: of a cache.
        digest: SHA-256 that it must have; None: it was looked at before.

    Raises:
        DataError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if digest is not None and sha256(path) != digest:
            raise DataError(
                f"{path}: the cache is missing or damaged: its SHA-256 differs; make it again: "
                f"dvc repro --force cache@{path.parent.name}"
            )
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: the cache is missing or damaged: {error}") from error


@dataclass(frozen=True)
class CachedRows:
    """The cached rows of one size, in the order of the bucket.

    Attributes:
        size: height and width of their pictures in pixels.
        texts: prompt tables of the capability, a row per prompt.
        prompt_row: [R] long, each row's place in ``texts``.
        target: [R, C, H, W] latents of the targets.
        source: [R, C, H, W] latents of the sources, ``None`` for a capability without.
        teacher_samples: [S, C, H, W] the teacher's samples of the first S rows.
        takes_source: whether the model takes a source.
    """

    size: Size
    texts: Mapping[str, Tensor]
    prompt_row: Tensor
    target: Tensor
    source: Tensor | None
    teacher_samples: Tensor
    takes_source: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.prompt_row)

    def condition(self, rows: Tensor) -> Condition:
        """Return the conditions of ``rows``."""
        tensors = {name: table[self.prompt_row[rows]] for name, table in self.texts.items()}
        source = None if self.source is None else self.source[rows]
        shape = self.target.shape[1:]
        return with_source(tensors, source, shape, takes_source=self.takes_source)

    def clean(self, kind: str, rows: Tensor) -> Tensor:
        """Return clean latents of ``rows``: the ``data`` targets or the ``teacher`` samples.

        Raises:
            WeightsError: if a row has no teacher sample; ``cache.num_samples`` decides how many do.
        """
        if kind == "data":
            return self.target[rows]
        if int(rows.max()) >= len(self.teacher_samples):
            raise WeightsError(
                f"only {len(self.teacher_samples)} rows have a teacher sample; raise "
                "cache.num_samples"
            )
        return self.teacher_samples[rows]

    def num_rows(self, kind: str | None) -> int:
        """Return how many rows can be drawn when clean states of ``kind`` are needed."""
        return len(self.teacher_samples) if kind == "teacher" else len(self)


class ConditionCache:
    """The cached rows of one capability, size by size."""

    def __init__(self, folder: Path) -> None:
        """Read ``folder``; raise ``DataError`` if a file is missing or damaged."""
        path = folder / INDEX
        try:
            self.index = json.loads(path.read_text())
            entries, self._digests = self.index["sizes"], self.index["files"]
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        except KeyError as error:
            raise DataError(
                f"{path}: has no {error}; run the stage: dvc repro cache@{folder.name}"
            ) from error
        self.texts = self._load(folder / TEXTS)
        self.groups = tuple(self._read(folder, entry) for entry in entries)

    def _load(self, path: Path) -> dict[str, Tensor]:
        return load_tensors(path, self._digests.get(path.name, ""))

    def _read(self, folder: Path, entry: Mapping[str, Any]) -> CachedRows:
        shards = [self._load(folder / name) for name in entry["latents"]]
        samples = [self._load(folder / name)["clean"] for name in entry["teacher_samples"]]
        target = torch.cat([shard["target"] for shard in shards])
        height, width = entry["image_size"]
        return CachedRows(
            size=(height, width),
            texts=self.texts,
            prompt_row=torch.cat([shard["prompt_row"] for shard in shards]),
            target=target,
            source=(
                torch.cat([shard["source"] for shard in shards]) if "source" in shards[0] else None
            ),
            teacher_samples=torch.cat(samples) if samples else target[:0],
            takes_source=bool(self.index["takes_source"]),
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(len(group) for group in self.groups)

    @property
    def counts(self) -> dict[Size, int]:
        """The number of rows of each size."""
        return {group.size: len(group) for group in self.groups}

    def draw(
        self, kind: str | None, size_seed: int, row_seeds: Sequence[int]
    ) -> tuple[CachedRows, Tensor]:
        """Return rows of one size, with repetition: their group and their places in it.

        Over all seeds every row is as likely as any other: a size is drawn as often as it has rows
        that can be drawn.

        Args:
            kind: of the clean states that are needed, if any.
            size_seed: decides the size.
            row_seeds: decide the rows, one each.
        """
        counts = [group.num_rows(kind) for group in self.groups]
        group = self.groups[draw_group(counts, size_seed)]
        return group, (uniform(row_seeds) * group.num_rows(kind)).long()
