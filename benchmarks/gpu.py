"""Updates of real size on a GPU against what `danceflow plan` says; started by benchmarks/gpu.sh.

    python benchmarks/gpu.py [--small] [--limit 570] [--out FILE] [--rows TEXT ...]

SD3.5-Medium- and FLUX.2-klein-shaped networks of random weights are made on the device. Each is
trained as its recipe says (`recipes/sd35_lora.yaml`, `recipes/flux2_klein.yaml`) at 512 and 1024
pixels: with the base in bfloat16, in nf4, in int8, and in bfloat16 with compiled blocks. The
embedded default runs from its data to its report.

A row is a model, a size and a variant. Rows of one model and variant share a process, which has a
time limit. A row is written as soon as it is done; one that fails is told with its error and ends
no other; what no longer fits the limit of all is skipped and told so. Rows that FILE holds as done
are not made again, and `--rows` names some: every row whose name holds one of the texts.

The plan is compared with the field evaluations that were made, for updates differ in how deep they
roll out. It counts a codec that no update asks, which is left out. `within` says whether a figure
is within 25 % of the plan's; it is told, and nothing depends on it.
"""

import argparse
import gc
import importlib.metadata
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.ops.files import write_json
from danceflow.params.read import override, parse_params
from danceflow.params.yaml12 import read_yaml

if TYPE_CHECKING:
    from random_model import Update

    from danceflow.params.sections import Params
    from danceflow.plan.architecture import Architecture
    from danceflow.plan.cost import Plan
    from danceflow.plan.devices import Device

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "gpu.json"
NEAR = 0.25
MODELS = {"sd3.5-medium": "sd35_lora", "flux2-klein-4b": "flux2_klein"}
VARIANTS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "nf4": {"run.base": "nf4"},
    "int8": {"run.base": "int8"},
    "compiled": {"run.compile": True},
}
EMBEDDED = "embedded default"
SIZES, SMALL_SIZES = (512, 1024), (64, 128)
NUM_ROWS = 4
MOST_UPDATES, ENOUGH_SECONDS = 4, 5.0
LEAST_SECONDS = {"bf16": 40.0, "nf4": 40.0, "int8": 40.0, "compiled": 60.0, EMBEDDED: 30.0}
"""What a process needs to start, read its network and make an update: with less none starts."""
MOST_SECONDS = {"bf16": 150.0, "nf4": 150.0, "int8": 150.0, "compiled": 240.0, EMBEDDED: 300.0}
SMALL = {
    "sd3": {
        "sample_size": 16,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "caption_projection_dim": 64,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 16,
        "dual_attention_layers": [0],
    },
    "flux2": {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "axes_dims_rope": [8, 8, 8, 8],
    },
}
SMALL_PARAMS = {
    "run.num_threads": 1,
    "distill.lora_rank": 4,
    "distill.num_steps": 4,
    "distill.batch_size": 2,
}
SMALL_EMBEDDED = {
    **{f"data.buckets.{name}.{split}": 16
       for name in ("t2i", "local_edit", "global_edit")
       for split in ("num_train", "num_validation", "num_test")},
    "run.num_threads": 1,
    "cache.num_samples": 2,
    "cache.num_steps": 2,
    "distill.num_steps": 2,
    "distill.num_updates": 2,
    "distill.batch_size": 6,
    "distill.evaluate_samples": 1,
    "evaluate.num_samples": 1,
    "evaluate.num_steps": 2,
    "evaluate.further_steps": [],
    "evaluate.seeds": [0],
    "evaluate.num_bootstrap": 10,
}  # fmt: skip
STAGES_IN_TURN = ("prepare", "cache", "distill", "evaluate", "report")


@dataclass(frozen=True)
class Row:
    """What is measured in one piece.

    Attributes:
        model: its network, or the embedded default.
        variant: how the network is held; the embedded default's name again.
        size: side in pixels.
    """

    model: str
    variant: str
    size: int

    @property
    def name(self) -> str:
        """What it is called in the record."""
        return self.model if self.model == EMBEDDED else f"{self.model} {self.size} {self.variant}"


