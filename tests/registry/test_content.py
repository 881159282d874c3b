import json
import socket

import pytest
from registry_commands import NAME, at_once, killed_at, register

from danceflow.ops.processes import process_mark
from danceflow.ops.tracking import TrackingSettings, open_store, start_run
from danceflow.registry.content import clear_uploads


@pytest.fixture
def trained(tracking: TrackingSettings, tmp_path):
    """A store with a run, and a student in a folder."""
    with start_run(tracking, tmp_path / "run.json", name="n", key="k", params={}):
        pass
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "manifest.json").write_text(
        json.dumps({"num_steps": 4, "family": "sd3", "files": {}})
    )
    return open_store(tracking), folder


def versions(store) -> list[int]:
    found = store.client.search_model_versions(f"name = '{NAME}'")
    return sorted(int(version.version) for version in found)


def logged(store) -> list[str]:
    found = store.client.search_logged_models([store.experiment_id])
    return sorted(str(model.status) for model in found)


@pytest.mark.pipeline
def test_registered_at_once_one_content_is_one_version(trained, tracking):
    store, folder = trained
    answers = at_once([(register, tracking, folder)] * 3)
    assert [error for error, _ in answers] == ["", "", ""], answers
    assert sorted(said for _, said in answers) == ["1 False", "1 False", "1 True"]
    assert versions(store) == [1]
    assert logged(store) == ["READY"]


@pytest.mark.pipeline
def test_a_registration_that_was_killed_leaves_nothing_behind_the_next(
    mlflow_template, tmp_path, trained
):
    _, folder = trained
    left = set()
    for write in range(99):
        root = tmp_path / str(write)
        root.mkdir()
        (root / "mlflow.db").write_bytes(mlflow_template.read_bytes())
        settings = TrackingSettings(root, True, None, "scenes", NAME)
        with start_run(settings, root / "run.json", name="n", key="k", params={}):
            pass
        store = open_store(settings)
        if not killed_at(write, register, settings, folder):
            break
        left |= set(logged(store))
        number, _ = register(settings, folder).split()
        assert versions(store) == [int(number)]
        assert logged(store) == ["READY"]
    assert write >= 4
    assert left >= {"PENDING", "READY"}


@pytest.mark.parametrize(
    ("owner", "stays"),
    [
        ({"host": socket.gethostname(), "process": "1-1"}, False),
        ({"host": socket.gethostname(), "process": None}, True),  # None: this one
        ({"host": "elsewhere", "process": "1-1"}, True),
        (None, True),
    ],
)
def test_only_what_nobody_uploads_is_taken_away(trained, owner, stays):
    store, _ = trained
    tags = None
    if owner is not None:
        owner["process"] = owner["process"] or process_mark()
        tags = {"student.uploaded_by": json.dumps(owner)}
    store.client.create_logged_model(store.experiment_id, name="student", tags=tags)
    clear_uploads(store)
    assert logged(store) == (["PENDING"] if stays else [])
