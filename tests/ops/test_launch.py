"""Two processes give what one gives; one that dies ends the others, and a retry goes on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import in_group
import psutil
import pytest
from in_group import CAPABILITIES, Stopping, trainer_of
from meeting import run_params
from params_files import dump_yaml
from repository import ROOT
from tiny_project import as_a_stage_runs, cached_project, small_data, small_params
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from training_record import read_metrics

from danceflow.data.cached_rows import INDEX
from danceflow.errors import ConfigError, StageError, UsageError
from danceflow.method import METHODS
from danceflow.models.package import read_manifest
from danceflow.models.teachers import Teachers
from danceflow.ops import launch
from danceflow.ops.launch import MACHINE_RANK, MAIN_ADDRESS, NUM_MACHINES
from danceflow.paths import Paths
from danceflow.train.distill import stage as distill
from danceflow.train.state import load_checkpoint

COMMON: dict[str, Any] = {
    "num_updates": 2,
    "batch_size": 8,
    "capabilities_per_update": "all",
    "optimizer": "adamw",
    "learning_rate": 0.001,
    "student": "full",
}
GROUPED = {"group_size": 2}
CASES = {
    f"method {name}": GROUPED if method.group_size > 1 else {}
    for name, method in METHODS.items()
    if method.trains
} | {
    "adapter": {"student": "lora", "capabilities_per_update": "one", "optimizer": "muon"},
    "uneven": {"batch_size": 5, "capabilities_per_update": "balanced"},
    "one sample": {"batch_size": 1, "capabilities_per_update": "one"},
    "stratified": {"coupling": "stratified"},
    "noised": {"noised": {"t2i": 0.5, "local_edit": 0.25}},
    "normalised": {"loss_normalisation": 0.5, "num_updates": 3},
    "average": {"objective": "dmd-ema"},
    "budget": {"max_field_evaluations": 150, "num_updates": 9, "query": "curriculum"},
}
REPLAY = COMMON | {"updates_per_rollout": 4, "num_updates": 8, "checkpoint_every": 4}
SHARDED = {
    "sharded": COMMON | {"batch_size": 5},
    "sharded average": COMMON | {"objective": "dmd-ema", "batch_size": 1},
    "sharded from a whole": REPLAY,
}
RELATIVE = 1e-5


def case(name: str) -> dict[str, Any]:
    method = {"method": name.removeprefix("method ")} if name.startswith("method ") else {}
    return {**COMMON, **method, **CASES[name]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with as_a_stage_runs():
        return cached_project(tmp_path_factory.mktemp("together"), CAPABILITIES).root


def teachers_of(project: Path) -> Teachers:
    return Teachers(Paths(project).teachers, "sd3", ["base", "local"], "cpu")


@pytest.fixture(scope="module")
def ranks() -> Any:
    """What processes of a group import from."""
    with pytest.MonkeyPatch.context() as patch:
        places = [str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(places))
        yield


@pytest.fixture(scope="module")
def found(project: Path, tmp_path_factory: pytest.TempPathFactory, ranks: None) -> Any:
    """What one process has found, and what two have, which end a training that one has begun."""
    jobs = {
        "caches": CAPABILITIES,
        "trainings": {name: case(name) for name in CASES} | {"replay": REPLAY},
        "sharded": SHARDED,
        "begun": REPLAY,
        "finetune": {"num_updates": 2, "batch_size": 5, "num_samples": 40},
        "pictures": True,
        "evaluate": "local_edit",
    }
    folders = {size: tmp_path_factory.mktemp(f"group-{size}") for size in (1, 2)}
    for folder in folders.values():
        (folder / in_group.JOBS).write_text(json.dumps(jobs))
        for place in ("data/buckets", "models"):
            shutil.copytree(project / place, folder / place)
    with as_a_stage_runs():
        start = {"method": "merge", "student": "full"}
        student = trainer_of(Paths(project), teachers_of(project), project / "start", start)
        for folder in folders.values():
            student.package(folder / "models" / "student", {"num_steps": 2})
        in_group.run_jobs(folders[1], project)
        paths = Paths(project)
        teachers = teachers_of(project)
        for name in ("replay", "sharded from a whole"):
            with pytest.raises(KeyboardInterrupt):
                trainer_of(paths, teachers, folders[2] / name, REPLAY, Stopping).train()
    run = small_params(run__num_processes=2).run
    launch.launch(run, "in_group", [str(folders[2]), str(project)], "jobs")
    results = {
        size: json.loads((folder / in_group.FOUND).read_text()) for size, folder in folders.items()
    }
    return folders, results


@pytest.mark.parametrize("name", [*CASES, *SHARDED, "replay"])
def test_a_training_is_the_same_in_two_processes(found: Any, name: str) -> None:
    """And where it began in one process and went on in two: ``replay``, and into shards."""
    one, two = (results[name] for results in found[1].values())
    assert len({key.partition(" ")[0] for key in one}) > 1
    assert two == pytest.approx(one, rel=RELATIVE)
    assert any((found[0][2] / name).glob("shards-*")) == (name in SHARDED)
    evaluations = [key for key in one if key.endswith("evaluations")]
    assert [two[key] for key in evaluations] == [one[key] for key in evaluations]


def test_one_process_ends_what_two_have_begun_in_shards(found: Any, project: Path) -> None:
    folder = found[0][2] / "begun"
    [shards] = folder.glob("shards-*")
    assert shards.name == "shards-00000004"
    assert len(list(shards.glob("*.distcp"))) == 2
    with as_a_stage_runs():
        ended = in_group.trained(Paths(project), teachers_of(project), folder, REPLAY)
    assert ended == pytest.approx(found[1][1]["replay"], rel=RELATIVE)


def test_teachers_and_pictures_are_the_same(found: Any) -> None:
    one, two = found[1].values()
    assert (one["size"], two["size"]) == (1, 2)
    assert two["finetune"] == pytest.approx(one["finetune"], rel=RELATIVE)
    assert len(one["pictures"]) > 1000
    assert two["pictures"] == one["pictures"]


def test_an_evaluation_is_the_same(found: Any) -> None:
    """Scores and pictures: every process answers whole batches, and one marks them."""
    one, two = (Paths(folder) for folder in found[0].values())
    reports = [json.loads(paths.evaluation("local_edit").read_text()) for paths in (one, two)]
    for report in reports:
        report.pop("seconds")
    assert reports[0] == reports[1]
    further = [paths.evaluation_by_steps("local_edit").read_bytes() for paths in (one, two)]
    assert further[0] == further[1]
    places = [paths.evaluation_images("local_edit") for paths in (one, two)]
    pictures = sorted(path.name for path in places[0].glob("*.png"))
    assert len(pictures) > 1
    for name in pictures:
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()


def test_a_cache_has_the_same_bytes_whoever_wrote_it(found: Any) -> None:
    one, two = (Paths(folder) for folder in found[0].values())
    for capability in CAPABILITIES:
        files = json.loads((one.cache(capability) / INDEX).read_text())["files"]
        assert len(files) > 4
        for name in (INDEX, *files):
            same = (one.cache(capability) / name).read_bytes()
            assert (two.cache(capability) / name).read_bytes() == same


def test_an_error_is_told_once_and_the_surroundings_are_as_before(
    ranks: None, tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the words and the exit code that one process would have had; nothing else is printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    surroundings = dict(os.environ)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StageError) as caught:
        launch.launch(run_params(), "meeting", [str(tmp_path), "fails"], "a stage")
    assert dict(os.environ) == surroundings
    assert str(caught.value) == "distill: its parts do not fit"
    assert caught.value.exit_code == ConfigError.exit_code
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    assert "exitcode" not in printed
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_of_two_machines_meet(ranks: None, tmp_path: Path) -> None:
    """Which are two starters on this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    machines = {NUM_MACHINES: "2", MAIN_ADDRESS: address}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "meeting", str(tmp_path), "well", "start"],
            env={**os.environ, **machines, MACHINE_RANK: str(rank)},
        )
        for rank in (0, 1)
    ]
    assert [machine.wait(timeout=200) for machine in started] == [0, 0]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["[0, 1] 0"] * 2


