"""The service as a process: where it listens, what it follows, how it ends.

And MLflow's own server over the same version gives the same pictures.
"""

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from adapter_students import write_flux2_student
from listening import listening
from model_service import wait_for, write_student
from PIL import Image

from danceflow.models import pack
from danceflow.models.bases import BASES_VARIABLE
from danceflow.ops.tracking import Store, TrackingSettings, open_store, start_run
from danceflow.pictures import png_base64, png_bytes
from danceflow.registry.open import DIGEST_TAG, folder_digest, open_folder
from danceflow.registry.register import _log_model
from danceflow.service.token import VARIABLE
from flows.ports import free_ports

TOKEN = "the-token-of-this-test"
DANCEFLOW = (sys.executable, "-m", "danceflow.cli")
pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


def enter(store: Store, tracking: TrackingSettings, folder: Path, number: int) -> None:
    """Register a student as the version of a number and make it the champion."""
    pointer = folder.parent / f"run-{number}.json"
    with start_run(tracking, pointer, name="n", key=str(number), params={}) as tracker:
        run_id = str(tracker.run_id)
    digest = folder_digest(folder)
    source = _log_model(store, run_id, folder, digest)
    if number == 1:
        store.client.create_registered_model("student")
    with store.as_current():
        store.client.create_model_version(
            "student", source, run_id=run_id, tags={DIGEST_TAG: digest}
        )
    store.client.set_registered_model_alias("student", "champion", str(number))


def pictures(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(item["image"]) for item in answer.json()["images"]]


