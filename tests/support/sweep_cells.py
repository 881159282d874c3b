"""Cells of a small sweep."""

from danceflow.report.tables.cells import CellRecord


def cell(variant: str, seed: int, t2i: float, edit: float, **changes) -> CellRecord:
    scores = {"training/num_updates": 9.0, "training/field_evaluations": 1234.0}
    for name, scale, trained, score in (("t2i", 1.0, 0.0, t2i), ("edit", 10.0, 1.0, edit)):
        scores |= {
            f"scale/{name}": scale,
            f"trained/{name}": trained,
            f"student/{name}/overall/overall": score,
            f"student/{name}/category/counting": score / 2,
            f"student/{name}/variant/reworded": score / 4,
            f"student/{name}/gap_closed/score": score / scale,
            f"teacher/{name}/overall/overall": 0.8 * scale,
            f"start/{name}/overall/overall": seed / 10,
        }
    values = {"targets": "evaluate", "code": "c", "finished": 1.5, "scores": scores}
    name = f"s-{variant}-s{seed}"
    return CellRecord(sweep="s", cell=name, variant=variant, seed=seed, **values, **changes)


CELLS = [
    cell("worse", 0, 0.9, 2.0),
    cell("worse", 1, 0.9, 4.0),
    cell("better", 1, 0.1, 6.5),
    cell("better", 0, 0.3, 6.0),
    cell("better", 2, 0.2, 7.0),
    cell("single", 0, 0.5, 1.0),
]
