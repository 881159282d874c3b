"""A sweep's table as three files: Markdown, CSV and picture."""

from collections.abc import Sequence
from pathlib import Path

from danceflow.ops.files import atomic_file, write_text
from danceflow.report.tables.chart import draw_table
from danceflow.report.tables.table import Table
from danceflow.report.tables.text import csv_text, markdown


def write_table(
    folder: Path, table: Table, missing: Sequence[str] = (), against: str | None = None
) -> list[Path]:
    """Write ``<sweep>.md``, ``.csv`` and ``.png`` to a folder and return their paths."""
    paths = [folder / f"{table.sweep}{suffix}" for suffix in (".md", ".csv", ".png")]
    text = markdown(table, missing, against)
    write_text(paths[0], text)
    write_text(paths[1], csv_text(table, against))
    with atomic_file(paths[2]) as partial:
        draw_table(table, partial)
    return paths
