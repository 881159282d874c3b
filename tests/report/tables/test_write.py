"""A table becomes three files, the picture with the colours of its chart."""

from pathlib import Path

from PIL import Image
from sweep_cells import CELLS

from danceflow.report.tables.table import make_table
from danceflow.report.tables.write import write_table


def test_three_files_are_written(tmp_path: Path) -> None:
    paths = write_table(tmp_path / "new", make_table("s", CELLS))
    assert [path.name for path in paths] == ["s.md", "s.csv", "s.png"]
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
        assert (0x1F, 0x5F, 0xA8) in colours