def rows_of(sizes: Sequence[int], texts: Sequence[str] = ()) -> list[list[Row]]:
    """Return the rows of every process, those first that the others are compared with.

    Compiling takes longest and comes last, so that a limit costs nothing else.

    Args:
        sizes: sides in pixels.
        texts: a row's name holds one of them, if there are any.
    """
    groups = [
        [Row(model, variant, size) for size in sizes] for variant in VARIANTS for model in MODELS
    ]
    groups.insert(-len(MODELS), [Row(EMBEDDED, EMBEDDED, 32)])
    wanted = [
        [row for row in group if not texts or any(text in row.name for text in texts)]
        for group in groups
    ]
    return [group for group in wanted if group]


def left(groups: Sequence[Sequence[Row]], record: dict[str, Any]) -> list[list[Row]]:
    """Return the rows of every process that the record does not hold as done."""
    done = {row["name"] for row in record["rows"] if row["status"] == "done"}
    kept = [[row for row in group if row.name not in done] for group in groups]
    return [group for group in kept if group]


def seconds_for(group: Sequence[Row], seconds_left: float) -> float | None:
    """Return the time limit of a process, or ``None`` if too little is left to begin."""
    variant = group[0].variant
    return (
        None if seconds_left < LEAST_SECONDS[variant] else min(MOST_SECONDS[variant], seconds_left)
    )


def compared(measured: float, planned: float) -> dict[str, Any]:
    """Return a measured figure beside the planned one."""
    ratio = measured / planned
    return {
        "measured": measured,
        "planned": planned,
        "ratio": round(ratio, 3),
        "within": abs(ratio - 1) <= NEAR,
    }


# One process -------------------------------------------------------------------------------------


def recipe(row: Row, device: str, *, small: bool) -> "Params":
    """Return the parameters of a row: its model's recipe, changed as the row says."""
    name = f"{MODELS[row.model]}.yaml"
    data = read_yaml(ROOT / "recipes" / name)
    if small:
        for teacher in data["teachers"].values():
            teacher["adapter_rank"] = teacher["adapter_rank"] and SMALL_PARAMS["distill.lora_rank"]
    changes = {
        "run.device": device,
        "data.image_size": row.size,
        "data.input.min_side": 64,
        "tracking.enabled": False,
        **VARIANTS[row.variant],
        **(SMALL_PARAMS if small else {}),
    }
    return parse_params(override(data, changes), f"recipes/{name}, changed")


def architecture(row: Row, params: "Params", *, small: bool) -> "Architecture":
    """Return a row's network: the published sizes, or small ones of the same class."""
    from danceflow.plan.architecture import architecture_of

    found = architecture_of(params, row.model)
    if not small:
        return found
    sizes = {**found.transformer, **SMALL[found.family]}
    return replace(found, transformer=sizes, prompt_tokens=16, frozen={})