def failure(folder: Path, exit_code: int, **content: Any) -> ProcessFailure:
    """How a process has ended, with the word that it left."""
    file = folder / f"error-{len(list(folder.iterdir()))}.json"
    if content:
        file.write_text(json.dumps({"timestamp": "1", "known": False, "lost": False, **content}))
    return ProcessFailure(0, 4711, exit_code, str(file))


def test_what_comes_first_is_told_and_not_what_follows_from_it(tmp_path: Path, capsys) -> None:
    lost = failure(tmp_path, 1, message="gloo: closed by peer", lost=True, trace="...")
    ended = failure(tmp_path, -signal.SIGTERM)
    killed = failure(tmp_path, -signal.SIGKILL)
    bug = failure(tmp_path, 1, message="a bug", trace="Traceback: a bug\n", timestamp="9")
    silent = failure(tmp_path, 7)
    for failures, told in (
        ({0: lost, 1: killed, 2: ended}, r"process 1 of 3 \(PID 4711\) was ended by SIGKILL"),
        ({0: lost, 2: ended}, "process 0 of 3 .* has lost another one, perhaps on another"),
        ({1: silent}, "process 1 of 3 .* ended with exit code 7"),
    ):
        with pytest.raises(StageError, match=told):
            launch._tell(failures, 3, "a stage")
    with pytest.raises(SystemExit, match="1"):
        launch._tell({0: lost, 2: bug, 1: ended}, 3, "a stage")
    assert capsys.readouterr().err == "a stage: process 2 of 3 (PID 4711):\nTraceback: a bug\n"


