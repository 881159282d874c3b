"""Two versions side by side, as a table in the terminal, a page or a picture."""

import math
from pathlib import Path

from markupsafe import Markup, escape
from PIL import Image, ImageDraw

from danceflow.errors import UsageError
from danceflow.ops.files import write_bytes, write_text
from danceflow.pictures import data_uri, png_bytes, read_own
from danceflow.registry.compare import Comparison, Grid, Pair, ScorePair

SUFFIXES = (".html", ".png")

_SAME = "(same)"
_GAP = 12
_STYLE = Markup(
    """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 2rem }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem .3rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere }
td.better { color: #17663a } td.worse { color: #a11 }
img { width: 100%; image-rendering: pixelated }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e6e6e6 }
  th, td { border-color: #444 } td.better { color: #6fce97 } td.worse { color: #ff8d8d } }
"""
)
_CELLS = {"td": Markup("<td>{}</td>"), "th": Markup("<th>{}</th>")}


def check_out(path: Path | None) -> None:
    """Raise ``UsageError`` for a file that is neither a page nor a picture."""
    if path is not None and path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: write a file that ends with {' or '.join(SUFFIXES)}")


def as_text(found: Comparison) -> str:
    """Return a comparison as lines for a terminal.

    Args:
        found: the two versions.
    """
    first, second = found.names
    lines = [f"{first} and {second}", "", "scores (difference with its 95 % interval):"]
    lines += _columns([[name, *_score_cells(item)] for name, item in found.scores.items()])
    lines += ["", "parameters that differ:"]
    lines += _columns([[name, *map(_told, both)] for name, both in found.parameters.items()])
    lines += ["", "code and data:"]
    lines += _columns([[name, *_source_cells(both)] for name, both in found.sources.items()])
    return "\n".join(lines)


def write(path: Path, found: Comparison) -> None:
    """Write a comparison with its pictures, atomically: as a page, or the pictures alone.

    Args:
        path: a file that ends with ``.html`` or ``.png``.
        found: the two versions.

    Raises:
        UsageError: there are no pictures to write; or the file has another ending.
    """
    check_out(path)
    if path.suffix == ".html":
        write_text(path, as_page(found))
        return
    if not found.grids:
        raise UsageError(f"{path}: the runs of the two versions hold no pictures")
    write_bytes(path, png_bytes(side_by_side(found), compress_level=9))


def as_page(found: Comparison) -> str:
    """Return a comparison as a self-contained page.

    Args:
        found: the two versions.
    """
    first, second = (escape(name) for name in found.names)
    head = _row(["", first, second], "th")
    scores = Markup("").join(
        _row([escape(name), *map(escape, _score_cells(item)[:3])], "td", _rank(item))
        for name, item in found.scores.items()
    )
    parameters = Markup("").join(
        _row([escape(name), *(escape(_told(text)) for text in both)])
        for name, both in found.parameters.items()
    )
    sources = Markup("").join(
        _row([escape(name), *map(escape, _source_cells(both))])
        for name, both in found.sources.items()
    )
    pictures = Markup("").join(_figure(grid, found.names) for grid in found.grids)
    title = Markup("{} and {}").format(first, second)
    return Markup(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        "<title>{title}</title><style>{style}</style><h1>{title}</h1>"
        "<h2>Scores</h2><table>{score_head}{scores}</table>"
        "<h2>Parameters that differ</h2><table>{head}{parameters}</table>"
        "<h2>Code and data</h2><table>{head}{sources}</table>"
        "<h2>Pictures</h2>{pictures}</html>\n"
    ).format(
        title=title,
        style=_STYLE,
        score_head=_row(["", first, second, "difference (95 % interval)"], "th"),
        head=head,
        scores=scores,
        parameters=parameters or _row(["none"]),
        sources=sources,
        pictures=pictures or Markup("<p>The runs hold none.</p>"),
    )


def side_by_side(found: Comparison) -> Image.Image:
    """Return the pictures of both, the first on the left, one row for what they show."""
    rows = []
    for grid in found.grids:
        images = [None if png is None else read_own(png) for png in (grid.first, grid.second)]
        rows.append((grid, images))
    width = max(image.width for _, images in rows for image in images if image is not None)
    label = 22
    heights = [max(image.height for image in images if image is not None) for _, images in rows]
    size = (2 * width + 3 * _GAP, sum(heights) + len(rows) * (label + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for (grid, images), height in zip(rows, heights, strict=True):
        steps = (grid.first_step, grid.second_step)
        for place, (image, name, step) in enumerate(zip(images, found.names, steps, strict=True)):
            left = _GAP + place * (width + _GAP)
            draw.text((left, top), _caption(grid.key, name, step), fill="black", font_size=14)
            if image is not None:
                sheet.paste(image, (left, top + label))
        top += label + height + _GAP
    return sheet


def _figure(grid: Grid, names: tuple[str, str]) -> Markup:
    cells = []
    sides = ((grid.first, grid.first_step), (grid.second, grid.second_step))
    for name, (png, step) in zip(names, sides, strict=True):
        caption = _caption(grid.key, name, step)
        image = Markup("<img alt='{}' src='{}'>").format(caption, data_uri(png)) if png else ""
        cells.append(
            Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(caption, image)
        )
    return Markup("<div class=pair>{}{}</div>").format(*cells)


def _caption(key: str, name: str, step: int | None) -> str:
    return f"{name}: {key}, " + ("no picture" if step is None else f"after update {step}")


def _row(cells: list[str | Markup], tag: str = "td", rank: str = "") -> Markup:
    made = [_CELLS[tag].format(cell) for cell in cells]
    if rank:
        made[-1] = Markup("<td class={}>{}</td>").format(rank, cells[-1])
    return Markup("<tr>{}</tr>").format(Markup("").join(made))


def _rank(item: ScorePair) -> str:
    """Return whether the second is better or worse, as far as the interval says."""
    if item.interval is None:
        return ""
    low, high = item.interval
    return "better" if low > 0 else "worse" if high < 0 else ""


def _score_cells(item: ScorePair) -> list[str]:
    cells = [_number(item.first), _number(item.second)]
    if item.difference is None:
        return [*cells, item.note]
    told = f"{item.difference:+.4f}"
    if item.interval is not None:
        told += f" ({item.interval[0]:+.4f} to {item.interval[1]:+.4f})"
    return [*cells, f"{told}, {item.num_prompts} prompts"]


def _source_cells(both: Pair) -> list[str]:
    first, second = both
    return [_told(first), _SAME if first == second else _told(second)]


def _told(text: str | None) -> str:
    return "-" if text is None else text


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _columns(rows: list[list[str]]) -> list[str]:
    """Return rows as lines with aligned columns."""
    if not rows:
        return ["  none"]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
