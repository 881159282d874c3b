"""What the stage ``cache`` wrote about a capability, memory-mapped: rows of one size together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from danceflow.data.shards import MappedTable, mapped_tables, require_whole
from danceflow.data.sizes import Size, draw_group
from danceflow.errors import DataError, WeightsError
from danceflow.fields import SOURCES, Condition, uniform, with_source

INDEX = "index.json"


@dataclass(frozen=True)
class CachedRows:
    """The cached rows of one size, in the order of the bucket.

    Attributes:
        size: height and width of their pictures in pixels.
        texts: prompt tables of the capability, a row per prompt.
        prompt_row: [R] long, each row's place in ``texts``.
        target: [R, C, H, W] latents of the targets.
        sources: [R, C, H, W] latents of the sources by place, zeros where a row has no further
            one; none for a capability without.
        teacher_samples: [S, C, H, W] the teacher's samples of the first S rows, ``None``: S is 0.
        takes_source: whether the model takes a source.
    """

    size: Size
    texts: Mapping[str, MappedTable]
    prompt_row: MappedTable
    target: MappedTable
    sources: tuple[MappedTable, ...]
    teacher_samples: MappedTable | None
    takes_source: bool

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.prompt_row)

    def condition(self, rows: Tensor) -> Condition:
        """Return the conditions of ``rows``, float32."""
        prompts = self.prompt_row[rows]
        tensors = {name: table[prompts] for name, table in self.texts.items()}
        sources = [table[rows] for table in self.sources]
        return with_source(tensors, sources, self.target.row_shape, takes_source=self.takes_source)

    def clean(self, kind: str, rows: Tensor) -> Tensor:
        """Return clean latents of ``rows``, float32: the ``data`` targets or ``teacher`` samples.

        Raises:
            WeightsError: if a row has no teacher sample; ``cache.num_samples`` decides how many do.
        """
        if kind == "data":
            return self.target[rows]
        if self.teacher_samples is None or int(rows.max()) >= len(self.teacher_samples):
            raise WeightsError(
                f"only {self.num_rows(kind)} rows have a teacher sample; raise cache.num_samples"
            )
        return self.teacher_samples[rows]

    def num_rows(self, kind: str | None) -> int:
        """Return how many rows can be drawn when clean states of ``kind`` are needed."""
        if kind != "teacher":
            return len(self)
        return 0 if self.teacher_samples is None else len(self.teacher_samples)


@dataclass(frozen=True)
class Asked:
    """Conditions of rows of the validation split that have one size.

    Attributes:
        places: in the tables, by row.
        tables: the conditions.
    """

    places: Mapping[int, int]
    tables: Mapping[str, MappedTable]


class ConditionCache:
    """The cached rows of one capability, size by size.

    Attributes:
        fixed: what the encoders say of texts that are no row's (``ModelFamily.fixed_texts``).
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, whose rows stay on the disk; it need not be writable.

        Raises:
            DataError: a file is missing, or a shard is not what was written.
        """
        path, remedy = folder / INDEX, f"run the stage: dvc repro cache@{folder.name}"
        try:
            self.index = json.loads(path.read_text())
            require_whole(folder, self.index["files"], remedy)
            self.texts = mapped_tables([folder / name for name in self.index["prompts"]])
            self.groups = tuple(self._open(folder, entry) for entry in self.index["sizes"])
            fixed = [folder / name for name in self.index["fixed"]]
            tables = mapped_tables(fixed) if fixed else {}
            self.fixed = {name: table[torch.tensor([0])][0] for name, table in tables.items()}
            self._asked = {
                (entry["image_size"][0], entry["image_size"][1]): Asked(
                    {row: place for place, row in enumerate(entry["rows"])},
                    mapped_tables([folder / name for name in entry["conditions"]]),
                )
                for entry in self.index["validation"]
            }
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        except KeyError as error:
            raise DataError(f"{path}: has no {error}; {remedy}") from error

    def _open(self, folder: Path, entry: Mapping[str, Any]) -> CachedRows:
        latents = mapped_tables([folder / name for name in entry["latents"]])
        samples = [folder / name for name in entry["teacher_samples"]]
        height, width = entry["image_size"]
        return CachedRows(
            size=(height, width),
            texts=self.texts,
            prompt_row=latents["prompt_row"],
            target=latents["target"],
            sources=tuple(latents[name] for name in SOURCES if name in latents),
            teacher_samples=mapped_tables(samples)["clean"] if samples else None,
            takes_source=bool(self.index["takes_source"]),
        )

    def validation(
        self, size: Size, rows: Sequence[int]
    ) -> tuple[Mapping[str, MappedTable], Tensor]:
        """Return the conditions of the rows that score a training, and the places of ``rows``.

        Args:
            size: of their pictures.
            rows: of the validation split.
        """
        asked = self._asked[size]
        return asked.tables, torch.tensor([asked.places[row] for row in rows])

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
