"""Memory of the stages ``cache`` and ``distill`` as the rows grow: 100,000 against 1,000.

    python benchmarks/cache_memory.py [--rows 100000] [--out docs/results/cache-memory]

Writes buckets of noise pictures, every row with a prompt and a source of its own, and small SD3
teachers of random weights. Each stage runs in a process of its own on each of them, and `distill`
reads rows from everywhere.

What is measured is the peak of ``RssAnon``: the memory that a process has for itself. ``VmRSS`` is
told beside it, but also counts the pages of mapped files, which lie in the system's page cache:
they are shared, they are given back without being written when anybody needs the room, and how
many there are says how much is free, not what the process needs.

The growth of either stage should stay below 300 MB. The rows themselves take more than that on
disk, so that a stage that held them would not pass.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from danceflow.params.read import load_params, override
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 300e6
CAPABILITY, STAGES, SIDE = "local_edit", ("cache", "distill"), 16
SMALL = {
    "run.num_threads": 1,
    "family.transformer.num_layers": 1,
    "family.transformer.num_heads": 2,
    "family.transformer.head_dim": 8,
    "family.transformer.sample_size": SIDE,
    "family.text_encoder.num_layers": 1,
    "family.text_encoder.num_heads": 2,
    "family.text_encoder.width": 32,
    "data.world": "rows",
    "data.image_size": SIDE,
    "cache.num_steps": 1,
    "distill.init": "base",
    "distill.num_steps": 2,
    "distill.num_updates": 40,
    "distill.batch_size": 128,
    "distill.evaluate_every": 40,
    "distill.evaluate_samples": 1,
    "distill.grid_every": 40,
    "distill.log_every": 10,
    "evaluate.num_steps": 1,
    "tracking.enabled": False,
}


def write_project(root: Path, num_rows: int) -> None:
    """Write parameters, teachers, and a bucket of ``num_rows`` rows."""
    from danceflow.data.buckets import BucketWriter, encode_png
    from danceflow.models.family import family_class
    from danceflow.models.package import FROZEN_FOLDER, write_manifest
    from danceflow.scenes.prompts import vocabulary

    data = override(read_yaml(ROOT / "recipes" / "digits.yaml"), SMALL)
    data["data"]["input"]["tasks"] = {CAPABILITY: ["edit"]}
    sizes = {"num_train": num_rows, "num_validation": 4, "num_test": 4}
    data["data"]["buckets"] = {CAPABILITY: sizes}
    data["capabilities"] = {CAPABILITY: data["capabilities"][CAPABILITY] | {"guidance": 1.0}}
    data["teachers"] = {
        name: data["teachers"]["base"] | {"bucket": CAPABILITY} for name in ("base", "local")
    }
    data["gate"]["min_retention"] = {CAPABILITY: 0.9}
    (root / "params.yaml").write_text(json.dumps(data))  # JSON is YAML
    params, paths, words = load_params(root / "params.yaml"), Paths(root), vocabulary()

    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", num_rows), ("validation", 4)):
        with BucketWriter(paths.bucket(CAPABILITY) / split) as bucket:
            for row in range(count):
                source, target = (
                    encode_png(torch.rand(3, SIDE, SIDE, generator=generator)) for _ in range(2)
                )
                places = (row, row // len(words), row // len(words) ** 2)
                bucket.add(
                    {
                        "uid": f"{split}-{row}",
                        "category": "noise",
                        "variant": "standard",
                        "prompt": " ".join(words[place % len(words)] for place in places),
                        "source": source,
                        "target": target,
                        "spec": "",
                    }
                )
    (paths.buckets / "framing.json").write_text(json.dumps({"fit": "crop", "paper": "#ffffff"}))
    family = family_class("sd3").new(params.family.model_dump(mode="json"), words, seed=0)
    family.save_frozen(paths.teachers / FROZEN_FOLDER)
    for seed, name in enumerate(data["teachers"]):
        backbone = family.new_backbone(seed)
        with torch.no_grad():
            for param in backbone.parameters():
                param.add_(torch.randn(param.shape, generator=generator), alpha=0.1)
        family.save_backbone(backbone, paths.teacher(name))
    write_manifest(paths.teachers, {"family": "sd3", "teachers": list(data["teachers"])})


def held() -> dict[str, int]:
    """Return this process's resident memory in bytes: its own, and with the files it maps."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":\t", 1) for line in lines)
    return {name: int(sizes[name].split()[0]) * 1024 for name in ("RssAnon", "VmRSS")}


def watch(peaks: dict[str, int], ended: threading.Event) -> None:
    """Keep the most that this process has held, until it ends."""
    while not ended.wait(0.02):
        for name, size in held().items():
            peaks[name] = max(peaks.get(name, 0), size)


def run(stage: str, root: Path) -> None:
    """Run a stage in ``root`` and print what its process held at most."""
    from danceflow.data import cache
    from danceflow.ops import determinism
    from danceflow.train.distill import stage as distill

    params, paths = load_params(root / "params.yaml"), Paths(root)
    determinism.prepare_torch(params.run)
    peaks: dict[str, int] = {}
    ended = threading.Event()
    thread = threading.Thread(target=watch, args=(peaks, ended), daemon=True)
    thread.start()
    if stage == "cache":
        cache.run(params, paths, CAPABILITY)
    else:
        distill.run(params, paths)
    ended.set()
    thread.join()
    print(json.dumps(peaks))  # noqa: T201


def measure(num_rows: int) -> Iterator[dict[str, Any]]:
    """Yield what each stage takes for so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_project(root, num_rows)
        for stage in STAGES:
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, __file__, "--only", stage, folder],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                check=True,
            )
            shards = Paths(root).cache(CAPABILITY).iterdir()
            yield {
                "stage": stage,
                "rows": num_rows,
                **json.loads(done.stdout),
                "cache_on_disk": sum(file.stat().st_size for file in shards),
                "seconds": round(time.monotonic() - started, 1),
            }


def draw(path: Path, found: list[dict[str, Any]]) -> None:
    """Draw memory and disk against the number of rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    for stage in STAGES:
        rows = [item for item in found if item["stage"] == stage]
        label = f"{stage}: the process's own memory, most"
        panel.plot([i["rows"] for i in rows], [i["RssAnon"] / 1e6 for i in rows], "o-", label=label)
    disk = [item["cache_on_disk"] / 1e6 for item in rows]
    panel.plot([item["rows"] for item in rows], disk, "s--", color="0.6", label="cache on disk")
    panel.set(xscale="log", ylim=0, xlabel="rows", ylabel="MB")
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Measure both stages at growing numbers of rows, write the record and tell the growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "cache-memory")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        run(arguments.only[0], Path(arguments.only[1]))
        return
    found = []
    for num_rows in (arguments.rows // 100, arguments.rows // 10, arguments.rows):
        for item in measure(num_rows):
            found.append(item)
            print(json.dumps(item))  # noqa: T201
    growth = {}
    for stage in STAGES:
        peaks = [item["RssAnon"] for item in found if item["stage"] == stage]
        growth[stage] = peaks[-1] - peaks[0]
        print(f"{stage}: {growth[stage] / 1e6:.0f} MB more, limit {LIMIT / 1e6:.0f} MB")  # noqa: T201
    record = {"limit": LIMIT, "growth": growth, "runs": found}
    arguments.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    draw(arguments.out.with_suffix(".png"), found)
    sys.exit(max(growth.values()) > LIMIT)


if __name__ == "__main__":
    main()