def measure(row: Row, folder: Path, device: str, *, small: bool) -> dict[str, Any]:
    """Return what a row's updates take, beside what the plan says of them.

    Args:
        row: which.
        folder: in which weights and caches of all rows lie.
        device: where it computes.
        small: whether its network is small.
    """
    from random_model import open_trainer, timed_update, write_cache, write_teachers

    from danceflow.ops import determinism
    from danceflow.plan.cost import plan_training
    from danceflow.plan.devices import device_of
    from danceflow.plan.training import training_of

    accept_limits()
    params = recipe(row, device, small=small)
    determinism.prepare(params.run)
    network = architecture(row, params, small=small)
    began = time.monotonic()
    teachers = folder / row.model / "teachers"
    ranks = {name: item.adapter_rank for name, item in params.teachers.items()}
    if not (teachers / "manifest.json").is_file():
        shutil.rmtree(teachers, ignore_errors=True)
        adapters = {name: rank for name, rank in ranks.items() if rank is not None}
        write_teachers(teachers, network, adapters, row.size, device)
    caches = {name: folder / row.model / str(row.size) / name for name in params.capabilities}
    for cache in caches.values():
        if not (cache / "index.json").is_file():
            shutil.rmtree(cache, ignore_errors=True)
            write_cache(cache, network, row.size, NUM_ROWS, params)
    made = time.monotonic()
    memory = Memory(device)
    work = Path(tempfile.mkdtemp(dir=folder))
    trainer = open_trainer(params, teachers, caches, work)
    loaded = time.monotonic()
    memory.begin()
    # The first update makes the optimiser's states, and what is compiled.
    first = timed_update(trainer).seconds
    updates: list[Update] = []
    with Utilisation(device) as utilisation:
        while len(updates) < MOST_UPDATES and sum(u.seconds for u in updates) < ENOUGH_SECONDS:
            updates.append(timed_update(trainer))
    seconds = sum(update.seconds for update in updates) / len(updates)
    evaluations = {
        part: sum(update.evaluations[part] for update in updates) / len(updates)
        for part in updates[0].evaluations
    }
    training, machine = training_of(params, is_brought=True), device_of(planned_device(device))
    plan = plan_training(training, network, machine)
    planned = planned_seconds(plan, evaluations)
    ideal = planned_seconds(
        plan_training(training, network, with_constants(machine, (1.0, 0.0, 0.0))), evaluations
    )
    held = sum(
        item.num_bytes
        for item in plan.memory
        if item.place == "device" and not item.name.startswith("vae")
    )
    return {
        "updates": len(updates),
        "samples_per_update": params.distill.batch_size,
        "evaluations_per_update": evaluations,
        "making_seconds": made - began,
        "loading_seconds": loaded - made,
        "first_update_seconds": first,
        "images_per_second": params.distill.batch_size / seconds,
        "utilisation": utilisation.mean,
        "seconds_per_update": compared(seconds, planned),
        "memory_bytes": compared(memory.peak(), held),
        "reserved_bytes": memory.reserved(),
        "planned_on": plan.device.name,
        "share_of_peak": {
            "measured": ideal / seconds,
            "planned": ideal / planned,
        },
        "parameters": plan.network.parameters,
    }


def planned_seconds(plan: "Plan", evaluations: Mapping[str, float]) -> float:
    """Return the plan's seconds of an update that made so many field evaluations.

    Args:
        plan: of the training.
        evaluations: by part of the ledger.
    """
    return sum(
        taken * evaluations[part] / plan.per_update[part]
        for part, taken in plan.update_seconds.items()
        if taken
    )


def with_constants(device: "Device", constants: Sequence[float]) -> "Device":
    """Return a machine by which time is told otherwise.

    Args:
        device: a machine of the plan.
        constants: seconds of arithmetic at the peaks, of a call of a module, and what a linear
            module of fewer bits takes more, each as many times as they would be at 1.
    """
    arithmetic, call, quantised = constants
    return replace(
        device,
        utilisation=1 / arithmetic if arithmetic else math.inf,
        call_seconds=call,
        quantised_call_seconds=quantised,
    )


def accept_limits() -> None:
    """Let ``torch.compile`` take a limit of variants where the machine's own torch has none.

    torch 2.11 has one for the whole process, which makes one row here.
    """
    import torch

    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return
    without: Callable[..., Any] = torch.compile

    def with_limit(*args: Any, recompile_limit: int, **options: Any) -> Any:
        torch._dynamo.config.recompile_limit = recompile_limit
        return without(*args, **options)

    module: Any = torch
    module.compile = with_limit


def planned_device(device: str) -> str:
    """Return the machine that the plan is asked for: this GPU if it knows it, else the usual."""
    import torch

    from danceflow.plan.devices import CPU, DEFAULT_GPU, table

    if not device.startswith("cuda"):
        return CPU
    name = torch.cuda.get_device_name(device).lower()
    known = [key for key in table() if all(word in name for word in key.split("-"))]
    return known[0] if known else DEFAULT_GPU


