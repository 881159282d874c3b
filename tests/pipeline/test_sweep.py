"""Sweeps on a real Prefect server, real DVC and a real MLflow store."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from params_files import dump_yaml

from danceflow.errors import ConfigError
from danceflow.ops.tracking import open_store
from danceflow.params.read import load_params
from danceflow.report.tables.text import csv_text, markdown
from flows.cells import (
    SweepFailedError,
    kept_cells,
    plan_cells,
    record_cell,
    recorded_cells,
    sweep_table,
)
from flows.overview import experiments_table

pytestmark = pytest.mark.pipeline

GRAPH = """
# The real graph's shape up to the evaluation.
stages:
  prepare:
    cmd: python stage.py prepare
    deps: [stage.py, raw.csv]
    params: [data]
    outs: [data/buckets]
  teachers:
    frozen: true
    cmd: python stage.py teachers
    deps: [data/buckets]
    outs:
      - models/teachers:
          cache: false
  cache:
    matrix:
      capability: [t2i, local_edit, global_edit]
    cmd: python stage.py cache ${item.capability}
    deps: [stage.py, data/buckets, models/teachers]
    params: [cache]
    outs: ["data/cache/${item.capability}"]
  distill:
    cmd: python stage.py distill
    deps: [stage.py, data/cache]
    params: [distill]
    outs: [models/student, reports/distill]
  evaluate:
    matrix:
      capability: [t2i, local_edit, global_edit]
    cmd: python stage.py evaluate ${item.capability}
    deps: [stage.py, models/student]
    params: [evaluate]
    outs: ["reports/evaluate/${item.capability}.json"]
  report:  # beyond what the sweep asks for
    cmd: python stage.py report
    deps: [stage.py, reports/evaluate]
    outs: [reports/report.html]
    metrics:
      - reports/metrics.json:
          cache: false
"""

# A training of six updates with a checkpoint after each; trouble is made by files beside the calls.
STAGE = """
import json, os, sys, time
from pathlib import Path
import yaml

name, item = sys.argv[1], sys.argv[-1]
calls = Path(os.environ["CALLS"])
params = yaml.safe_load(Path("params.yaml").read_text())
distill = params["distill"]
who = f"{distill['method']}-{distill['seed']}"

def note(text):
    with calls.open("a") as file:
        print(text, file=file)

def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

if name in ("prepare", "cache"):
    note(f"{name} {item}".removesuffix(f" {name}"))
    write("data/buckets/rows" if name == "prepare" else f"data/cache/{item}/rows", item)
if name == "distill":
    work = Path(f".danceflow/work/{who}/step")
    step = int(work.read_text()) if work.exists() else 0
    note(f"distill {who} from {step}")
    if calls.with_name(f"fail-{who}").exists():
        print("the data is spoilt", file=sys.stderr)
        sys.exit(2)
    while step < 6:
        if step == 3 and calls.with_name(f"sleep-{who}").exists():
            write(calls.with_name("sleeping"), str(os.getpgid(0)))
            time.sleep(300)
        step += 1
        write(work, str(step))
    write("models/student", json.dumps(distill))
    row = {"step": 6, "capability": "t2i", "loss": 0.5, "sigma_bins": {}, "seconds": 40.0}
    write("reports/distill/metrics.jsonl", json.dumps(row))
if name == "evaluate":
    note(f"evaluate {who} {item}")
    score = {"danceopd": 0.6, "soft": 0.3, "joint": 0.1}[distill["method"]] + distill["seed"] / 7
    own = {"score": 0.9, "categories": {"one": 0.8, "two": 1.0},
           "variants": {"standard": 0.9, "reworded": 0.7},
           "metrics": {}, "field_gap": {}, "rows": []}
    student = {**own, "score": score, "categories": {"one": score / 3, "two": score},
               "variants": {"standard": score, "reworded": score / 9}}
    write(f"reports/evaluate/{item}.json", json.dumps({
        "capability": item, "scale": 1.0, "teacher": "teacher:x", "num_steps": 2, "extractor": "e",
        "training": {"num_updates": 6, "field_evaluations": 60}, "seconds": 0.1,
        "fields": {"student": student, "start": own, "teacher:x": own},
    }))