@pytest.mark.parametrize(
    ("machines", "told"),
    [
        ({MACHINE_RANK: "2", MAIN_ADDRESS: "a:1"}, "a number below the first"),
        ({MAIN_ADDRESS: "a:1"}, "a number below the first"),
        ({MACHINE_RANK: "1", MAIN_ADDRESS: "a"}, "should be host:port of machine 0"),
        ({MACHINE_RANK: "1", MAIN_ADDRESS: "a:1"}, "3 processes cannot be shared out evenly"),
    ],
)
def test_machines_that_are_told_wrongly_are_refused(machines: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        launch._machines({NUM_MACHINES: "2", **machines}, 3)


def test_a_single_process_on_each_of_several_machines_is_refused(monkeypatch) -> None:
    """Each would compute, and write, everything."""
    alone = run_params().model_copy(update={"num_processes": 1})
    assert not launch.is_needed(alone)
    for name, value in {NUM_MACHINES: "2", MACHINE_RANK: "1", MAIN_ADDRESS: "a:1"}.items():
        monkeypatch.setenv(name, value)
    assert launch.is_needed(alone)
    with pytest.raises(UsageError, match="1 processes cannot be shared out evenly among 2"):
        launch.launch(alone, "meeting", [], "a stage")


def members(stage: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """The processes of a stage's group, by rank."""
    found = psutil.Process(stage.pid).children(recursive=True)
    environments = [(process, process.environ()) for process in found]
    return {seen["RANK"]: process for process, seen in environments if "RANK" in seen}


def began(root: Path) -> tuple[subprocess.Popen[str], Path]:
    """A stage in two processes, once it has written another checkpoint."""
    files = ".danceflow/work/distill-*/checkpoint.safetensors"
    before = {path.stat().st_mtime_ns for path in root.glob(files)}
    stage = subprocess.Popen(
        [sys.executable, "-m", "danceflow.cli", "stage", "distill"],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and stage.poll() is None:
        for path in root.glob(files):
            if path.stat().st_mtime_ns not in before:
                return stage, path.parent
        time.sleep(0.1)
    pytest.fail(f"no checkpoint was written: {stage.communicate()[1]}")


def test_a_process_that_dies_ends_all_and_a_retry_goes_on(project: Path, tmp_path: Path) -> None:
    """A member is killed, then the stage itself; one process alone ends what two have begun."""
    root = tmp_path / "project"
    shutil.copytree(project, root)
    changes = {"distill__num_updates": 100, "distill__checkpoint_every": 1}
    data = small_data(CAPABILITIES, run__num_processes=2, **changes)
    (root / "params.yaml").write_text(dump_yaml(data))

    stage, work = began(root)
    group = members(stage)
    assert sorted(group) == ["0", "1"]
    group["1"].kill()
    killed = time.monotonic()
    told = stage.communicate(timeout=60)[1]
    assert time.monotonic() - killed < 60
    assert stage.returncode == 1
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    who = rf"error: stage 'distill': process 1 of 2 \(PID {group['1'].pid}\) was ended by SIGKILL"
    assert len(errors) == 1
    assert re.match(who, errors[0])
    assert "running the stage again goes on where it was saved last" in errors[0]
    assert "Traceback" not in told
    assert "exitcode" not in told
    assert not any(process.is_running() for process in group.values())

    stage, same = began(root)
    assert same == work
    group = members(stage)
    os.kill(stage.pid, signal.SIGKILL)
    psutil.wait_procs(group.values(), timeout=30)
    assert not any(process.is_running() for process in group.values())
    stage.communicate()

    with as_a_stage_runs():
        checkpoint = load_checkpoint(work / "checkpoint.safetensors")
        assert checkpoint is not None
        assert 1 < checkpoint["step"] < 100
        distill.run(small_params(CAPABILITIES, **changes), Paths(root))
    record = read_metrics(work / "metrics.jsonl")
    assert [row["step"] for row in record if "loss" in row] == list(range(1, 101))
    assert read_manifest(Paths(root).student)["num_updates"] == 100
