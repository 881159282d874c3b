"""The flow that watches: what it writes, records, asks and says."""

import shutil
import threading
import time
from pathlib import Path

import pytest
from params_files import dump_yaml

from danceflow.data.buckets import read_bucket
from danceflow.errors import UsageError
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.params.read import load_params, override
from danceflow.params.yaml12 import read_yaml
from danceflow.paths import Paths
from danceflow.service.served import ServedLog, ServedRow, now

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]


@pytest.fixture
def checkout(prepared, mlflow_template: Path, tmp_path: Path):
    """A project with a store; gives its parameters another ``watch.on_drift``."""
    root = tmp_path / "project"
    shutil.copytree(prepared[1].root, root)
    shutil.copyfile(mlflow_template, root / "mlflow.db")

    def prepare(on_drift: str) -> Path:
        changes = {"watch.min_requests": 8, "watch.on_drift": on_drift, "tracking.enabled": True}
        values = override(read_yaml(root / "params.yaml"), changes)
        (root / "params.yaml").write_text(dump_yaml(values))
        return root

    return prepare


def serve(root: Path, prompts: list[str]) -> None:
    rows = [ServedRow(now(), 1, "d" * 64, text, False, 2, 1.0, 0.1) for text in prompts]
    ServedLog(Paths(root).served, 1.0).write(rows)


def recorded(root: Path):
    params = load_params(root / "params.yaml")
    store = open_store(TrackingSettings.of(root, params.tracking))
    (run,) = store.client.search_runs([store.experiment_id])
    return run, [item.path for item in store.client.list_artifacts(run.info.run_id, "watch")]


def test_what_is_like_the_training_is_recorded_and_left(checkout, prefect_server) -> None:
    from flows.watch import run_watch, watch_table

    root = checkout("retrain")  # nothing is crossed, so nothing is trained
    serve(root, read_bucket(Paths(root).bucket("t2i"), "train")["prompt"])
    found = run_watch(root=root, source=str(Paths(root).student))
    assert found.followed == "no limit is crossed"
    run, artifacts = recorded(root)
    assert run.data.tags["danceflow.watch"] == "within"
    assert run.data.metrics["watch/generate/unknown_words"] == 0.0
    assert run.data.metrics["watch/crossed"] == 0.0
    assert artifacts == ["watch/watch.html", "watch/watch.json"]
    assert watch_table(found).splitlines()[-1] == str(found.folder / "watch.html")


@pytest.mark.parametrize("decision", ["leave", None])
def test_a_person_is_asked_about_a_difference(checkout, prefect_server, decision) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.flow_runs import resume_flow_run

    from flows.watch import run_watch

    root = checkout("ask")
    serve(root, ["zebras and whales in the deep blue sea"] * 12)
    paused = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
    )

    def answer() -> None:
        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                if found := client.read_flow_runs(flow_run_filter=paused):
                    said = {"decision": decision, "who": "Ada", "why": "a known customer"}
                    resume_flow_run(found[0].id, run_input=said)
                    return
                time.sleep(0.2)

    person = threading.Thread(target=answer)
    if decision is not None:
        person.start()
    found = run_watch(root=root, source=str(Paths(root).student), patience_s=120 if decision else 4)
    expected = {
        "leave": "limits are crossed; Ada says leave: a known customer",
        None: "limits are crossed; nobody answered within 4 s",
    }
    assert found.followed == expected[decision]
    run, _ = recorded(root)
    assert run.data.tags["watch.followed"] == found.followed
    assert "generate unknown_words" in run.data.tags["watch.crossed"]
    if decision is not None:
        person.join()


def test_a_question_needs_a_server_that_stays(checkout, monkeypatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.watch import require_page

    params = load_params(checkout("ask") / "params.yaml")
    needed = pytest.raises(UsageError, match="ask needs a Prefect server")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), needed:
        require_page(params)
    require_page(load_params(checkout("report") / "params.yaml"))
