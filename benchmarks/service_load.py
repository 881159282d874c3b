"""The model service under load on loopback: throughput, latency, wrong pictures, memory.

    python benchmarks/service_load.py --from models/student [--requests 10000] [--users 16]

Needs ``pip install 'danceflow[bench]'``. Starts ``danceflow serve-model``, asks every kind of
request alone, and then all of them again and again through many of locust's users at once. Each
answer must be the bytes of the same request alone. The service's resident memory is read every
second. The result is written as JSON.
"""

from locust import FastHttpUser, constant, task
from locust.env import Environment
from locust.exception import StopUser

# isort: split
# locust replaces Python's blocking calls, before anything else imports them.
import argparse
import base64
import io
import itertools
import json
import os
import platform
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import gevent
import httpx
import numpy as np
import psutil
from PIL import Image

NUM_KINDS = 40
PROMPTS = (
    "a red circle",
    "a photo of a blue square and a green ring",
    "two triangles",
    "a ring to the left of a cross",
    "a yellow diamond",
)
EDITS = ("make it grayscale", "change the background to white", "invert the colors")
MAX_GROWTH = 20e6  # bytes between the first and the last tenth after the warm-up
NUM_TIMED = 20


def kinds(steps: int) -> list[tuple[str, dict[str, Any]]]:
    """Return distinct requests, every fourth of them an edit."""
    rng = random.Random(0)
    found = []
    for number in range(NUM_KINDS):
        fields: dict[str, Any] = {"seed": rng.randrange(2**40), "steps": steps}
        if number % 4:
            count = 2 if number % 10 == 0 else 1
            found.append(("/v1/generate", {**fields, "prompts": rng.sample(PROMPTS, count)}))
            continue
        buffer = io.BytesIO()
        colour = tuple(rng.randrange(256) for _ in range(3))
        Image.new("RGB", (32, 32), colour).save(buffer, "PNG")
        images = [base64.b64encode(buffer.getvalue()).decode()]
        found.append(("/v1/edit", {**fields, "prompts": [rng.choice(EDITS)], "images": images}))
    return found


def pictures(answer: Mapping[str, Any]) -> list[str]:
    """Return the pictures of an answer as base64 text."""
    return [item["image"] for item in answer["images"]]


class Client(FastHttpUser):
    """One of locust's users: it asks for anything, at once again, and compares."""

    wait_time = constant(0)
    host = ""
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    expected: ClassVar[list[list[str]]] = []
    left: ClassVar[Any] = iter(())
    seconds: ClassVar[list[float]] = []
    wrong: ClassVar[list[int]] = []
    failed: ClassVar[list[str]] = []

    @task
    def ask(self) -> None:
        """Ask once."""
        number = next(self.left, None)
        if number is None:
            raise StopUser
        kind = number * 7 % NUM_KINDS
        path, fields = self.asked[kind]
        began = time.perf_counter()
        with self.client.post(path, json=fields, catch_response=True) as answer:
            self.seconds.append(time.perf_counter() - began)
            if answer.status_code != 200:
                self.failed.append(f"{answer.status_code} {str(answer.text)[:200]}")
                answer.failure(self.failed[-1])
            elif pictures(answer.json()) != self.expected[kind]:
                self.wrong.append(kind)
                answer.failure("another picture")


