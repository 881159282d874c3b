"""Exact scores: GenEval's yes or no for text-to-image, VIEScore's O = sqrt(SC * PQ) for edits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from danceflow.scenes.parse import Reading, parse
from danceflow.scenes.prompts import RELATIONS, Request, Sample
from danceflow.scenes.render import FLAT, SHADED, render
from danceflow.scenes.world import (
    BACKGROUND_NAMES,
    COLOR_NAMES,
    GRID_SIZE,
    SHAPES,
    STYLES,
    Object,
    Scene,
)

WORST_RMSE = 0.25
"""Root mean squared pixel error, of a range of 1, at which preservation is 0."""

Pair = tuple[str | None, str | None]


@dataclass(frozen=True)
class EditScore:
    """Scores of one edit, each in [0, 10].

    Attributes:
        sc: semantic consistency, whether the instruction was carried out.
        pq: preservation, how near everything else is to the exact target.
        overall: sqrt(sc * pq).
    """

    sc: float
    pq: float

    @property
    def overall(self) -> float:
        """The geometric mean of both scores."""
        return float((self.sc * self.pq) ** 0.5)


def found_objects(reading: Reading, row: int) -> list[Object]:
    """Return the recognised objects of image ``row`` of a reading."""
    shapes, colors = reading.shape[row].tolist(), reading.color[row].tolist()
    return [
        Object(cell, SHAPES[shape], COLOR_NAMES[color])
        for cell, (shape, color) in enumerate(zip(shapes, colors, strict=True))
        if shape >= 0
    ]


def satisfies(objects: Sequence[Object], request: Request) -> bool:
    """Return whether ``objects`` show what a text-to-image request asks for (GenEval's rules).

    Everything asked for must be there; counts must be exact. Other objects do no harm. One object
    is left of another if its column is smaller, and so on for the other relations.
    """
    first = [o for o in objects if _matches(o, request.first)]
    if request.second == (None, None):
        return len(first) == request.count if request.count > 1 else bool(first)
    second = [o for o in objects if _matches(o, request.second)]
    return any(
        a != b and (request.relation is None or _is_related(a, b, request.relation))
        for a in first
        for b in second
    )


def _matches(item: Object, wanted: Pair) -> bool:
    color, shape = wanted
    return (color is None or item.color == color) and (shape is None or item.shape == shape)


def _is_related(item: Object, other: Object, relation: str) -> bool:
    rows, columns = RELATIONS[relation]
    return (item.row - other.row) * rows + (item.column - other.column) * columns > 0


def score_text_to_image(images_B3HW: Tensor, samples: Sequence[Sample]) -> list[bool]:
    """Return for each image whether it satisfies its sample's prompt.

    Args:
        images_B3HW: float32 in [0, 1].
        samples: text-to-image samples, one per image. Where shading is asked for, shaded images
            are read as well as flat ones.
    """
    is_shaded = any(sample.rendering == SHADED for sample in samples)
    reading = parse(images_B3HW, style="plain", rendering=None if is_shaded else FLAT)
    return [satisfies(found_objects(reading, i), s.request) for i, s in enumerate(samples)]


def score_edits(images_B3HW: Tensor, samples: Sequence[Sample]) -> list[EditScore]:
    """Return the score of each edited image against its sample's exact target.

    Local edits: SC is 10 if the edited cell reads as in the target, 5 if only part of what had to
    change is right (shape or colour), else 0; an image left as it was has 0. Background: SC is 10
    if the requested background is read, style: if the requested style is. PQ falls linearly with
    the root mean squared error to the target, from 10 to 0 at an error of 0.25: the error over all
    cells that the edit must preserve (other cells for local edits, all cells for a background or a
    style), or over those of them with an object, whichever is worse. Without the second an edit
    could lose every object on a large background and keep most of its PQ.

    Args:
        images_B3HW: float32 in [0, 1].
        samples: edit samples, one per image.

    Raises:
        ValueError: if a sample is no edit.
    """
    targets = render([s.target for s in samples], images_B3HW.shape[-1])
    plain = parse(images_B3HW, style="plain")
    free = parse(images_B3HW)
    scores = []
    for row, sample in enumerate(samples):
        operation = sample.request.operation
        if sample.source is None or operation not in _PRESERVED:
            raise ValueError(f"{sample.prompt!r} is no edit")
        reading = free if operation == "style" else plain
        sc = _SEMANTICS[operation](reading, row, sample.source, sample)
        cells = _PRESERVED[operation](sample.source, sample.target)
        with_object = [item.cell for item in sample.target.objects if item.cell in cells]
        errors = _cell_errors(images_B3HW[row] - targets[row])
        rmse = max(float(errors[part].mean().sqrt()) for part in (cells, with_object) if part)
        scores.append(EditScore(sc, 10 * max(0.0, 1 - rmse / WORST_RMSE)))
    return scores


def _cell_errors(difference_3HW: Tensor) -> Tensor:
    """Return the mean squared difference of each cell, [16]."""
    cell = difference_3HW.shape[-1] // GRID_SIZE
    return torch.nn.functional.avg_pool2d(difference_3HW.square(), cell).mean(0).flatten()


def edited_cell(source: Scene, target: Scene) -> int:
    """Return the one cell in which two scenes differ; raise ``ValueError`` if that is not one."""
    cells = {o.cell for o in set(source.objects) ^ set(target.objects)}
    if len(cells) != 1:
        raise ValueError(f"source and target differ in cells {sorted(cells)}, not in one")
    return cells.pop()


def _local_semantics(reading: Reading, row: int, source: Scene, sample: Sample) -> float:
    cell = edited_cell(source, sample.target)
    read = (int(reading.shape[row, cell]), int(reading.color[row, cell]))
    before, after = _cell_state(source, cell), _cell_state(sample.target, cell)
    if read == after:
        return 10.0
    if after == (-1, -1):
        return 0.0
    changed = [part for part in range(2) if before[part] != after[part]]
    return 5.0 if any(read[part] == after[part] for part in changed) else 0.0


def _cell_state(scene: Scene, cell: int) -> tuple[int, int]:
    for item in scene.objects:
        if item.cell == cell:
            return SHAPES.index(item.shape), COLOR_NAMES.index(item.color)
    return -1, -1


def _background_semantics(reading: Reading, row: int, _source: Scene, sample: Sample) -> float:
    return 10.0 * (BACKGROUND_NAMES[int(reading.background[row])] == sample.request.background)


def _style_semantics(reading: Reading, row: int, _source: Scene, sample: Sample) -> float:
    return 10.0 * (STYLES[int(reading.style[row])] == sample.request.style)


def _other_cells(source: Scene, target: Scene) -> list[int]:
    return [cell for cell in range(GRID_SIZE**2) if cell != edited_cell(source, target)]


def _all_cells(_source: Scene, _target: Scene) -> list[int]:
    return list(range(GRID_SIZE**2))


_LOCAL = ("add", "remove", "replace", "recolor")
_SEMANTICS: Mapping[str, Callable[[Reading, int, Scene, Sample], float]] = {
    **dict.fromkeys(_LOCAL, _local_semantics),
    "background": _background_semantics,
    "style": _style_semantics,
}
_PRESERVED: Mapping[str, Callable[[Scene, Scene], list[int]]] = {
    **dict.fromkeys(_LOCAL, _other_cells),
    "background": _all_cells,
    "style": _all_cells,
}