class Memory:
    """The most that tensors on a GPU hold, or what this process holds more than before."""

    def __init__(self, device: str) -> None:
        """Begin to measure."""
        import torch
        from random_model import resident_bytes

        self.cuda = torch.cuda if device.startswith("cuda") else None
        self.resident = resident_bytes
        gc.collect()
        if self.cuda is not None:
            self.cuda.empty_cache()
        self.before = resident_bytes()
        self.begin()

    def begin(self) -> None:
        """Forget the most that tensors on a GPU have held so far."""
        if self.cuda is not None:
            self.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """Return bytes; of a process those that it holds now."""
        if self.cuda is not None:
            return int(self.cuda.max_memory_allocated())
        return self.resident() - self.before

    def reserved(self) -> int | None:
        """Return what torch took from the GPU, or ``None`` without one."""
        return None if self.cuda is None else int(self.cuda.max_memory_reserved())


class Utilisation:
    """The share of the time in which the device computed: a GPU as its driver says, or a core.

    Attributes:
        mean: of the time within the context; ``None`` where the driver said nothing.
    """

    def __init__(self, device: str) -> None:
        """Take the device."""
        self.device = device
        self.mean: float | None = None
        self.ended = threading.Event()
        self.found: list[int] = []

    def __enter__(self) -> "Utilisation":
        """Begin."""
        self.began, self.processor = time.monotonic(), time.process_time()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        import torch

        while self.device.startswith("cuda") and not self.ended.wait(0.1):
            self.found.append(int(torch.cuda.utilization(self.device)))

    def __exit__(self, *_: object) -> None:
        """Take the mean."""
        self.ended.set()
        self.thread.join()
        if self.device.startswith("cuda"):
            self.mean = sum(self.found) / len(self.found) / 100 if self.found else None
        else:
            taken = time.process_time() - self.processor
            self.mean = taken / (time.monotonic() - self.began)


def embedded(row: Row, folder: Path, device: str, emit: "Emit", *, small: bool) -> dict[str, Any]:
    """Return seconds by stage, and the scores, of the embedded default from data to report.

    Its stages run in this process, one after the other, in a folder of their own; the committed
    teachers are used. What has ended is told after each stage.
    """
    from danceflow.paths import Paths
    from danceflow.stages import STAGES, run_stage

    root = folder / "embedded"
    shutil.rmtree(root, ignore_errors=True)
    for place in ("models/teachers", "data/raw", "reports/teachers.json"):
        source, target = ROOT / place, root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, target)
    changes = {"run.device": device, "tracking.enabled": False}
    data = override(read_yaml(ROOT / "params.yaml"), changes | (SMALL_EMBEDDED if small else {}))
    paths = Paths(root)
    paths.params.write_text(json.dumps(data))  # JSON is YAML
    memory, taken = Memory(device), {}
    for name in STAGES_IN_TURN:
        matrix = STAGES[name].matrix
        for item in data[matrix] if matrix else [None]:
            began = time.monotonic()
            run_stage(name, item, root)
            taken[f"{name}@{item}" if item else name] = time.monotonic() - began
            emit(row, {"status": "stopped", "stage_seconds": taken})
    return {
        "stage_seconds": taken,
        "seconds": sum(taken.values()),
        "memory_bytes": memory.peak(),
        "updates": data["distill"]["num_updates"],
        "metrics": json.loads((root / "reports" / "metrics.json").read_text()),
    }


class Emit:
    """Tells what is known of a row, a line of JSON each time; the last one counts."""

    def __init__(self, path: Path) -> None:
        """Take the file."""
        self.path = path

    def __call__(self, row: Row, found: dict[str, Any]) -> None:
        """Write a line."""
        with self.path.open("a") as file:
            file.write(json.dumps({"name": row.name, **found}) + "\n")


def work_on(rows: Sequence[Row], folder: Path, out: Path, *, small: bool) -> None:
    """Measure rows in this process, and tell each as soon as it is done."""
    import torch

    device, emit = "cpu" if small else "cuda", Emit(out)
    for row in rows:
        try:
            if row.model == EMBEDDED:
                found = embedded(row, folder, device, emit, small=small)
            else:
                found = measure(row, folder, device, small=small)
            emit(row, {"status": "done", **found})
        except Exception as error:  # the next row may do
            where = traceback.format_exception(error)[-3:]
            told = {"error": f"{type(error).__name__}: {error}", "where": "".join(where)}
            emit(row, {"status": "failed", **told})
        gc.collect()
        if not small:
            torch.cuda.empty_cache()