"""


@pytest.fixture
def ready(project, monkeypatch):
    """The project with this graph, committed, and repeats without a pause."""
    (project.root / "dvc.yaml").write_text(GRAPH)
    (project.root / "stage.py").write_text(STAGE)
    (project.root / "reports").mkdir()
    of_another_run = {"score": {"t2i": 9.0}, "verdict": "pass"}
    (project.root / "reports" / "metrics.json").write_text(json.dumps(of_another_run))
    project.commit()
    return project


def write_sweep(project, **changes) -> Path:
    content = {
        "name": "trial",
        "set": {"distill.num_updates": 6, "capabilities.global_edit.weight": 0.0},
        "variants": {
            "dance": {"distill.method": "danceopd"},
            "soft": {"distill.method": "soft"},
            "joint": {"distill.method": "joint", "seeds": [0]},
        },
        "seeds": [0, 1],
        "targets": ["evaluate"],
        "parallel": 2,
    }
    file = project.root / "sweeps" / "trial.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(dump_yaml(content | changes))
    project.commit()
    return file


def make(project, name: str) -> Path:
    file = project.calls_file.with_name(name)
    file.write_text("")
    return file


def clean(project) -> bool:
    worktrees = project.run("git", "worktree", "list").count("\n") == 1
    return worktrees and project.status() == ""


@pytest.mark.usefixtures("prefect_server")
def test_a_failing_cell_costs_the_others_nothing_and_both_stores_hold_the_same(
    ready, settings
) -> None:
    from flows.sweep import DONE, KEPT, run_sweep

    file = write_sweep(ready)
    trouble = make(ready, "fail-soft-1")
    with pytest.raises(SweepFailedError, match="1 of 5 cells failed, the others are kept") as e:
        run_sweep(file=file, root=ready.root)
    assert "trial-soft-s1" in str(e.value)
    assert "the data is spoilt" in str(e.value)
    calls = ready.calls()
    shared = ["prepare", "cache t2i", "cache local_edit", "cache global_edit"]
    assert sorted(calls[:4]) == sorted(shared)  # once, although two cells began at once
    trained = [call for call in calls[4:] if call.startswith("distill")]
    assert sorted(trained) == [
        f"distill {who} from 0"
        for who in ("danceopd-0", "danceopd-1", "joint-0", "soft-0", "soft-1")
    ]
    assert clean(ready)
    with pytest.raises(SweepFailedError, match="trial-soft-s1"):
        run_sweep(file=file, root=ready.root)
    assert ready.calls() == ["distill soft-1 from 0"]

    trouble.unlink()
    results = run_sweep(file=file, root=ready.root, parallel=1)
    assert sorted(result.state for result in results) == [DONE, *[KEPT] * 4]
    assert ready.calls()[0] == "distill soft-1 from 0"
    assert {r.state for r in run_sweep(file=file, root=ready.root)} == {KEPT}
    assert ready.calls() == []
    check_the_stores(ready, settings, file)


def check_the_columns(project) -> None:
    """DVC shows a cell's own numbers, not those of the checkout's run, and few of them."""
    rows = list(csv.DictReader(io.StringIO(project.run("dvc", "exp", "show", "--csv"))))
    names = ("t2i", "local_edit", "global_edit")
    alone = ("verdict", "field_evaluations", "seconds")
    wanted = {f"{kind}.{name}" for kind in ("score", "retention") for name in names} | {*alone}
    first_parameter = list(rows[0]).index("run.seed")
    assert wanted < set(rows[0])
    assert [name for name in list(rows[0])[:first_parameter] if "." in name or name in alone] == [
        name for name in rows[0] if name in wanted
    ]
    (cell,) = [row for row in rows if row["Experiment"].startswith("trial-dance-s0")]
    assert float(cell["score.t2i"]) == 0.6
    assert float(cell["retention.t2i"]) == 0.6667
    assert (cell["verdict"], cell["field_evaluations"], cell["seconds"]) == ("", "60", "40")
    lines = experiments_table(project.root).splitlines()
    assert lines[0].split() == [
        "experiment", *names, "verdict", "evaluations", "seconds", "changed"
    ]  # fmt: skip
    assert all(len(line) <= 120 for line in lines)
    (line,) = [line for line in lines if line.startswith("  trial-dance-s0")]
    assert line.split()[1:10] == [*["0.6", "67%"] * 3, "-", "60", "40"]
    assert "capabilities.global_edit.weight=0.0" in lines[lines.index(line) + 1]


def check_the_stores(project, settings, file: Path) -> None:
    tracking = load_params(project.root / "params.yaml").tracking
    kept = kept_cells(project.root, "trial")
    assert len(kept) == 5
    assert recorded_cells(project.root, tracking, "trial") == kept
    tables = [sweep_table(project.root, name, source) for name in (str(file), "trial")
              for source in ("dvc", "mlflow")]  # fmt: skip
    assert len({csv_text(table) for table, _ in tables}) == 1
    assert len({markdown(table) for table, _ in tables}) == 1
    assert all(missing == () for _, missing in tables)
    table = tables[0][0]
    assert [row.variant for row in table.rows] == ["dance", "soft", "joint"]
    assert table.capabilities == ("t2i", "local_edit", "global_edit")
    assert table.trained == {"t2i", "local_edit"}
    found = table.rows[0].estimates["student/t2i/category/one"]
    assert found.mean == pytest.approx((0.6 / 3 + (0.6 + 1 / 7) / 3) / 2)

    check_the_columns(project)
    store = open_store(settings)
    runs = store.client.search_runs([store.experiment_id], "tags.`sweep.sweep` = 'trial'")
    assert {run.info.run_name for run in runs} == set(kept)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.params["distill.num_updates"] == "6" for run in runs)

    # A run that was lost, and one that was never written, come back when the sweep is called.
    from flows.sweep import run_sweep

    store.client.delete_run(runs[0].info.run_id)
    run_sweep(file=file, root=project.root)
    assert recorded_cells(project.root, tracking, "trial") == kept
    # A cell that is recorded again stays one run.
    _, planned = plan_cells(project.root, file)
    record_cell(project.root, planned[0].plan.params, kept[planned[0].name])
    assert recorded_cells(project.root, tracking, "trial") == kept

    # Other code is another result, whatever is called the same; the run-cache has the rest.
    (project.root / "raw.csv.dvc").write_text(
        (project.root / "raw.csv.dvc").read_text() + "meta: {note: other}\n"
    )
    project.commit()
    run_sweep(file=file, root=project.root, parallel=1)
    assert project.calls() == []
    assert {record.code for record in kept_cells(project.root, "trial").values()}.isdisjoint(
        {record.code for record in kept.values()}
    )
    changed = write_sweep(project, seeds=[0, 1, 2])
    _, missing = sweep_table(project.root, str(changed), "dvc")
    assert [name.rpartition("-")[0] for name in missing] == ["trial-dance-s2", "trial-soft-s2"]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_ended_goes_on_where_it_was(ready, number) -> None:
    from prefect.settings import PREFECT_API_URL

    from flows.sweep import DONE, KEPT, run_sweep

    few = {"dance": {"distill.method": "danceopd"}}
    few["joint"] = {"distill.method": "joint", "seeds": [0]}
    file = write_sweep(ready, parallel=1, variants=few)
    nap = make(ready, "sleep-danceopd-1")
    code = (
        "import sys; from pathlib import Path; from flows.sweep import run_sweep; "
        "run_sweep(file=Path(sys.argv[2]), root=Path(sys.argv[1]))"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", code, str(ready.root), str(file)],
        env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value()},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    sleeping = ready.calls_file.with_name("sleeping")
    deadline = time.monotonic() + 240
    while not sleeping.exists() or not sleeping.read_text():
        assert flow.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    flow.send_signal(number)
    assert flow.wait(120) != 0
    stage = int(sleeping.read_text())
    if number == signal.SIGKILL:  # it had no chance to tidy up
        assert ready.run("git", "worktree", "list").count("\n") == 2
        os.killpg(stage, signal.SIGKILL)
    else:
        assert clean(ready)
        with pytest.raises(ProcessLookupError):
            os.killpg(stage, 0)
    nap.unlink()
    before = ready.calls()
    assert before[-1] == "distill danceopd-1 from 0"
    assert len(kept_cells(ready.root, "trial")) == 1
    results = run_sweep(file=file, root=ready.root)
    assert [result.state for result in results] == [KEPT, DONE, DONE]
    calls = ready.calls()
    assert calls[0] == "distill danceopd-1 from 3"
    assert not [call for call in calls if "danceopd-0" in call or call.startswith("cache")]
    assert clean(ready)


def test_bad_cells_are_all_told_before_anything_runs(ready) -> None:
    file = write_sweep(
        ready,
        variants={
            "typo": {"distill.metod": "danceopd"},
            "good": {"distill.method": "danceopd"},
            "unfit": {"distill.method": "danceopd", "distill.query": "logit_normal"},
        },
        seeds=[0, 1, 2],
        targets=["evaluat"],
    )
    with pytest.raises(ConfigError) as caught:
        plan_cells(ready.root, file)
    text = str(caught.value)
    assert "nothing was started, for 3 problems" in text
    assert "typo, seed 0 and 2 more: distill.metod: unknown parameter 'metod'" in text
    unfit = "distill: method 'danceopd': query 'logit_normal' leaves the grid"
    assert f"unfit, seed 0 and 2 more: {ready.root / 'params.yaml'}: {unfit}" in text
    assert "targets: unknown stage 'evaluat': did you mean 'evaluate'" in text
    file = write_sweep(ready, targets=["distill"])
    with pytest.raises(ConfigError, match="none of them needs evaluate"):
        plan_cells(ready.root, file)
    file = write_sweep(ready, recipe="recipes/lost.yaml")
    with pytest.raises(ConfigError, match=r"recipes/lost\.yaml: no such file"):
        plan_cells(ready.root, file)
    assert ready.calls() == []
