import http.server
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from little_room import little_room
from PIL import Image

from danceflow.errors import StoreAwayError, TrackingError
from danceflow.ops.tracking import (
    VIEW,
    MlflowTracker,
    NoTracker,
    RunPointer,
    TrackingSettings,
    flatten,
    open_store,
    resolve_uri,
    resume_run,
    run_page,
    runs_page,
    save_view,
    source_tags,
    start_run,
    store_errors,
)

KIND = "mlflow.experimentKind"
PARAMS = {"distill": {"num_steps": 16, "method": "danceopd", "query": None}, "seed": 0}


@pytest.fixture
def pointer(tmp_path: Path) -> Path:
    return tmp_path / "reports" / "run.json"


@pytest.fixture
def record(pointer: Path) -> Path:
    """What a training wrote beside its pointer."""
    losses = {"capability": "t2i", "loss": 0.5, "sigma_bins": {"low": 0.25}, "grad_norm": 1.0}
    rows = [{"step": 10, **losses}, {"step": 20, "num_steps": 4, "scores": {"t2i": 0.75}}]
    folder = pointer.parent
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "grids").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "grids" / "t2i-000020.png")
    return folder


def begin(settings: TrackingSettings, pointer: Path) -> MlflowTracker:
    tracker = start_run(settings, pointer, name="danceopd", key="abc", params=PARAMS)
    assert isinstance(tracker, MlflowTracker)
    return tracker


def num_runs(settings: TrackingSettings) -> int:
    store = open_store(settings)
    return len(store.client.search_runs([store.experiment_id]))


# ------------------------------------------------------------------------------------ where


