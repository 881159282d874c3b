"""The comparison as one HTML page that asks for nothing else."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from danceflow.report.page import page as report_page

_TEMPLATES = Path(__file__).with_name("templates")
_STYLE = Path(report_page.__file__).with_name("templates")
_NAMES = {
    "unknown_words": "Prompts with unknown words",
    "length_shift": "Lengths of prompts",
    "embedding_shift": "Embeddings of prompts",
    "score_loss": "Scores of pictures",
    "generate": "Generated pictures",
    "edit": "Edited pictures",
    "within": "within",
    "crossed": "crossed",
    "unknown": "not known",
}


def render_page(found: Mapping[str, Any]) -> str:
    """Return the page of a comparison.

    Args:
        found: what ``Comparison.as_json`` gives. Prompts come from strangers: all is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES, _STYLE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["human"] = lambda name: _NAMES.get(name, name)
    environment.filters["minute"] = _minute
    crossed = [check for check in found["checks"] if check["decision"] == "crossed"]
    return environment.get_template("watch.html.j2").render(**found, crossed=crossed)


def _minute(time: str) -> str:
    """Return a time to the minute, as people read it."""
    return f"{datetime.fromisoformat(time):%Y-%m-%d %H:%M} UTC"