def test_a_process_follows_the_champion_and_ends_what_it_began(
    tracking: TrackingSettings, tmp_path: Path
) -> None:
    folders = [write_student(tmp_path / str(n) / "student", seed=n) for n in (1, 2)]
    students = [open_folder(folder, None, "cpu") for folder in folders]
    red = Image.new("RGB", (16, 16), "red")
    store = open_store(tracking)
    enter(store, tracking, folders[0], 1)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri, VARIABLE: TOKEN}
    options = ("--from", "models:/student@champion", "--port", "0", "--poll", "0.5",
               "--threads", "1")  # fmt: skip
    log = tmp_path / "log"
    with log.open("wb") as file:
        # As in a container: no checkout around it.
        process = subprocess.Popen(
            [*DANCEFLOW, "serve-model", *options], cwd=tmp_path, env=environment,
            stdout=file, stderr=file,
        )  # fmt: skip
    try:
        told = re.compile(r"listening at http://127\.0\.0\.1:(\d+)")
        wait_for(lambda: told.search(log.read_text()) or process.poll() is not None, 120)
        found = told.search(log.read_text())
        assert found is not None, log.read_text()
        assert listening(psutil.Process(process.pid)) == {int(found[1]): True}
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{found[1]}",
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=60.0,
            verify=False,
        )
        wait_for(lambda: is_ready(client) or process.poll() is not None, 120)
        asked = {"prompts": ["a red circle", "the blue square"], "seed": 7, "steps": 3}
        edit = {"prompts": ["add a circle"], "images": [png_base64(png_bytes(red))], "seed": 2}

        def made(student) -> tuple[list[bytes], list[bytes]]:
            generated = student.generate(asked["prompts"], 7, 3)
            changed = student.edit([red], edit["prompts"], 2)
            return files(generated), files(changed)

        first = client.post("/v1/generate", json=asked)
        assert first.headers["x-danceflow-model"] == "student/1"
        assert pictures(first) == made(students[0])[0]
        enter(store, tracking, folders[1], 2)
        wait_for(lambda: client.get("/readyz").json()["model"]["version"] == 2, 120)
        served = [
            pictures(client.post(path, json=body))
            for path, body in (("/v1/generate", asked), ("/v1/edit", edit))
        ]
        assert tuple(served) == made(students[1])
        assert mlflow_serves(store, tmp_path, asked, edit) == served
        # Asked to stop in the middle: long requests are answered, then the process ends.
        long = {"prompts": ["a red circle"] * 16, "steps": 100}
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(client.post, "/v1/generate", json=long)
            wait_for(lambda: batches(client) > 3)
            process.send_signal(signal.SIGTERM)
            assert len(pictures(begun.result())) == 16
        assert process.wait(60) in {0, -signal.SIGTERM, 128 + signal.SIGTERM}
    finally:
        process.kill()
        process.wait()
    assert TOKEN not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_an_adapter_on_a_shared_base_gives_what_the_command_line_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an edit of several pictures, of which the order counts."""
    monkeypatch.setattr(pack, "PACKED_BYTES", 0)
    folder = write_flux2_student(tmp_path / "student")
    assert not (folder / "base").exists()
    monkeypatch.setenv(BASES_VARIABLE, str(tmp_path / "teachers"))
    sources = [Image.new("RGB", (16, 16), name) for name in ("red", "navy", "white")]
    texts = [png_base64(png_bytes(source)) for source in sources]
    asked = {"prompts": ["a red circle"], "seed": 7, "steps": 2}
    edit = {"prompts": ["put them together"], "seed": 3, "steps": 2}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*DANCEFLOW, "serve-model", "--from", str(folder), "--port", "0", "--threads", "1"],
            cwd=tmp_path, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        subprocess.run(
            [*DANCEFLOW, "generate", *asked["prompts"], "--from", str(folder), "--seed", "7",
             "--num-steps", "2", "--out", str(tmp_path / "made")],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip
        told = re.compile(r"listening at (http://127\.0\.0\.1:\d+)")
        wait_for(lambda: told.search(log.read_text()) or process.poll() is not None, 240)
        found = told.search(log.read_text())
        assert found is not None, log.read_text()
        client = httpx.Client(base_url=found[1], timeout=120.0, verify=False)
        wait_for(lambda: is_ready(client) or process.poll() is not None, 240)
        (served,) = pictures(client.post("/v1/generate", json=asked))
        assert served == (tmp_path / "made" / "000.png").read_bytes()
        student = open_folder(folder, None, "cpu")
        seen = set()
        for order in ((0, 1, 2), (0, 2, 1), (0, 1)):
            given = {
                name: [texts[at]]
                for name, at in zip(("images", "images_2", "images_3"), order, strict=False)
            }
            (served,) = pictures(client.post("/v1/edit", json={**edit, **given}))
            several = [[sources[at] for at in order]]
            assert [served] == files(student.edit(several, edit["prompts"], 3, 2))
            seen.add(served)
        assert len(seen) == 3
    finally:
        process.kill()
        process.wait()


def is_ready(client: httpx.Client) -> bool:
    return client.get("/readyz").status_code == 200


def batches(client: httpx.Client) -> float:
    text = client.get("/metrics").text
    return float(re.search(r"^danceflow_batch_rows_count (\S+)", text, re.MULTILINE)[1])


def files(made: "list[Image.Image]") -> list[bytes]:
    return [png_bytes(picture, compress_level=6) for picture in made]


def mlflow_serves(store: Store, folder: Path, asked: dict, edit: dict) -> list[list[bytes]]:
    """What ``mlflow models serve`` answers to the same two requests."""
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/student@champion",
               "--env-manager", "local", "-p", str(port), "--workers", "1")  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri, "OMP_NUM_THREADS": "1"}
    log = folder / "mlflow-log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    if client.get("/ping").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            found = []
            for fields in (asked, edit):
                columns = {"prompt": fields["prompts"]}
                if "images" in fields:
                    columns["image"] = fields["images"]
                params = {name: fields[name] for name in ("seed", "steps") if name in fields}
                rows = [
                    dict(zip(columns, row, strict=True))
                    for row in zip(*columns.values(), strict=True)
                ]
                answer = client.post(
                    "/invocations", json={"dataframe_records": rows, "params": params}
                )
                assert answer.status_code == 200, answer.text
                found.append([base64.b64decode(r["image"]) for r in answer.json()["predictions"]])
            return found
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_others_may_not_ask_without_a_token(tmp_path: Path) -> None:
    options = ("--from", str(tmp_path / "student"), "--host", "0.0.0.0")
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [*DANCEFLOW, "serve-model", *options],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "error: --host 0.0.0.0: others could reach it, and there is no token; set "
        f"{VARIABLE}, or leave --host out\n"
    )


def test_a_folder_without_a_student_and_a_taken_port_are_told(tmp_path: Path) -> None:
    """With a token the address may be one that others reach, as in a container."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, message in (
            (("--port", str(port)), f"127.0.0.1 port {port}: cannot listen there: "),
            (
                ("--host", "0.0.0.0", "--port", "0"),
                f"{tmp_path / 'student'}: there is no student here",
            ),
        ):
            done = subprocess.run(
                [*DANCEFLOW, "serve-model", "--from", str(tmp_path / "student"), *options],
                env={**os.environ, VARIABLE: TOKEN}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (done.returncode, f"error: {message}" in done.stderr) == (2, True)