def start(arguments: argparse.Namespace, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Return the service's process and its address, once it is ready."""
    command = [
        *(sys.executable, "-m", "danceflow.cli", "serve-model", "--from", arguments.source),
        *("--port", "0", "--threads", str(arguments.threads), "--max-queue", "256"),
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"listening at (http://\S+)", log.read_text()):
            try:
                if httpx.get(f"{found[1]}/readyz", timeout=5).status_code == 200:
                    return process, found[1]
            except httpx.TransportError:
                pass
        time.sleep(0.2)
    process.kill()
    sys.exit(f"the service did not start:\n{log.read_text()}")


def ms_per_pass(client: httpx.Client) -> float:
    """Return the milliseconds of one evaluation of the network on one full batch."""

    def seconds(steps: int) -> float:
        began = time.perf_counter()
        answer = client.post("/v1/generate", json={"prompts": ["a red circle"], "steps": steps})
        answer.raise_for_status()
        return time.perf_counter() - began

    seconds(2)
    found = [seconds(NUM_TIMED + 1) - seconds(1) for _ in range(5)]
    return 1e3 * float(np.median(found)) / NUM_TIMED


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return latencies in milliseconds."""
    shares = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    return {
        name: round(1e3 * float(np.percentile(seconds, share)), 1) for name, share in shares.items()
    }


def cpu_name() -> str:
    """Return the processor's name."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()


def load(address: str, process: psutil.Process, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured."""
    Client.host, Client.asked = address, kinds(arguments.steps)
    with httpx.Client(base_url=address, timeout=120) as client:
        one_pass = ms_per_pass(client)
        model = client.get("/v1/model").json()
        Client.expected = [
            pictures(client.post(path, json=fields).raise_for_status().json())
            for path, fields in Client.asked
        ]
        alone = []
        for path, fields in itertools.islice(itertools.cycle(Client.asked), 2 * NUM_KINDS):
            began = time.perf_counter()
            client.post(path, json=fields).raise_for_status()
            alone.append(time.perf_counter() - began)
    Client.left = iter(range(arguments.requests))
    memory: list[tuple[int, int]] = []

    def watch() -> None:
        while True:
            memory.append((len(Client.seconds), process.memory_info().rss))
            gevent.sleep(1.0)

    environment = Environment(user_classes=[Client])
    runner = environment.create_local_runner()
    watcher = gevent.spawn(watch)
    began, load_before = time.perf_counter(), os.getloadavg()
    runner.start(arguments.users, spawn_rate=arguments.users)
    while len(Client.seconds) < arguments.requests:
        gevent.sleep(0.05)
    took = time.perf_counter() - began
    watcher.kill()
    runner.quit()
    metrics = httpx.get(f"{address}/metrics", timeout=60).text

    def metric(name: str) -> float:
        return float(re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)[1])  # type: ignore[index]

    # The first tenth of the requests is the warm-up: buffers and allocators grow to their size.
    steady = [rss for count, rss in memory if count >= arguments.requests // 10]
    tenth = max(1, len(steady) // 10)
    ends = [int(np.median(steady[:tenth])), int(np.median(steady[-tenth:]))]
    return {
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "load_average_before": round(load_before[0], 1),
            "load_average_after": round(os.getloadavg()[0], 1),
            "ms_per_pass": round(one_pass, 2),
            "pictures_per_pass": model["computed_together"],
        },
        "requests": len(Client.seconds),
        "users": arguments.users,
        "steps": arguments.steps,
        "seconds": round(took, 1),
        "requests_per_second": round(len(Client.seconds) / took, 1),
        "latency_ms": percentiles(Client.seconds),
        "latency_alone_ms": percentiles(alone),
        "pictures_per_batch": round(
            metric("danceflow_batch_rows_sum") / metric("danceflow_batch_rows_count"), 2
        ),
        "failed": len(Client.failed),
        "wrong_pictures": len(Client.wrong),
        "memory": {
            "after_warm_up_bytes": ends[0],
            "at_the_end_bytes": ends[1],
            "growth_bytes": ends[1] - ends[0],
            "highest_bytes": max(rss for _, rss in memory),
            "samples": memory[:: max(1, len(memory) // 40)],
        },
    }


def main() -> None:
    """Start the service, load it and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", default="models/student")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/service_load.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(arguments, Path(folder) / "log")
        try:
            found = load(address, psutil.Process(process.pid), arguments)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "benchmarks/service_load.py", *sys.argv[1:]])
    text = json.dumps({"command": command, **found}, indent=2) + "\n"
    text = re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text)
    arguments.out.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    is_bad = found["failed"] or found["wrong_pictures"]
    sys.exit(bool(is_bad or found["memory"]["growth_bytes"] > MAX_GROWTH))


if __name__ == "__main__":
    main()
