"""A sweep's table as a picture: a panel per capability, a point and its interval per variant."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.evaluate.records import START, STUDENT
from danceflow.report.tables.cells import OVERALL, OWN_TEACHER, VARIANT

if TYPE_CHECKING:
    from danceflow.report.tables.table import Table

_STUDENT = "#1f5fa8"
_REWORDED = "#d9822b"
_REFERENCE = "#555555"
_ROW = 0.42  # inches
_PANEL = 3.3
_SHIFT = 0.17


def draw_table(table: "Table", path: Path) -> None:
    """Write the picture as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_panels, num_rows = len(table.capabilities), len(table.rows)
    names = [f"{row.variant} (n={len(row.seeds)})" for row in table.rows]
    longest = max(map(len, names))
    width = _PANEL * num_panels + 0.085 * longest + 0.3
    figure = Figure(figsize=(width, _ROW * num_rows + 1.7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, num_panels, sharey=True, squeeze=False)[0]
    for panel, capability in zip(panels, table.capabilities, strict=True):
        _draw_panel(panel, table, capability)
    panels[0].set_yticks(range(num_rows), names)
    panels[0].set_ylim(num_rows - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"{table.sweep}: mean and 95 % interval over seeds", fontsize=11)
    figure.savefig(path, format="png")


def _draw_panel(panel: Any, table: "Table", capability: str) -> None:
    series = {
        "test prompts": (f"{STUDENT}/{capability}/{OVERALL}/{OVERALL}", _STUDENT, -_SHIFT, "o"),
        "reworded": (f"{STUDENT}/{capability}/{VARIANT}/reworded", _REWORDED, _SHIFT, "s"),
    }
    for label, (name, colour, shift, marker) in series.items():
        found = [
            (place + shift, estimate)
            for place, row in enumerate(table.rows)
            if (estimate := row.get(name)) is not None
        ]
        if found:
            panel.errorbar(
                [estimate.mean for _, estimate in found],
                [place for place, _ in found],
                xerr=[estimate.half or 0.0 for _, estimate in found],
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=2.5,
                linewidth=1.3,
                label=label,
            )
    references = {"own teacher": (OWN_TEACHER, "--"), "start": (START, ":")}
    for label, (field, style) in references.items():
        means = {
            round(estimate.mean, 4)
            for row in table.rows
            if (estimate := row.get(f"{field}/{capability}/{OVERALL}/{OVERALL}")) is not None
        }
        if len(means) == 1:
            panel.axvline(means.pop(), color=_REFERENCE, linestyle=style, linewidth=1, label=label)
    for place in range(1, len(table.rows), 2):
        panel.axhspan(place - 0.5, place + 0.5, color="#f3f5f8", zorder=0)
    trained = "" if capability in table.trained else ", not trained"
    panel.set_title(f"{capability}{trained}", fontsize=10)
    panel.set_xlim(-0.02 * table.scale[capability], 1.02 * table.scale[capability])
    panel.set_xlabel(f"score, of {table.scale[capability]:g}", fontsize=9)
    panel.tick_params(labelsize=9)
    panel.grid(axis="x", color="#dddddd", linewidth=0.7)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
