"""The studio in a thread, on a free port of loopback, over a small student that draws scenes."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from model_service import wait_for
from repository import ROOT

from danceflow.models.package import save_package
from danceflow.models.teachers import Teachers as Loaded
from danceflow.ops.tracking import TrackingSettings
from danceflow.params.read import load_params
from danceflow.service.app import Service
from danceflow.service.limits import Limits
from danceflow.service.live import FolderSource
from danceflow.service.serve import find_source
from danceflow.service.served import ServedLog
from danceflow.studio.app import Studio, build_studio
from danceflow.studio.models import Choice, LocalModels, Models, Teachers
from danceflow.studio.serve import Registered
from danceflow.studio.tree import Tree
from danceflow.studio.words import Words

WORDS = Words(
    ("a red circle", "a red circle and a blue square", "two rings", "a photo of a green cross"),
    ("make it grayscale", "make the red circle blue", "change the background to black"),
)


def write_scenes_student(folder: Path) -> Path:
    """Write the committed teacher of local edits as a student of 32 x 32 pixels."""
    teachers = Loaded(ROOT / "models" / "teachers", "sd3", ["local"], "cpu")
    folder.mkdir(parents=True)
    meta = {"num_steps": 4, "image_sizes": [[32, 32]], "teachers_digest": teachers.digest}
    save_package(folder, teachers.family, teachers.backbones["local"], meta)
    return folder


@dataclass(frozen=True)
class Running:
    """A studio that answers.

    Attributes:
        studio: its parts.
        address: where.
    """

    studio: Studio
    address: str

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=60.0, verify=False, **options)


@contextlib.contextmanager
def running_studio(
    folder: Path,
    student: Path | None,
    *,
    store: TrackingSettings | None = None,
    others: dict[str, Path] | None = None,
    models: Models | None = None,
    limits: Limits | None = None,
    token: Any = None,
) -> Iterator[Running]:
    """Run a studio whose tree lies in a folder; its teachers are the committed ones.

    Without a student the usual model is the champion of a store.
    """
    limits = limits or Limits()
    service = None
    if models is None:
        log = ServedLog(folder, 0.0)
        first = (
            FolderSource(student, "cpu") if student else find_source("champion", store, "cpu", None)
        )
        service = Service(first, limits, log, token=token)
        service.live.look()
        sources = {name: FolderSource(place, "cpu") for name, place in (others or {}).items()}
        teachers = Teachers(ROOT / "models" / "teachers", load_params(ROOT / "params.yaml"))
        models = LocalModels(
            Choice("student", "the student", "Students")
            if student
            else Choice("champion", "champion", "Students"),
            service.live,
            service.batcher,
            sources,
            Registered(store, "cpu", None),
            teachers,
        )
    studio = Studio(Tree(folder), models, limits, WORDS)
    app = build_studio(studio, service, token, is_open=token is not None)
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(studio, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
