"""Pictures of an evaluation: labelled grids to look at, and tiles for the report to cut up."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from danceflow.columns import SOURCE_COLUMNS
from danceflow.evaluate.grids import image_grid, tile_sheet
from danceflow.evaluate.records import (
    HELD_OUT_VARIANTS,
    LOST,
    STANDARD,
    START,
    STUDENT,
    TEACHER,
    TILES,
    TILES_INDEX,
)
from danceflow.evaluate.result import once
from danceflow.evaluate.task import Task

_NUM_ROWS = 8
_NUM_OTHERS = 4


@dataclass(frozen=True)
class Answers:
    """A field's images and scores.

    Attributes:
        places: positions in the task of the rows that the field was asked.
        images: one [3, H, W] for each of them.
        scores: one per image.
    """

    places: Sequence[int]
    images: Sequence[Tensor]
    scores: Sequence[float]

    def at(self, place: int) -> tuple[Tensor, float] | None:
        """Return image and score of a row of the task, ``None`` if it was not asked."""
        if place not in self.places:
            return None
        number = self.places.index(place)
        return self.images[number], self.scores[number]


def draw_gallery(folder: Path, task: Task, teacher: str, answers: Mapping[str, Answers]) -> None:
    """Write the pictures of one capability to ``folder``.

    ``grid.png`` shows source, own teacher, start student, student and exact target for some rows
    of every category; ``reworded.png`` and ``held_out_pair.png`` the same for those variants;
    ``lost.png`` other rows on which the student is worst compared with its teacher. ``tiles.png``
    and ``tiles.json`` hold the same rows for every field, without text.

    Args:
        folder: an existing folder.
        task: what was asked.
        teacher: name of the own teacher among ``answers``.
        answers: by field.
    """
    kinds = {STANDARD: task.first_of_each(STANDARD, _NUM_ROWS)}
    kinds |= {name: task.first_of_each(name, _NUM_OTHERS) for name in HELD_OUT_VARIANTS}
    kinds[LOST] = _lost(task, answers[teacher], answers[STUDENT], kinds[STANDARD])
    kinds = {kind: places for kind, places in kinds.items() if places}
    for kind, places in kinds.items():
        columns = _columns(task, places, teacher, answers)
        notes = [task.rows[place].category.replace("_", " ") for place in places]
        picture = image_grid(columns, [task.rows[place].prompt for place in places], notes)
        picture.save(folder / f"{'grid' if kind == STANDARD else kind}.png", format="PNG")
    _write_tiles(folder, task, kinds, answers)


def _columns(
    task: Task, places: Sequence[int], teacher: str, answers: Mapping[str, Answers]
) -> dict[str, list[Tensor]]:
    """Return the named columns of a grid; fields that were not asked all rows are left out."""
    headings = {
        f"teacher ({teacher.removeprefix(TEACHER)})": teacher,
        "start student": START,
        "student": STUDENT,
    }
    sources, targets = task.sources, task.targets
    columns = {"source": [sources[place] for place in places]} if task.is_edit else {}
    for number, further in enumerate(task.further, 2):
        columns[f"source {number}"] = [further[place] for place in places]
    for heading, field in headings.items():
        found = [answers[field].at(place) for place in places]
        images = [item[0] for item in found if item is not None]
        if len(images) == len(places):
            columns[heading] = images
    right = "exact target" if task.is_edit else "one right answer"
    columns[right] = [targets[place] for place in places]
    return columns


def _lost(task: Task, teacher: Answers, student: Answers, shown: Sequence[int]) -> list[int]:
    """Return rows, not ``shown`` yet, on which the student is furthest below its teacher."""
    behind = []
    for place in {*once(task, STANDARD)} - {*shown}:  # which every field was asked
        one, other = teacher.at(place), student.at(place)
        if one is not None and other is not None and one[1] > other[1]:
            behind.append((other[1] - one[1], place))
    return [place for _, place in sorted(behind)[:_NUM_OTHERS]]


def _write_tiles(
    folder: Path, task: Task, kinds: Mapping[str, Sequence[int]], answers: Mapping[str, Answers]
) -> None:
    sources, targets = task.sources, task.targets
    places = [(kind, place) for kind in kinds for place in kinds[kind]]
    columns = {"source": [sources[place] for _, place in places]} if task.is_edit else {}
    for name, further in zip(SOURCE_COLUMNS[1:], task.further, strict=False):
        columns[name] = [further[place] for _, place in places]
    columns["target"] = [targets[place] for _, place in places]
    rows = [
        {
            "kind": kind,
            "uid": task.rows[place].uid,
            "category": task.rows[place].category,
            "prompt": task.rows[place].prompt,
            "scores": {
                field: found[1]
                for field, part in answers.items()
                if (found := part.at(place)) is not None
            },
        }
        for kind, place in places
    ]
    for field, part in answers.items():
        answered = [(part.at(place), targets[place]) for _, place in places]
        columns[field] = [
            torch.ones_like(target) if item is None else item[0] for item, target in answered
        ]
    sheet = tile_sheet(list(columns.values()))
    sheet.save(folder / TILES, format="PNG")
    content = {"size": sheet.width // len(columns), "columns": list(columns), "rows": rows}
    (folder / TILES_INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