def test_the_default_store_is_a_database_in_the_checkout(tmp_path):
    assert resolve_uri(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_environment_goes_before_the_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one:5000")
    assert resolve_uri(tmp_path, "http://two:5000") == "http://one:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_uri(tmp_path, "http://two:5000") == "http://two:5000"


def test_a_relative_database_is_relative_to_the_checkout_not_to_the_working_folder(
    tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve_uri(tmp_path, "sqlite:///runs/a.db") == f"sqlite:///{tmp_path}/runs/a.db"
    assert resolve_uri(tmp_path, "sqlite:////srv/a.db") == "sqlite:////srv/a.db"


@pytest.mark.parametrize("uri", ["mlruns", "file:///srv/mlruns", "sqlite:///:memory:", "sqlite://"])
def test_a_store_that_cannot_be_kept_is_refused(tmp_path, uri):
    with pytest.raises(TrackingError, match=r"write sqlite:///<path"):
        resolve_uri(tmp_path, uri)


def test_a_place_that_is_none_is_one_clear_error_at_once_and_nothing_is_written(tracking, pointer):
    uri = "sqlite:////nowhere/at/all/mlflow.db"
    with pytest.raises(TrackingError, match=f"{uri}: .*is no folder"):
        begin(replace(tracking, uri=uri), pointer)
    assert not pointer.exists()


def test_a_server_that_is_away_stops_no_training(tracking, pointer, caplog):
    away = replace(tracking, uri="http://127.0.0.1:9")
    with pytest.raises(StoreAwayError, match="http://127.0.0.1:9 does not answer"):
        open_store(away)
    with start_run(away, pointer, name="danceopd", key="abc", params=PARAMS) as tracker:
        tracker.log_metrics({"loss": 0.5}, step=1)
    assert "the training goes on without it" in caplog.text
    assert "`danceflow sync` sends them when the store is back" in caplog.text
    noted = RunPointer.read(pointer)
    assert (noted.run_id, noted.status) == (None, "FINISHED")


class _Broken(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def broken_server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Broken) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_down_behind_its_proxy_is_an_error(tracking, pointer, broken_server):
    with pytest.raises(StoreAwayError, match="HTTP 503"):
        open_store(replace(tracking, uri=broken_server))


def test_a_database_that_is_none_is_an_error(tracking, pointer):
    (tracking.root / "mlflow.db").write_bytes(b"no database at all, only some words" * 100)
    with pytest.raises(TrackingError, match="mlflow.db"):
        begin(tracking, pointer)


def test_a_deleted_experiment_is_an_error(tracking, pointer):
    store = open_store(tracking)
    store.client.delete_experiment(store.experiment_id)
    with pytest.raises(TrackingError, match="'scenes' was deleted") as caught:
        begin(tracking, pointer)
    assert f"restore --experiment-id {store.experiment_id}" in str(caught.value)


def kind(settings: TrackingSettings) -> str | None:
    store = open_store(settings)
    found: str | None = store.client.get_experiment(store.experiment_id).tags.get(KIND)
    return found


def test_a_new_experiment_is_one_of_model_training(tracking):
    assert kind(tracking) == "custom_model_development"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("", "custom_model_development"),
        ("no_inferred_type", "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),  # somebody chose it
        ("finetuning", "finetuning"),
    ],
)
def test_an_experiment_that_is_there_gets_the_kind_unless_somebody_chose_another(
    tracking, before, after
):
    store = open_store(tracking)
    if before is None:
        store.client.delete_experiment_tag(store.experiment_id, KIND)
    else:
        store.client.set_experiment_tag(store.experiment_id, KIND, before)
    assert kind(tracking) == after


def code_of_the_page() -> str:
    import mlflow

    scripts = (Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js").glob("*")
    return "".join(path.read_text() for path in scripts if path.suffix == ".js")


def test_the_kind_is_one_that_mlflows_page_knows(tracking):
    """Read from the page's own code: another version may have other names."""
    code = code_of_the_page()
    assert f'"{KIND}"' in code
    assert f'CUSTOM_MODEL_DEVELOPMENT="{kind(tracking)}"' in code
    assert 'MACHINE_LEARNING="machine_learning"' in code
    assert '.get("workflowType")' in code
    store = open_store(tracking)
    assert runs_page("http://127.0.0.1:5001/", store) == (
        f"http://127.0.0.1:5001/#/experiments/{store.experiment_id}?workflowType=machine_learning"
    )


def test_a_view_of_the_columns_that_matter_is_saved_once(tracking):
    """The tag's name and words are those of the page's own code, which reads them."""
    store = open_store(tracking)
    for names in (["t2i"], ["t2i", "edit"], ["t2i", "edit"]):
        save_view(store, names)
    tags = store.client.get_experiment(store.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{VIEW}"])
    assert "metrics.`retention.edit`" in view["selectedColumns"]
    page = runs_page("http://h:1", store, VIEW)
    assert page.endswith(f"/runs?workflowType=machine_learning&viewStateShareKey={VIEW}")
    assert run_page("http://h:1", store, "abc") == "http://h:1/#/experiments/1/runs/abc"
    code = code_of_the_page()
    for word in ("mlflow.sharedViewState.", "viewStateShareKey", *view):
        assert word in code, word


def test_artifacts_lie_beside_the_database_whatever_the_working_folder(tracking, pointer):
    with begin(tracking, pointer) as tracker:
        run = tracker.store.client.get_run(tracker.run_id)
    folder = tracking.root / "mlartifacts"
    assert run.info.artifact_uri.startswith(folder.as_uri())


def test_opening_a_store_leaves_no_global_store_behind(tracking):
    import mlflow

    store = open_store(tracking)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    with store.as_current():
        assert mlflow.get_tracking_uri() == store.uri
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.get_tracking_uri() != store.uri


# ------------------------------------------------------------------------------- what is said


def raised(how: str) -> Exception:
    """An error of several lines, as the libraries raise them."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    text = "The following failed:\n##### File student #####\nNo such artifact: 'student'\n"
    broken = sqlalchemy.exc.OperationalError("SELECT 1", {"a": "secret"}, sqlite3.Error(text))
    wrapped = MlflowException(broken)
    wrapped.__cause__ = broken
    return {
        "mlflow": MlflowException(text),
        "sqlalchemy": broken,
        "sqlalchemy in mlflow": wrapped,
        "sqlite": sqlite3.OperationalError(text),
        "connection": requests.ConnectionError(text),
        "disk": PermissionError(text),
    }[how]


@pytest.mark.parametrize(
    "how", ["mlflow", "sqlalchemy", "sqlalchemy in mlflow", "sqlite", "connection", "disk"]
)
def test_an_error_is_told_whole_in_one_line(how):
    with pytest.raises(TrackingError) as caught, store_errors("sqlite:////x/mlflow.db"):
        raise raised(how)
    assert str(caught.value) == (
        "MLflow at sqlite:////x/mlflow.db: The following failed: ##### File student ##### "
        "No such artifact: 'student'"
    )


def test_a_database_without_room_is_one_error_and_no_traceback(tracking, capfd):
    store = open_store(tracking)
    told = pytest.raises(TrackingError, match="MLflow at sqlite:.*(disk I/O error|disk is full)")
    with little_room(0), told, store_errors(store.uri):
        store.client.create_experiment("another")
    assert "Traceback" not in capfd.readouterr().err
    store.client.create_experiment("another")


def test_an_error_without_words_is_told_by_its_name():
    told = pytest.raises(TrackingError, match="MLflow at http://x: ConnectionResetError$")
    with told, store_errors("http://x"):
        raise ConnectionResetError


LOGINS = [
    "http://ann:pa:ss@127.0.0.1:9",
    "http://tok_123@127.0.0.1:9",
    "http://ann:p@ss@127.0.0.1:9/path",
]


@pytest.mark.parametrize("uri", LOGINS)
def test_no_message_holds_a_login(tracking, pointer, uri, broken_server, caplog):
    login = uri.removeprefix("http://").rpartition("@")[0]
    port = broken_server.rpartition(":")[2]
    for address in (uri, uri.replace(":9", f":{port}")):
        with pytest.raises(TrackingError) as caught:
            open_store(replace(tracking, uri=address))
        assert login not in str(caught.value)
        assert "http://127.0.0.1" in str(caught.value)
    with pytest.raises(TrackingError) as caught, store_errors(uri):
        raise OSError(f"GET {uri}/api failed")
    assert login not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(TrackingError) as caught:
        resolve_uri(tracking.root, uri.replace("http:", "file:"))
    assert login not in str(caught.value)
    with begin(tracking, pointer) as tracker:
        tracker.store = replace(tracker.store, uri=uri)
        tracker.log_artifact(tracking.root / "nothing here")
    assert "did not take everything" in caplog.text
    assert login not in caplog.text


# ------------------------------------------------------------------------------------- what


def test_a_run_holds_what_was_logged(tracking, pointer, tmp_path):
    (tmp_path / "note.txt").write_text("a note")
    with begin(tracking, pointer) as tracker:
        tracker.log_metrics({"loss": 0.5, "loss/t2i": float("nan")}, step=10)
        tracker.log_metrics({"loss": 0.25}, step=20)
        tracker.log_image("grid/t2i", Image.new("RGB", (8, 8), "red"), step=20)
        tracker.log_dataset("t2i", "9dd4e461268c8034f5c8564e155c67a6.dir", "data/t2i", "training")
        tracker.log_artifact(tmp_path / "note.txt", "notes")
        tracker.set_tags({"gate": "open"})
    client, run_id = tracker.store.client, tracker.run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["distill.num_steps"] == "16"
    assert run.data.params["distill.query"] == "null"
    assert run.data.tags["gate"] == "open"
    assert run.data.tags["stage.key"] == "abc"
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")] == [
        (10, 0.5),
        (20, 0.25),
    ]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "9dd4e461268c8034f5c8564e155c67a6.dir"
    assert [item.path for item in client.list_artifacts(run_id, "notes")] == ["notes/note.txt"]
    assert any("grid~t2i" in item.path for item in client.list_artifacts(run_id, "images"))


def test_metrics_are_sent_in_batches(tracking, pointer):
    with begin(tracking, pointer) as tracker:
        for step in range(1500):
            tracker.log_metrics({"loss": 0.1, "rate": 1.0}, step)
    assert len(tracker.store.client.get_metric_history(tracker.run_id, "loss")) == 1500


def test_metrics_are_sent_while_the_stage_works(tracking, pointer):
    store = begin(tracking, pointer).store
    now = [0.0]
    tracker = MlflowTracker(store, RunPointer.read(pointer).run_id, clock=lambda: now[0])
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert store.client.get_metric_history(tracker.run_id, "loss") == []
    now[0] = 11.0
    tracker.log_metrics({"loss": 0.5}, step=2)
    assert len(store.client.get_metric_history(tracker.run_id, "loss")) == 2


def test_a_repeated_parameter_with_another_value_becomes_a_tag(tracking, pointer):
    with begin(tracking, pointer) as tracker:
        tracker.log_params({"seed": 1, "evaluate": {"num_samples": 4}})
    run = tracker.store.client.get_run(tracker.run_id)
    assert run.data.params["seed"] == "0"
    assert run.data.params["evaluate.num_samples"] == "4"
    assert run.data.tags["changed.seed"] == "1"


def test_a_digest_that_mlflow_cannot_keep_is_refused(tracking, pointer):
    with begin(tracking, pointer) as tracker, pytest.raises(TrackingError, match="longer than 36"):
        tracker.log_dataset("t2i", "0" * 64, "data/t2i", "training")


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_stage_that_fails_leaves_a_failed_run(tracking, pointer, error, status):
    with pytest.raises(error), begin(tracking, pointer) as tracker:
        raise error
    assert tracker.store.client.get_run(tracker.run_id).info.status == status


def test_a_store_that_goes_away_stops_no_training(tracking, pointer, caplog):
    database = tracking.root / "mlflow.db"
    with begin(tracking, pointer) as tracker:
        tracker.store.client.get_run(tracker.run_id)
        good = database.read_bytes()
        database.write_bytes(b"broken" * 1000)
        tracker.log_metrics({"loss": 0.5}, step=1)
        tracker.flush()
        tracker.log_image("grid", Image.new("RGB", (8, 8)), step=1)
        assert "not mirrored" in caplog.text
        database.write_bytes(good)
        tracker.log_metrics({"loss": 0.25}, step=2)
    assert "did not take everything (image grid)" in caplog.text
    history = tracker.store.client.get_metric_history(tracker.run_id, "loss")
    assert [metric.value for metric in history] == [0.5, 0.25]


def test_artifacts_that_cannot_be_written_stop_no_training(tracking, pointer, tmp_path, caplog):
    with begin(tracking, pointer) as tracker:
        (tracking.root / "mlartifacts").write_text("a file in the way")
        (tmp_path / "note.txt").write_text("a note")
        tracker.log_artifact(tmp_path / "note.txt")
        tracker.log_image("grid", Image.new("RGB", (8, 8)), step=1)
    assert "did not take everything (file note.txt, image grid)" in caplog.text
    assert tracker.store.client.get_run(tracker.run_id).info.status == "FINISHED"


def test_with_tracking_off_the_same_calls_do_nothing(tracking, pointer, record, tmp_path):
    off = replace(tracking, enabled=False, uri="http://127.0.0.1:9")
    first = start_run(off, pointer, name="danceopd", key="abc", params=PARAMS)
    later = resume_run(off, pointer)
    for tracker in (first, later):
        assert isinstance(tracker, NoTracker)
        with tracker:
            tracker.log_params({"seed": 0})
            tracker.log_metrics({"loss": 1.0}, step=1)
            tracker.log_image("grid", Image.new("RGB", (8, 8)), step=1)
            tracker.log_dataset("t2i", "0", "data", "training")
            tracker.log_artifact(tmp_path)
            tracker.set_tags({"a": "b"})
        assert tracker.run_id is None
    assert RunPointer.read(pointer).run_id is None


# ------------------------------------------------------------------------- one run per pipeline


def test_an_interrupted_training_goes_on_in_its_run(tracking, pointer):
    first = begin(tracking, pointer)
    with begin(tracking, pointer) as second:
        pass
    assert second.run_id == first.run_id
    assert num_runs(tracking) == 1


def test_a_later_stage_resumes_the_run(tracking, pointer, record):
    with begin(tracking, pointer) as first:
        pass
    with resume_run(tracking, pointer) as later:
        assert later.run_id == first.run_id
        assert first.store.client.get_run(first.run_id).info.status == "RUNNING"
        later.log_metrics({"evaluate/t2i": 0.5}, step=0)
    run = first.store.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["evaluate/t2i"] == 0.5
    assert num_runs(tracking) == 1


def test_what_was_recorded_last_counts_though_the_clock_was_set_back(
    tracking, pointer, record, monkeypatch
):
    with begin(tracking, pointer):
        pass
    for seconds, score, colour in ((0, 0.5, "red"), (3600, 0.25, "blue"), (7200, 0.125, "lime")):
        clock = SimpleNamespace(
            time=lambda behind=seconds: time.time() - behind, monotonic=time.monotonic
        )
        monkeypatch.setattr("danceflow.ops.tracking.tracker.time", clock)
        with resume_run(tracking, pointer) as run:
            run.log_metrics({"score.t2i": score}, step=20)
            run.log_image("test/t2i", Image.new("RGB", (8, 8), colour), step=0)
    client = open_store(tracking).client
    assert client.get_run(run.run_id).data.metrics["score.t2i"] == 0.125
    images = [item.path for item in client.list_artifacts(run.run_id, "images")]
    moments = {
        int(found[1]): path
        for path in images
        if (found := re.search(r"test~t2i.*timestamp\+(\d+)\+.*\.png", path))
    }
    assert len(moments) == 3
    with Image.open(client.download_artifacts(run.run_id, moments[max(moments)])) as last:
        assert last.convert("RGB").getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize("tracked", [True, False])
def test_a_run_that_the_store_does_not_know_is_rebuilt_once(
    tracking, pointer, record, mlflow_template, tmp_path, tracked
):
    if tracked:
        with begin(tracking, pointer):
            pass
    else:
        off = replace(tracking, enabled=False)
        start_run(off, pointer, name="danceopd", key="abc", params=PARAMS)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copyfile(mlflow_template, elsewhere / "mlflow.db")
    there = replace(tracking, root=elsewhere)
    before = pointer.read_bytes()

    with resume_run(there, pointer) as first:
        pass
    with resume_run(there, pointer) as second:
        pass

    assert first.run_id == second.run_id
    assert num_runs(there) == 1
    assert pointer.read_bytes() == before
    run = first.store.client.get_run(first.run_id)
    assert run.data.tags["restored"] == "true"
    assert run.data.params["distill.method"] == "danceopd"
    assert run.data.metrics == {
        "loss/t2i": 0.5,
        "loss/t2i/sigma_low": 0.25,
        "train/grad_norm": 1.0,
        "validation/t2i": 0.75,
    }
    client = first.store.client
    folders = {item.path for item in client.list_artifacts(first.run_id)}
    assert folders == {"images", "training"}
    images = [item.path for item in client.list_artifacts(first.run_id, "images")]
    assert len([path for path in images if "grid~t2i+step+20+" in path]) == 2


def test_a_deleted_run_is_rebuilt(tracking, pointer, record):
    with begin(tracking, pointer) as first:
        pass
    first.store.client.delete_run(first.run_id)
    with resume_run(tracking, pointer) as second:
        pass
    assert second.run_id != first.run_id


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such run pointer"), ("{", "is no run pointer"), ("{}", "is no run pointer")],
)
def test_an_unusable_pointer_is_named(tracking, pointer, content, message):
    if content is not None:
        pointer.parent.mkdir()
        pointer.write_text(content)
    with pytest.raises(TrackingError, match=message):
        resume_run(tracking, pointer)


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1.0}'])
def test_metrics_that_cannot_be_read_are_named_and_leave_no_run(tracking, pointer, tmp_path, line):
    start_run(replace(tracking, enabled=False), pointer, name="n", key="k", params={})
    path = pointer.with_name("metrics.jsonl")
    path.write_text('{"step": 1, "scores": {"t2i": 1.0}}\n' + line + "\n")
    with pytest.raises(TrackingError, match="metrics.jsonl: line 2"):
        resume_run(tracking, pointer)
    path.unlink()
    with pytest.raises(TrackingError, match="cannot be read"):
        resume_run(tracking, pointer)
    assert num_runs(tracking) == 0


LOCK = """
schema: '2.0'
stages:
  prepare:
    cmd: a
    outs:
    - path: data/buckets
      hash: md5
      md5: 9dd4e461268c8034f5c8564e155c67a6.dir
    - path: reports/data.json
      hash: md5
      md5: 27e01d3d367250e9e0b455a721fd7ea8
  frozen:
    cmd: b
"""


def inputs(tracker: MlflowTracker) -> dict[str, str]:
    run = tracker.store.client.get_run(tracker.run_id)
    return {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}


def test_the_inputs_that_dvc_keeps_are_recorded_under_dvc(tracking, pointer, record, monkeypatch):
    (tracking.root / "dvc.lock").write_text(LOCK)
    with begin(tracking, pointer) as by_hand:
        assert inputs(by_hand) == {}
    pointer.unlink()
    monkeypatch.setenv("DVC_STAGE", "distill")
    with begin(tracking, pointer) as under_dvc:
        assert inputs(under_dvc) == {"buckets": "9dd4e461268c8034f5c8564e155c67a6.dir"}
    under_dvc.store.client.delete_run(under_dvc.run_id)
    with resume_run(tracking, pointer) as rebuilt:
        assert inputs(rebuilt) == {"buckets": "9dd4e461268c8034f5c8564e155c67a6.dir"}


# ------------------------------------------------------------------------------------- tags


def test_tags_tell_a_changed_checkout_from_a_clean_one(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path)]
    assert "git.commit" not in source_tags(tmp_path)
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    clean = source_tags(tmp_path)
    assert clean["git.dirty"] == "false"
    assert len(clean["git.commit"]) == 40
    assert "dvc.experiment" not in clean
    (tmp_path / "a").write_text("2")
    monkeypatch.setenv("DVC_EXP_NAME", "brave-ray")
    changed = source_tags(tmp_path)
    assert changed["git.dirty"] == "true"
    assert changed["dvc.experiment"] == "brave-ray"


def test_flatten_gives_dotted_names():
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": "x", "f": None}) == {
        "a.b.c": "1",
        "d": "[1, 2]",
        "e": "x",
        "f": "null",
    }
