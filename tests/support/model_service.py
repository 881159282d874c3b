"""The model service in a thread, on a free port of loopback, over a tiny student."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from tiny_models import awake, small_sd3

from danceflow.models.package import save_package
from danceflow.service.app import Service, build_app

META = {"num_steps": 2, "image_sizes": [[16, 16]]}


def write_student(folder: Path, seed: int = 1) -> Path:
    """Write a student of random weights, 16 x 16 pixels; another seed is another student."""
    family = small_sd3()
    folder.mkdir(parents=True)
    save_package(folder, family, awake(family, seed), META)
    return folder


@dataclass(frozen=True)
class Running:
    """A service that answers.

    Attributes:
        service: its parts.
        address: where.
        server: to be told to stop.
    """

    service: Service
    address: str
    server: uvicorn.Server

    def client(self) -> httpx.Client:
        # Without certificates, which take longer to read than a picture to make.
        return httpx.Client(base_url=self.address, timeout=60.0, verify=False)

    def metric(self, line: str) -> float:
        """The value of a metric, 0 where it has none yet."""
        text = self.client().get("/metrics").text
        found = [row.rpartition(" ")[2] for row in text.splitlines() if row.startswith(f"{line} ")]
        return float(found[0]) if found else 0.0


@contextlib.contextmanager
def running(service: Service) -> Iterator[Running]:
    config = uvicorn.Config(
        build_app(service), port=0, log_config=None, access_log=False, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(service, f"http://127.0.0.1:{port}", server)
    finally:
        server.should_exit = True
        thread.join()


def wait_for(is_so, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
