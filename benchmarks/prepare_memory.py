"""Memory of the stage ``prepare`` as a table grows: 100,000 rows against 1,000 in the same run.

    python benchmarks/prepare_memory.py [--rows 100000] [--side 32]

Writes parquet tables of noise pictures, prepares each in a process of its own and prints the peak
of that process's resident memory. The growth from the small to the large table should stay below
300 MB.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from danceflow.params.read import load_params
from danceflow.params.yaml12 import read_yaml

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300e6
BASE_ROWS = 1000


def write_table(path: Path, num_rows: int, side: int) -> None:
    """Write a parquet table of ``num_rows`` pictures of noise with prompts."""
    schema = pa.schema([("text", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="NONE") as writer:
        for rows in _groups(num_rows, side):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _groups(num_rows: int, side: int) -> Iterator[list[dict[str, Any]]]:
    generator = np.random.default_rng(0)
    for start in range(0, num_rows, 500):
        rows = []
        for number in range(start, min(start + 500, num_rows)):
            levels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(levels).save(buffer, format="PNG", compress_level=1)
            rows.append({"text": f"picture {number}", "image": buffer.getvalue()})
        yield rows


def write_params(root: Path, num_rows: int, side: int) -> None:
    """Write the parameters of the digits recipe, reading the table in ``root``."""
    data = read_yaml(ROOT / "recipes" / "digits.yaml")
    data["data"]["image_size"] = side
    data["data"]["input"] |= {
        "path": "table.parquet",
        "columns": {"prompt": "text", "target": "image"},
        "tasks": {},
        "min_side": 8,
    }
    sizes = {"num_train": num_rows, "num_validation": num_rows // 10, "num_test": num_rows // 10}
    data["data"]["buckets"] = {"make": sizes}
    data["capabilities"] = {"make": data["capabilities"]["make"]}
    data["teachers"] = {"base": data["teachers"]["base"]}
    data["gate"]["min_retention"] = {"make": 0.9}
    data["distill"]["init"] = "base"
    (root / "params.yaml").write_text(json.dumps(data))  # JSON is YAML


def prepare(root: Path) -> None:
    """Prepare the table in ``root`` and print the peak of the resident memory in bytes."""
    from danceflow.paths import Paths
    from danceflow.worlds.prepare import run

    run(load_params(root / "params.yaml"), Paths(root))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # noqa: T201


def measure(num_rows: int, side: int) -> tuple[int, float]:
    """Return the peak of the resident memory in bytes and the seconds of one preparation."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_table(root / "table.parquet", num_rows, side)
        write_params(root, num_rows, side)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, "--only", folder],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            check=True,
        )
        return int(done.stdout), time.monotonic() - started


def main() -> None:
    """Measure both tables and print the growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        prepare(arguments.only)
        return
    peaks = []
    for num_rows in (BASE_ROWS, arguments.rows):
        peak, seconds = measure(num_rows, arguments.side)
        peaks.append(peak)
        print(f"{num_rows:>7} rows: peak {peak / 1e6:.0f} MB, {seconds:.0f} s")  # noqa: T201
    growth = peaks[1] - peaks[0]
    print(f"growth: {growth / 1e6:.0f} MB, limit {LIMIT / 1e6:.0f} MB")  # noqa: T201
    sys.exit(growth > LIMIT)


if __name__ == "__main__":
    main()
