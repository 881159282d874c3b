"""The flow on a real Prefect server, real DVC and a real MLflow store."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from danceflow.errors import ConfigError, StoreAwayError, TrackingError, UsageError
from danceflow.ops.tracking import open_store
from danceflow.paths import Paths
from danceflow.registry.promotion import CHAMPION, Promotions
from flows import dvc_temporaries
from flows.dvc_stage import Outcome, StageFailedError, StageStoppedError

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("prefect_server")]

ALL = ["prepare", "teachers", "cache@t2i", "cache@local_edit", "distill", "report"]
EXECUTED = [name for name in ALL if name != "teachers"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeat a failed stage without the pause."""
    import flows.pipeline

    quick = flows.pipeline.run_stage.with_options(retry_delay_seconds=0)
    monkeypatch.setattr(flows.pipeline, "run_stage", quick)


@pytest.fixture
def untracked(project):
    """The project with tracking off: the stages take no time at all."""
    project.without_tracking()
    return project


def outcomes(result) -> dict[str, str]:
    return {stage.name: stage.outcome.value for stage in result.stages}


def newest_artifact(key: str) -> str:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        return client.read_artifacts(
            artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1
        )[0].data


def logged_lines(deadline_s: float = 30.0) -> Iterator[str]:
    """Yield messages that the server got, the newest first; they arrive in batches."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import LogSort

    end = time.monotonic() + deadline_s
    with get_client(sync_client=True) as client:
        while time.monotonic() < end:
            for record in client.read_logs(limit=200, sort=LogSort.TIMESTAMP_DESC):
                yield record.message
            time.sleep(0.5)


def test_three_doors_lead_to_one_result(project, settings):
    """The flow, ``dvc repro`` and ``dvc exp run`` agree; what comes second executes nothing."""
    from flows.pipeline import run_pipeline

    first = run_pipeline(root=project.root)
    assert project.began() == EXECUTED
    assert [stage.name for stage in first.stages] == ALL
    assert first.experiment is None
    assert first.summary["capabilities"]["t2i"]["student"] == 0.6
    assert not first.standing.champion
    assert first.standing.verdict.reasons[0].startswith("t2i: keeps 60.0%")
    table, picture = newest_artifact("danceflow-result"), newest_artifact("danceflow-samples")
    assert "| t2i | 0.6 | 1 | 0.1 | 60% (59% to 61%) | 4 |" in table
    assert picture.startswith("data:image/png;base64,")
    assert "distill: hello" in logged_lines()
    lock = (project.root / "dvc.lock").read_bytes()

    project.run("dvc", "repro")
    left = f".{dvc_temporaries._machine()}.1-1.{'x' * 22}.tmp"  # by a process that has gone
    leftover = next((project.root / ".dvc/cache/files/md5").iterdir()) / left
    leftover.write_bytes(b"half")
    second = run_pipeline(root=project.root)
    assert not leftover.exists()
    told = "removed 1 temporary files of killed commands from DVC's cache (0.0 MB)"
    assert told in logged_lines()
    assert set(outcomes(second).values()) == {Outcome.UNCHANGED.value, Outcome.FROZEN.value}
    assert (project.root / "dvc.lock").read_bytes() == lock
    project.commit()
    project.run("dvc", "exp", "run")
    assert project.began() == []
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert second.standing.version == first.standing.version == 1

    store = open_store(settings)
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.data.tags["gate.passed"] == "false"
    assert run.data.params["num_updates"] == "600"
    assert run.data.metrics["retention.t2i"] == 0.6
    assert run.data.tags["verdict"] == "fail"
    page = run.data.tags["prefect.flow_run_url"]
    assert page.endswith(f"/runs/flow-run/{run.data.tags['prefect.flow_run_id']}")
    here = f"http://127.0.0.1:5000/#/experiments/1/runs/{run.info.run_id}"
    assert run.data.tags["mlflow.note.content"] == f"[flow run]({page}) · [MLflow run]({here})"
    assert newest_artifact("danceflow-run") == f"[run in MLflow (`danceflow ui` shows it)]({here})"
    assert f"[flow run]({page}) · [MLflow run]({here})" in newest_artifact("danceflow-result")
    inputs = {item.dataset.name: item.dataset.digest for item in run.inputs.dataset_inputs}
    assert inputs == {
        out["path"].removeprefix("data/"): out["md5"]
        for name in ("prepare", "cache@t2i", "cache@local_edit")
        for out in project.lock()[name]["outs"]
    }

    check_an_experiment(project, settings)


def check_an_experiment(project, settings) -> None:
    """Other parameters run in a worktree, are kept as an experiment, and leave the checkout."""
    from flows.pipeline import run_pipeline

    project.commit()
    lock = (project.root / "dvc.lock").read_bytes()
    student = (project.root / "models" / "student" / "weights.json").read_bytes()
    result = run_pipeline(root=project.root, overrides={"distill.num_updates": 950}, name="longer")
    assert project.began() == ["distill", "report"]
    assert result.experiment == "longer"
    assert result.standing.champion
    assert project.status() == ""
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert (project.root / "models" / "student" / "weights.json").read_bytes() == student
    assert project.run("git", "worktree", "list").count("\n") == 1
    assert "longer" in project.run("dvc", "exp", "show", "--csv")

    store = open_store(settings)
    tagged = "tags.`dvc.experiment` = 'longer' and tags.`gate.passed` = 'true'"
    (run,) = store.client.search_runs([store.experiment_id], tagged)
    version = Promotions(store, settings.registered_model).holder(CHAMPION)
    assert (int(version.version), version.run_id) == (2, run.info.run_id)
    (ours,) = project.run(
        "git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/longer"
    ).split()
    said = project.run("git", "log", "-1", "--format=%B", ours)
    assert "danceflow: experiment longer" in said
    assert f"Prefect: {run.data.tags['prefect.flow_run_url']}" in said
    assert f"/runs/{run.info.run_id}" in said

    project.run("dvc", "exp", "run", "-S", "distill.num_updates=950", "--name", "by-dvc")
    assert project.began() == []
    assert project.run("git", "show", f"{ours}:dvc.lock") == (project.root / "dvc.lock").read_text()


def test_after_dvc_repro_the_flow_executes_nothing_and_registers(
    project, settings, mlflow_template, tmp_path, monkeypatch
):
    from flows.pipeline import run_pipeline

    project.run("dvc", "repro")
    assert project.began() == EXECUTED
    lock = (project.root / "dvc.lock").read_bytes()
    result = run_pipeline(root=project.root)
    assert project.began() == []
    assert (project.root / "dvc.lock").read_bytes() == lock
    assert result.standing.version == 1

    # Another machine: the cache is there, the store is not.
    shutil.copyfile(mlflow_template, tmp_path / "elsewhere.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere.db")
    again = run_pipeline(root=project.root)
    assert project.began() == []
    assert again.standing.version == 1
    store = open_store(settings)
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.data.tags["restored"] == "true"
    assert run.data.metrics["loss/t2i"] == 1 / 600
    assert run.data.metrics["loss/t2i/sigma_low"] == 0.5


def test_siblings_run_side_by_side_when_asked(untracked, monkeypatch):
    from flows.pipeline import run_pipeline

    monkeypatch.setenv("PAUSE", "8")
    result = run_pipeline(root=untracked.root, max_parallel=2)
    calls = [line for line in untracked.calls() if line.startswith("cache@")]
    assert [line.rpartition(" ")[2] for line in calls] == ["begins", "begins", "ends", "ends"]
    assert result.standing is None
    assert set(untracked.lock()) == set(ALL)
    untracked.run("dvc", "repro")
    assert untracked.began() == []


def test_a_passing_failure_is_repeated_and_bad_input_is_not(untracked, capfd):
    from flows.pipeline import run_pipeline

    untracked.trouble("cache@t2i", "1")
    untracked.trouble("distill", "2 always")
    with pytest.raises(
        StageFailedError, match="'distill' failed .exit code 2.: distill: someth"
    ) as e:
        run_pipeline(root=untracked.root)
    assert e.value.exit_code == 2
    assert "Traceback" not in "".join(capfd.readouterr())
    assert untracked.began() == [
        "prepare", "cache@t2i", "cache@t2i", "cache@local_edit", "distill",
    ]  # fmt: skip
    untracked.calm("distill")
    untracked.run("dvc", "repro")
    assert untracked.began() == ["distill", "report"]


def test_a_stage_that_keeps_failing_fails_the_flow_and_leaves_no_experiment(untracked):
    from flows.pipeline import run_pipeline

    untracked.trouble("prepare", "7 always")
    with pytest.raises(StageFailedError, match="exit code 7"):
        run_pipeline(root=untracked.root, overrides={"data.seed": 3})
    assert untracked.began() == ["prepare"] * 3
    assert untracked.status() == ""
    assert untracked.run("git", "worktree", "list").count("\n") == 1
    assert untracked.run("git", "for-each-ref", "refs/exps") == ""


def test_what_cannot_work_is_refused_before_any_stage(project, monkeypatch):
    from flows.pipeline import run_pipeline

    with pytest.raises(ConfigError, match="num_stepz"):
        run_pipeline(root=project.root, overrides={"distill.num_stepz": 3})
    with pytest.raises(UsageError, match="tracking.uri: holds a login or a token"):
        run_pipeline(root=project.root, overrides={"tracking.uri": "http://ann:secret@127.0.0.1:9"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all/mlflow.db")
    with pytest.raises(TrackingError, match="is no folder"):
        run_pipeline(root=project.root)
    assert project.began() == []
    assert project.status() == ""


def test_a_server_that_is_away_costs_no_stage_and_gets_the_run_later(
    project, settings, monkeypatch
) -> None:
    """Without a flow, and without a stage that would be executed for it."""
    from flows.pipeline import run_pipeline
    from flows.sync import sync

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = run_pipeline(root=project.root, enter_registry=False)
    assert project.began() == EXECUTED
    assert result.standing is None
    with pytest.raises(StoreAwayError, match="does not answer"):
        sync(project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (run_id,) = sync(project.root)
    store = open_store(settings)
    (run,) = store.client.search_runs([store.experiment_id])
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert run.data.params["num_updates"] == "600"
    assert run.data.metrics == {
        "loss/t2i": 1 / 600,
        "loss/t2i/sigma_low": 0.5,
        "score.t2i": 0.6,
        "retention.t2i": 0.6,
        "seconds": 7.0,
    }
    assert len(store.client.get_metric_history(run_id, "loss/t2i")) == 1

    def pictures() -> int:
        images = [item.path for item in store.client.list_artifacts(run_id, "images")]
        return sum("test~t2i+step+0+" in path and path.endswith(".png") for path in images)

    assert pictures() == 1
    (again,) = sync(project.root)
    assert again == run_id
    assert store.client.get_run(run_id).info.end_time == run.info.end_time
    metrics = Paths(project.root).metrics
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"seconds": 8}))
    assert sync(project.root) == (run_id,)
    assert store.client.get_run(run_id).data.metrics["seconds"] == 8.0
    assert pictures() == 1  # another result of the same pictures
    grid = Paths(project.root).evaluation_images("t2i") / "grid.png"
    grid.unlink()  # it may be a link into DVC's cache
    Image.new("RGB", (9, 9), "red").save(grid)
    assert sync(project.root) == (run_id,)
    assert pictures() == 2
    assert project.began() == []


def test_time_that_is_up_is_not_started_again(untracked):
    from flows.pipeline import run_pipeline

    untracked.trouble("prepare", "sleep")
    with pytest.raises(StageStoppedError, match="was ended after 4 s"):
        run_pipeline(root=untracked.root, stage_timeout_s=4)
    assert untracked.began() == ["prepare"]


def group_is_gone(number: int) -> bool:
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = place.joinpath("stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == number and state != "Z":
            return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_cancelling_ends_every_process_and_removes_the_worktree(untracked, number):
    from prefect.settings import PREFECT_API_URL

    untracked.trouble("distill", "sleep")
    code = (
        # Tests that were started in the background ignore SIGINT, and so would their children.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from flows.pipeline import run_pipeline; "
        "run_pipeline(root=Path(sys.argv[1]), overrides={'data.seed': 3})"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", code, str(untracked.root)],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    sleeping = untracked.calls_file.with_name("sleeping")
    deadline = time.monotonic() + 120
    while not sleeping.exists() or not sleeping.read_text():
        assert flow.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    flow.send_signal(number)
    assert flow.wait(60) != 0
    assert group_is_gone(int(sleeping.read_text()))
    assert untracked.run("git", "worktree", "list").count("\n") == 1
    assert untracked.status() == ""


def test_the_teachers_are_trained_again_only_by_their_own_flow(ran):
    from flows.pipeline import run_pipeline, run_teachers

    weights = ran.root / "models" / "teachers" / "weights.txt"
    assert weights.read_text() == "trained once"
    graph = (ran.root / "dvc.yaml").read_bytes()
    results = run_teachers(root=ran.root)
    assert ran.began() == ["teachers"]
    assert {result.name: result.outcome for result in results} == {
        "prepare": Outcome.UNCHANGED,
        "teachers": Outcome.RAN,
    }
    assert weights.read_text() == "trained again"
    assert (ran.root / "dvc.yaml").read_bytes() == graph
    run_pipeline(root=ran.root)
    assert ran.began() == ["cache@t2i", "cache@local_edit"]


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of the processes that run in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != "zombie" and Path(process.cwd()) == folder:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.parametrize("moment", ["dvc starts", "the stage runs", "the stage has ended"])
def test_teachers_that_are_killed_leave_the_graph_as_it_is(ran, moment):
    """And no process; the same command then does it all, and the lock is right."""
    from prefect.settings import PREFECT_API_URL

    from flows.dvc_graph import changed_stages

    graph, lock = ((ran.root / name).read_bytes() for name in ("dvc.yaml", "dvc.lock"))
    command = [sys.executable, "-m", "danceflow.cli", "teachers"]
    environment = {"PREFECT_API_URL": PREFECT_API_URL.value()}
    if moment == "the stage runs":
        ran.trouble("teachers", "sleep")

    def is_there() -> bool:
        if moment == "dvc starts":
            return any("--thaw" in line for line in processes_in(ran.root))
        if moment == "the stage runs":
            return ran.calls_file.with_name("sleeping").exists()
        calls = ran.calls_file
        return calls.exists() and "teachers ends" in calls.read_text()

    flow = subprocess.Popen(
        command,
        cwd=ran.root,
        env={**ran.environment, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not is_there():
        assert flow.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    flow.kill()
    assert flow.wait() == -signal.SIGKILL
    while processes_in(ran.root):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert (ran.root / "dvc.yaml").read_bytes() == graph
    weights = ran.root / "models" / "teachers" / "weights.txt"
    ended = moment == "the stage has ended"
    assert weights.read_text() == ("trained again" if ended else "trained once")
    changed = {line[3:] for line in ran.status().splitlines()}
    assert changed <= {"models/teachers/weights.txt", "dvc.lock"}
    assert (ran.root / "dvc.lock").read_bytes() == lock or "dvc.lock" in changed
    assert ran.lock().keys() == {"prepare", *ALL[1:]}

    ran.calm("teachers")
    done = subprocess.run(
        command,
        cwd=ran.root,
        env={**ran.environment, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (ran.root / "models" / "teachers" / "weights.txt").read_text() == "trained again"
    assert (ran.root / "dvc.yaml").read_bytes() == graph
    assert not changed_stages(ran.root, "teachers") & {"prepare", "teachers"}
    outs = ran.lock()["teachers"]["outs"]
    ran.run(sys.executable, "-m", "dvc", "commit", "-f", "teachers")
    assert ran.lock()["teachers"]["outs"] == outs


def test_a_run_trains_its_own_teachers_where_it_is_told_to(ran):
    """A recipe with other data cannot use the committed teachers."""
    from flows.pipeline import run_pipeline

    graph = (ran.root / "dvc.yaml").read_bytes()
    values = {"data.seed": 5}
    stages = run_pipeline(root=ran.root, overrides=values, with_teachers=True).stages
    assert ran.began()[:2] == ["prepare", "teachers"]
    assert {result.name: result.outcome for result in stages}["teachers"] is Outcome.RAN
    assert (ran.root / "dvc.yaml").read_bytes() == graph
    weights = ran.root / "models" / "teachers" / "weights.txt"
    assert weights.read_text() == "trained once"
