"""JSON Schemas of the files that people write, for editors: generated from the sections."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danceflow.params.sections import Params, Section
from danceflow.params.sweep import SweepParams

SCHEMAS: Mapping[str, type[Section]] = {
    "params.schema.json": Params,
    "sweep.schema.json": SweepParams,
}
"""The files of ``docs/schema`` and what each is generated from."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_text(name: str) -> str:
    """Return the content of a file of ``SCHEMAS``."""
    schema = {"$schema": _DIALECT, **_plain(SCHEMAS[name].model_json_schema())}
    return json.dumps(schema, indent=1) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Write every schema below a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in SCHEMAS]
    for path in paths:
        path.write_text(schema_text(path.name), encoding="utf-8")
    return paths


def _plain(node: Any) -> Any:
    """Leave out titles, which repeat names, and lines' ends within descriptions.

    A mapping whose names have a form takes no other names.
    """
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {
        key: " ".join(value.split()) if key == "description" and isinstance(value, str) else value
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str))
    }
    if "patternProperties" in plain:
        plain["additionalProperties"] = False
    return {key: _plain(value) for key, value in plain.items()}
