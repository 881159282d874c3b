"""Bad input and unfit surroundings on the real stages under ``dvc repro``.

One clear error that names the place, nothing half-written, and ``dvc repro`` works again when the
cause is gone.
"""

import re
import subprocess
import sys

import pytest

from danceflow.models.package import read_manifest

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

# Runs a command with a limit on the size of a file: what is larger finds no room.
LITTLE_ROOM = """
import os, resource, sys

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
os.execvp(sys.argv[2], sys.argv[2:])
"""
ROOM = 4_000_000  # bytes: fits DVC's and MLflow's databases, but no checkpoint


def the_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return what the stage said in the end; a traceback or a second error fails."""
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "Traceback" not in said
    (found,) = re.findall(r"^error: (.*(?:\n  .*)*)", said, re.MULTILINE)
    return found


def nothing_half_written(checkout) -> bool:
    return not [path for path in checkout.root.rglob("*.partial") if ".git" not in path.parts]


def test_bad_parameters(finished) -> None:
    checkout = finished.checkout
    good = checkout.paths.params.read_text()
    checkout.set("distill.num_queries", 99)
    bad = checkout.paths.params.read_text().replace("num_bootstrap", "num_bootstrp")
    checkout.paths.params.write_text(bad)
    text = the_error(checkout.call("dvc", "repro"))
    assert f"{checkout.paths.params}: 2 problems" in text
    assert "distill.num_queries: 99 queries do not fit into num_steps = 4" in text
    assert "unknown parameter 'num_bootstrp': did you mean 'num_bootstrap'" in text
    assert nothing_half_written(checkout)
    checkout.paths.params.write_text(good)
    assert checkout.dvc("repro") == []
    assert checkout.status() == ""
    assert checkout.paths.student.is_dir()


def test_truncated_weights(finished) -> None:
    checkout = finished.checkout
    weights = next(checkout.paths.teacher("base").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    text = the_error(checkout.call("dvc", "repro"))
    assert text.startswith(f"{weights}: the file is truncated or was changed")
    assert nothing_half_written(checkout)
    weights.write_bytes(whole)
    assert checkout.dvc("repro") == []
    assert checkout.status() in {"", " M dvc.lock\n"}  # the frozen stage's entry is written anew


def test_a_server_that_is_away_and_then_a_full_disk(finished) -> None:
    checkout = finished.checkout
    checkout.set("distill.num_updates", 6)
    checkout.set("tracking.experiment", "recovery")  # beside the pipeline's only run
    training = ("dvc", "repro", "--single-item", "distill")
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = checkout.call(*training, environment=away)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert "MLflow at http://127.0.0.1:9 does not answer" in said
    assert "nothing of the run was recorded; its files are complete" in said
    assert read_manifest(checkout.paths.student)["num_updates"] == 6

    checkout.set("distill.num_updates", 8)
    text = the_error(checkout.call(sys.executable, "-c", LITTLE_ROOM, str(ROOM), *training))
    assert re.match(
        r"\S+/checkpoint\.safetensors: larger than .* lets a file be; nothing was kept", text
    )
    assert not checkout.paths.student.exists()
    assert not checkout.paths.distill_report.exists()
    assert nothing_half_written(checkout)

    assert checkout.dvc(*training[1:]) == ["distill"]
    assert read_manifest(checkout.paths.student)["num_updates"] == 8