# All of them -------------------------------------------------------------------------------------


def run_process(
    group: Sequence[Row], folder: Path, seconds: float, *, small: bool
) -> list[dict[str, Any]]:
    """Return what a process of its own says of its rows within so many seconds."""
    out = Path(tempfile.mkdtemp(dir=folder)) / "rows.jsonl"
    own = [sys.executable, __file__, "--only", str(folder), str(out)]
    names = [word for row in group for word in (row.model, row.variant, str(row.size))]
    process = subprocess.Popen(
        [*own, *names, *(["--small"] if small else [])], start_new_session=True
    )
    problem = "the process ended"
    try:
        problem += f" with code {process.wait(seconds)}"
    except subprocess.TimeoutExpired:
        problem = f"stopped after {seconds:.0f} s, its time limit"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found: dict[str, dict[str, Any]] = {}
    for line in out.read_text().splitlines() if out.is_file() else []:
        row = json.loads(line)
        found[row["name"]] = row
    told = []
    for row in group:
        said = found.get(row.name, {"name": row.name, "status": "failed"})
        if said["status"] == "stopped" or ("error" not in said and said["status"] == "failed"):
            said |= {"status": "failed", "error": problem}
        told.append(said)
    return told


def machine(*, small: bool) -> dict[str, Any]:
    """Return what the figures were measured on and with."""
    import torch

    packages = ("diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao")
    versions = {"torch": str(torch.__version__)}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = "cpu" if small else torch.cuda.get_device_name()
    return {"device": device, "python": sys.version.split()[0], "versions": versions}


def main() -> None:
    """Measure what is asked for and not done yet, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small networks, on the CPU")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds of all rows together")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rows", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = SMALL_SIZES if arguments.small else SIZES
    if arguments.only is not None:
        folder, out, *words = arguments.only
        rows = [
            Row(model, variant, int(size))
            for model, variant, size in zip(words[::3], words[1::3], words[2::3], strict=True)
        ]
        work_on(rows, Path(folder), Path(out), small=arguments.small)
        return
    began = time.monotonic()
    record: dict[str, Any] = {"rows": []}
    if arguments.out.is_file():
        record = json.loads(arguments.out.read_text())
    record |= machine(small=arguments.small) | {"small": arguments.small, "near": NEAR}
    with tempfile.TemporaryDirectory(prefix="danceflow-gpu-") as folder:
        for group in left(rows_of(sizes, arguments.rows), record):
            seconds_left = arguments.limit - (time.monotonic() - began)
            seconds = seconds_for(group, seconds_left)
            if seconds is None:
                problem = f"{max(seconds_left, 0):.0f} of {arguments.limit:.0f} s were left"
                told = [{"name": r.name, "status": "skipped", "error": problem} for r in group]
            else:
                told = run_process(group, Path(folder), seconds, small=arguments.small)
            names = {row["name"] for row in told}
            record["rows"] = [r for r in record["rows"] if r["name"] not in names] + told
            write_json(arguments.out, record)
            for row in told:
                sys.stdout.write(f"{line_of(row)}\n")
                sys.stdout.flush()


def line_of(row: dict[str, Any]) -> str:
    """Return a row in words."""
    if row["status"] != "done":
        return f"{row['name']}: {row['status']}: {row['error']}"
    if "stage_seconds" in row:
        return f"{row['name']}: {row['seconds']:.0f} s in all"
    seconds, memory = row["seconds_per_update"], row["memory_bytes"]
    far = [
        f"{name} not within {NEAR:.0%} of the plan"
        for name, found in (("seconds", seconds), ("memory", memory))
        if not found["within"]
    ]
    busy = "unknown" if row["utilisation"] is None else f"{row['utilisation']:.0%}"
    return (
        f"{row['name']}: {seconds['measured']:.2f} s per update (planned "
        f"{seconds['planned']:.2f}), {memory['measured'] / 1e9:.2f} GB (planned "
        f"{memory['planned'] / 1e9:.2f}), {row['images_per_second']:.2f} images per second, "
        f"utilisation {busy}{'; ' if far else ''}{', '.join(far)}"
    )


if __name__ == "__main__":
    main()
