"""A small world of every name, written: what the contract suite of worlds runs on."""

import shutil
from pathlib import Path
from typing import Any

from shaped_rows import shaped_data, write_rows
from tiny_project import ROOT, small_data

from danceflow.digits.raw import write_digits
from danceflow.params.read import override, parse_params
from danceflow.params.sections import DataParams
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.worlds.world import open_world

_SIZES = {"num_train": 24, "num_validation": 12, "num_test": 18}


def _scenes(root: Path) -> dict[str, Any]:
    data = small_data(("t2i", "local_edit", "global_edit"))
    data["data"]["buckets"] = {name: dict(_SIZES) for name in data["data"]["buckets"]}
    return data


def _rows(root: Path) -> dict[str, Any]:
    write_rows(root / "data" / "raw" / "pets")
    return shaped_data()


def _digits(root: Path) -> dict[str, Any]:
    write_digits(Paths(root).raw_digits, 60)
    data: dict[str, Any] = override(read_yaml(ROOT / "recipes" / "digits.yaml"), {})
    return data


_MAKERS = {"digits": _digits, "rows": _rows, "scenes": _scenes}


def write_world(name: str, root: Path) -> tuple[DataParams, Paths, dict[str, Any]]:
    """Write the buckets of a world below ``root``; a further world has its maker here."""
    data = parse_params(_MAKERS[name](root), "test").data
    assert data.world == name
    paths = Paths(root)
    shutil.rmtree(paths.buckets, ignore_errors=True)
    return data, paths, open_world(name).write(data, paths)
