"""Kills the pipeline with SIGKILL, over and over, and looks at what the next run makes of it.

    python benchmarks/punisher.py [--kills 20] [--seed 0] [--folder DIR] [--out FILE]

A clone of this checkout's commit runs the pipeline through the command line, with Prefect, DVC and
MLflow as a user has them. Each trial starts from a copy of it, is killed at one moment, and is
started again; what that run ends with is held against a run that nobody disturbed.

Trials are decided by the seed and their number. Moments are of two kinds: any moment of a stage
(each in turn), and while something is being written: a checkpoint, the student's package, a cache
shard, an object of DVC's cache, ``dvc.lock``, the tracking store, an experiment's worktree or
commit, a registration. Who is killed changes too: every process at once, the flow alone, its
process group, the stage alone, or the DVC command alone.

The result is written after every trial. Called again with the same folder it goes on where it was.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from danceflow.ops.files import sha256, write_json
from danceflow.params.read import override
from danceflow.params.yaml12 import read_value, read_yaml

ROOT = Path(__file__).resolve().parents[1]
MARK = "DANCEFLOW_PUNISHER"
CAPABILITIES = ("t2i", "local_edit")
STAGES = (
    "start",
    "prepare",
    *(f"cache@{name}" for name in CAPABILITIES),
    "distill",
    *(f"evaluate@{name}" for name in CAPABILITIES),
    "report",
    "register",
)
EXPERIMENT = ("--set", "distill.learning_rate=0.002")
# What shows the clock or the tracked run's id, and so differs between two undisturbed runs.
OWN_CLOCK = ("reports/distill",)
QUIET_S = 90.0
RUN_LIMIT_S = 1800.0


# What is killed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One kill.

    Attributes:
        number: its place; with the seed it decides everything else.
        moment: a stage of ``STAGES``, or what is being written, a key of ``WRITES``.
        share: for a stage, the part of its usual time that passes first.
        occurrence: for a write, how many of them pass first.
        victim: who is killed, a key of ``VICTIMS``.
        at_once: whether the next run starts before what is left of the first one is gone.
    """

    number: int
    moment: str
    share: float
    occurrence: int
    victim: str
    at_once: bool


def trials(count: int, seed: int) -> list[Trial]:
    """Return the trials; stages and writes take turns, each over and over in its order."""
    plans = []
    writes, stages = list(WRITES), list(STAGES)
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        names = writes if number % 2 else stages
        moment = names[number // 2 % len(names)]
        victims = ["all", "flow", "group"]
        if moment not in {"start", "register", *OUTSIDE_STAGES}:
            victims += ["stage", "dvc"]
        plans.append(
            Trial(
                number,
                moment,
                round(draw.random(), 3),
                draw.randrange(WRITES[moment].most if moment in WRITES else 1),
                draw.choice(victims),
                draw.random() < 0.5,
            )
        )
    return plans


def marked(mark: str) -> list[psutil.Process]:
    """Return the living processes that carry a mark in their environment, zombies not."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def command_of(process: psutil.Process) -> str:
    """Return a process's command line, an empty text when it is gone."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def kill(process: psutil.Process) -> None:
    """Send SIGKILL; one that is gone is no error."""
    with contextlib.suppress(psutil.Error):
        process.kill()


def kill_all(run: "Run") -> None:
    """Kill every process of the run, as a container's end does, until none is left."""
    while left := marked(run.mark):
        for process in left:
            kill(process)


def kill_flow(run: "Run") -> None:
    """Kill the process of the flow alone."""
    run.process.kill()


def kill_group(run: "Run") -> None:
    """Kill the process group of the flow, as a shell that ends does; stages have their own."""
    os.killpg(run.process.pid, signal.SIGKILL)


def kill_matching(pattern: str) -> Callable[["Run"], None]:
    """Return what kills the run's processes with this in their command line."""

    def kill_them(run: "Run") -> None:
        for process in marked(run.mark):
            if re.search(pattern, command_of(process)):
                kill(process)

    return kill_them


VICTIMS: Mapping[str, Callable[["Run"], None]] = {
    "all": kill_all,
    "flow": kill_flow,
    "group": kill_group,
    "stage": kill_matching(r"danceflow stage |danceflow\.cli stage "),
    "dvc": kill_matching(r"flows\.dvc_command .*(repro|exp save)"),
}


# When ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """Something that is being written.

    Attributes:
        seen: tells what of it lies in a checkout now; a new entry is one occurrence.
        most: how many occurrences there are to choose from.
        lasts: seconds that it takes, a share of which passes before the kill.
        state: the checkout that the trial starts from, a key of ``References.states``.
        arguments: of ``danceflow run``.
    """

    seen: Callable[[Path], set[str]]
    most: int = 1
    lasts: float = 0.0
    state: str = "fresh"
    arguments: tuple[str, ...] = ()


def globbed(*patterns: str) -> Callable[[Path], set[str]]:
    """Return what lists the paths below a checkout that match."""

    def seen(root: Path) -> set[str]:
        return {str(path) for pattern in patterns for path in root.glob(pattern)}

    return seen


WRITES: Mapping[str, Write] = {
    "checkpoint": Write(globbed(".danceflow/work/distill-*/.checkpoint.*.partial"), 4),
    "dvc commit": Write(globbed(".dvc/cache/files/md5/*"), 40, 0.02),
    "store": Write(globbed("mlflow.db", ".mlflow.db*", ".danceflow/.mlflow*"), 1, 8.0, "no store"),
    "experiment": Write(globbed(".danceflow/worktrees/*"), 1, 2.0, "finished", EXPERIMENT),
    "registration": Write(
        globbed("mlartifacts/models/*", "mlartifacts/models/*/*/*"), 6, 0.5, "staged"
    ),
    "lock": Write(globbed(".dvc.lock.*.partial"), 6),
    "cache shard": Write(globbed(".danceflow/work/cache-*/.*.partial"), 5),
    "experiment's commit": Write(
        globbed(".git/refs/exps/*", ".git/refs/exps/*/*/*"), 2, 0.2, "finished", EXPERIMENT
    ),
    "package": Write(globbed("models/.student.*.partial"), 1, 0.02),
}
OUTSIDE_STAGES = ("store", "experiment", "registration")


def wait_for(trial: Trial, run: "Run", usual: Mapping[str, float]) -> bool:
    """Wait until the moment to kill has come; False: the run ended before."""
    if trial.moment in WRITES:
        seen = WRITES[trial.moment].seen
        before, count = seen(run.root), 0
        while run.is_running:
            now = seen(run.root)
            count += len(now - before)
            if count > trial.occurrence:
                time.sleep(trial.share * WRITES[trial.moment].lasts)
                return run.is_running
            before = before | now
            time.sleep(0.001)
        return False
    while run.is_running and run.began(trial.moment) is None:
        time.sleep(0.01)
    rest = time.monotonic() + trial.share * usual.get(trial.moment, 1.0)
    while run.is_running and time.monotonic() < rest:
        time.sleep(0.005)
    return run.is_running


# A run ---------------------------------------------------------------------------------------


class Run:
    """``danceflow run`` in a checkout, its output in a file."""

    def __init__(self, root: Path, mark: str, log: Path, arguments: Sequence[str] = ()) -> None:
        self.root, self.mark, self.log = root, mark, log
        self.start = time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                ["danceflow", "run", *arguments],
                cwd=root,
                env=surroundings(root) | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the flow's process lives."""
        return self.process.poll() is None

    @property
    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def began(self, stage: str) -> re.Match[str] | None:
        """Return where the log says that a stage began, if it does."""
        if stage == "start":
            return re.search("", "")
        after = "Stage 'report'|Running stage 'report'" if stage == "register" else None
        return re.search(after or f"Running stage '{re.escape(stage)}'", self.text)

    def wait(self) -> tuple[int, float]:
        """Return the exit code and the seconds that it took."""
        try:
            code = self.process.wait(RUN_LIMIT_S)
        except subprocess.TimeoutExpired:
            kill_all(self)
            code = self.process.wait()
        return code, time.monotonic() - self.start


def surroundings(root: Path) -> dict[str, str]:
    """Return the environment of a checkout's commands: its own code, its own Prefect."""
    programs = str(Path(sys.executable).parent)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]),
        "PREFECT_HOME": str(root.parent / "prefect"),
        "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
        "GIT_AUTHOR_NAME": "punisher",
        "GIT_AUTHOR_EMAIL": "punisher@example.invalid",
        "GIT_COMMITTER_NAME": "punisher",
        "GIT_COMMITTER_EMAIL": "punisher@example.invalid",
        "OMP_NUM_THREADS": "1",
    }


def call(root: Path, *command: str) -> str:
    """Return the output of a command that works in a checkout."""
    done = subprocess.run(
        command, cwd=root, env=surroundings(root), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command} in {root}: {done.stdout}{done.stderr}")
    return done.stdout


# What a run leaves ---------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What matters of a checkout after a run.

    Attributes:
        lock: DVC's hashes by stage and path.
        student: SHA-256 of every file of the student.
        losses: the curve without its clock.
        versions: of the registered model.
        runs: MLflow's runs by status.
        pending: logged models that are not ready.
        worktrees: beside the checkout.
        partials: half-written files.
        held: whether DVC's list of who reads and writes names a process that lives; the entries of
            dead ones are dropped by the next command that they are in the way of.
        git_locks: locks of git that nobody holds.
        stale: what ``dvc status`` says beside "up to date".
        experiments: DVC's hash of the student in each saved one.
    """

    lock: Mapping[str, str]
    student: Mapping[str, str]
    losses: str
    versions: int
    runs: Mapping[str, int]
    pending: int
    worktrees: int
    partials: Sequence[str]
    held: bool
    git_locks: Sequence[str]
    stale: str
    experiments: Mapping[str, str]


def state_of(root: Path) -> State:
    """Return the state of a checkout that nothing runs in."""
    student = root / "models" / "student"
    files = sorted(path for path in student.rglob("*") if path.is_file())
    worktrees = call(root, "git", "worktree", "list", "--porcelain").count("worktree ") - 1
    left = list((root / ".danceflow" / "worktrees").glob("*"))
    holders = root / ".dvc" / "tmp" / "rwlock"
    text = holders.read_text(encoding="utf-8") if holders.is_file() else ""
    listed = {int(number) for number in re.findall(r'"pid": (\d+)', text)}
    return State(
        lock_entries(root),
        {str(path.relative_to(student)): sha256(path) for path in files},
        losses(root / "reports" / "distill" / "metrics.jsonl"),
        *tracked(root / "mlflow.db"),
        worktrees=max(worktrees, len(left)),
        partials=half_written(root),
        held=any(map(psutil.pid_exists, listed)),
        git_locks=git_locks(root),
        stale=call(root, "dvc", "status", "--json").strip(),
        experiments=saved_students(root),
    )


def lock_entries(root: Path) -> dict[str, str]:
    """Return DVC's hashes by stage and path, those of the code left out."""
    entries = {}
    for stage, entry in read_yaml(root / "dvc.lock")["stages"].items():
        for kind in ("deps", "outs"):
            for item in entry.get(kind, ()):
                if not item["path"].startswith(("src/", "flows/")):
                    entries[f"{stage} {kind} {item['path']}"] = str(item.get("md5"))
    return entries


def half_written(root: Path) -> list[str]:
    """Return the files that were begun and that stand for nothing."""
    found = [path for path in root.rglob("*.partial") if ".venv" not in path.parts]
    return sorted(str(path.relative_to(root)) for path in found)


def git_locks(root: Path) -> list[str]:
    """Return the locks of git that lie there."""
    return [str(path.relative_to(root)) for path in (root / ".git").rglob("*.lock")]


def saved_students(root: Path) -> dict[str, str]:
    """Return DVC's hash of the student in every saved experiment, by the experiment's name."""
    refs = call(root, "git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/*").split()
    found = {}
    for ref in refs:
        text = call(root, "git", "show", f"{ref}:dvc.lock")
        outs = read_value(text)["stages"]["distill"]["outs"]
        found[ref.split("/")[-1]] = next(
            str(out["md5"]) for out in outs if out["path"] == "models/student"
        )
    return found


def losses(path: Path) -> str:
    """Return the digest of a curve, without what the clock says."""
    digest = hashlib.sha256()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name in ("seconds", "images_per_second", "row_wait_share"):
            row.pop(name, None)
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def tracked(database: Path) -> tuple[int, dict[str, int], int]:
    """Return the number of versions, the runs by status, and the models that are not ready."""
    with contextlib.closing(sqlite3.connect(database)) as store:
        versions = store.execute("select count(*) from model_versions").fetchone()[0]
        runs = dict(store.execute("select status, count(*) from runs group by status").fetchall())
        known = "('READY', 'LOGGED_MODEL_READY', 2)"
        query = f"""
            select count(*) from logged_models
            where status not in {known} and lifecycle_stage = 'active'
        """  # noqa: S608
        pending = store.execute(query).fetchone()[0]
    return versions, runs, pending


def faults(found: State, wanted: State, varying: frozenset[str], *, experiment: bool) -> list[str]:
    """Return in words how a checkout differs from one that nobody disturbed."""
    said = []
    differing = [
        name
        for name in sorted(set(found.lock) | set(wanted.lock))
        if name not in varying and found.lock.get(name) != wanted.lock.get(name)
    ]
    if differing:
        said.append(f"lock differs: {', '.join(differing)}")
    if found.student != wanted.student:
        said.append("another student")
    if found.losses != wanted.losses:
        said.append("another curve")
    if found.versions != wanted.versions:
        said.append(f"{found.versions} versions instead of {wanted.versions}")
    if found.runs != wanted.runs:
        said.append(f"runs {dict(found.runs)} instead of {dict(wanted.runs)}")
    if found.pending:
        said.append(f"{found.pending} pending logged models")
    if found.worktrees:
        said.append(f"{found.worktrees} worktrees left")
    if found.partials:
        said.append(f"half-written: {', '.join(found.partials)}")
    if found.held:
        said.append("DVC's list of readers and writers names living processes")
    if found.git_locks:
        said.append(f"locks of git: {', '.join(found.git_locks)}")
    if found.stale != wanted.stale:
        said.append(f"dvc status: {found.stale}")
    if experiment and found.experiments != wanted.experiments:
        said.append(f"{dict(found.experiments)} instead of {dict(wanted.experiments)}")
    return said


# References ----------------------------------------------------------------------------------


@dataclass
class References:
    """What trials start from and are held against; made once.

    Attributes:
        folder: where the checkouts lie.
        usual: seconds of every stage of an undisturbed run, and of the whole.
        wanted: what an undisturbed run leaves, by the state it starts from.
        varying: entries of the lock that differ between two undisturbed runs.
    """

    folder: Path
    usual: dict[str, float] = field(default_factory=dict)
    wanted: dict[str, State] = field(default_factory=dict)
    varying: frozenset[str] = frozenset()

    def checkout(self, name: str) -> Path:
        """Return a reference checkout."""
        return self.folder / name.replace(" ", "-") / "checkout"

    def copied(self, name: str, place: Path) -> Path:
        """Return a copy of a reference checkout, its surroundings along."""
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.checkout(name).parent, place, symlinks=True)
        return place / "checkout"


def make_fresh(root: Path, capabilities: Sequence[str] = CAPABILITIES) -> None:
    """Clone this checkout's commit with parameters that make the stages short."""
    root.parent.mkdir(parents=True)
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(root)], check=True)
    data = read_yaml(root / "recipes" / "smoke.yaml")
    data = override(
        data,
        {
            "run.num_threads": 1,
            "distill.num_updates": 12,
            "distill.checkpoint_every": 3,
            "distill.evaluate_every": 100,
            "distill.grid_every": 100,
            "evaluate.num_samples": 1,
            "evaluate.num_steps": 2,
            "evaluate.further_steps": [],
            "evaluate.num_bootstrap": 20,
        },
    )
    for name in [name for name in data["capabilities"] if name not in capabilities]:
        del data["capabilities"][name]
        del data["gate"]["min_retention"][name]
    write_json(root / "params.yaml", data)  # JSON is YAML, too
    (root / "dvc.lock").unlink(missing_ok=True)
    call(root, "git", "add", "--all")
    call(root, "git", "commit", "--quiet", "--message", "short")


def references(folder: Path) -> References:
    """Make, or find, the reference checkouts and what undisturbed runs do in them."""
    found = References(folder)
    notes = folder / "references.json"
    if notes.is_file():
        known = json.loads(notes.read_text(encoding="utf-8"))
        found.usual = known["usual"]
        found.wanted = {name: State(**value) for name, value in known["wanted"].items()}
        found.varying = frozenset(known["varying"])
        return found
    shutil.rmtree(folder, ignore_errors=True)
    make_fresh(found.checkout("no store"))
    # A store and Prefect's database cost seconds to make: the others find them there.
    fresh = found.copied("no store", folder / "fresh")
    call(fresh, sys.executable, "-c", OPEN_STORE)
    call(fresh, sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes")
    staged = found.copied("fresh", folder / "staged")
    call(staged, "dvc", "repro")
    controls = {}
    for name, start in {"finished": "fresh", "control": "fresh", "registered": "staged"}.items():
        root = found.copied(start, folder / name)
        run = Run(root, f"reference-{name}", folder / f"{name}.log")
        code, seconds = run.wait()
        if code:
            raise RuntimeError(f"an undisturbed run failed:\n{run.text}")
        controls[name] = state_of(root)
        if name == "finished":
            found.usual = {**usual_seconds(run.text), "whole": round(seconds, 1)}
    found.varying = frozenset(
        name
        for name, value in controls["finished"].lock.items()
        if controls["control"].lock[name] != value
    )
    root = found.copied("finished", folder / "experiment")
    code, seconds = Run(root, "reference-e", folder / "experiment.log", EXPERIMENT).wait()
    if code:
        raise RuntimeError("an undisturbed experiment failed")
    found.usual["experiment"] = round(seconds, 1)
    found.wanted = {
        "fresh": controls["finished"],
        "no store": controls["finished"],
        "staged": controls["registered"],
        "finished": state_of(root),
    }
    write_json(
        notes,
        {
            "usual": found.usual,
            "wanted": {name: asdict(value) for name, value in found.wanted.items()},
            "varying": sorted(found.varying),
        },
    )
    return found


OPEN_STORE = """
from pathlib import Path
from danceflow.ops.tracking import TrackingSettings, open_store
from danceflow.params.read import load_params
open_store(TrackingSettings.of(Path.cwd(), load_params(Path("params.yaml")).tracking))
"""


def usual_seconds(text: str) -> dict[str, float]:
    """Return the seconds of every stage, from the table that a run prints."""
    rows = re.findall(r"^\| (\S+) \| ran \| ([\d.]+) \|$", text, re.MULTILINE)
    usual = {name: float(seconds) for name, seconds in rows}
    return {**usual, "start": 10.0, "register": usual["report"] + 6.0}


# The trial -----------------------------------------------------------------------------------


def last_update(root: Path) -> int | None:
    """Return the last update that a training in progress has written down."""
    files = list((root / ".danceflow" / "work").glob("distill-*/metrics.jsonl"))
    steps = [
        json.loads(line)["step"]
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.endswith("}")
    ]
    return max(steps, default=None)


def punish(trial: Trial, found: References) -> dict[str, Any]:
    """Return what one kill and the next run came to."""
    write = WRITES.get(trial.moment)
    start = write.state if write else "fresh"
    arguments = write.arguments if write else ()
    place = found.folder / f"trial-{trial.number:03d}"
    root = found.copied(start, place)
    first = Run(root, f"{trial.number}-first", place / "first.log", arguments)
    came = wait_for(trial, first, found.usual)
    updates = last_update(root)
    seconds = time.monotonic() - first.start
    if came:
        VICTIMS[trial.victim](first)
    row: dict[str, Any] = {**asdict(trial), "killed_s": round(seconds, 1), "came": came}
    goes_on = trial.victim in {"stage", "dvc"} or not came
    if goes_on:  # the flow itself is to repeat the stage
        code, whole = first.wait()
        row["repeated_by_flow"] = code == 0
    else:
        code, whole = -9, seconds
        first.process.wait()
        if not trial.at_once:
            row["quiet_s"] = quiet(first.mark)
    said: list[str] = []
    if code:
        second = Run(root, f"{trial.number}-second", place / "second.log", arguments)
        again = wait_until_there(second, trial.moment)
        code, next_s = second.wait()
        row |= {"recovery_s": again, "next_run_s": round(next_s, 1)}
        whole = seconds + next_s
        if code:
            said.append(f"the next run failed: {second.text[-1500:]}")
        if resumed := re.findall(r"resuming at update (\d+)", second.text):
            row["lost_updates"] = max(0, (updates or 0) - int(resumed[0]))
        elif updates:
            row["lost_updates"] = updates if "Running stage 'distill'" in second.text else 0
    usual = found.usual["experiment" if arguments else "whole"]
    row["whole_s"] = round(whole, 1)
    if start in {"fresh", "no store"} or arguments:
        row["lost_s"] = round(max(0.0, whole - usual), 1)
    for mark in (f"{trial.number}-first", f"{trial.number}-second"):
        quiet(mark)
        if left := marked(mark):
            said.append(f"orphans: {[command_of(process)[:150] for process in left]}")
            for process in left:
                kill(process)
    if not code:
        wanted = found.wanted[start]
        said += faults(state_of(root), wanted, found.varying, experiment=bool(arguments))
    row["faults"] = said
    if not said:
        shutil.rmtree(place)
    return row


def quiet(mark: str) -> float:
    """Return the seconds until no process of a run is left, at most ``QUIET_S``."""
    start = time.monotonic()
    while marked(mark) and time.monotonic() - start < QUIET_S:
        time.sleep(0.5)
    return round(time.monotonic() - start, 1)


def wait_until_there(run: Run, moment: str) -> float | None:
    """Return the seconds until a run is at a stage again; None: it need not run any more."""
    if moment not in STAGES[1:]:
        return None
    while run.is_running and run.began(moment) is None:
        time.sleep(0.05)
    return round(time.monotonic() - run.start, 1) if run.began(moment) else None


def three_way(found: References) -> dict[str, Any]:
    """Return whether other starts give other students.

    The training again with another seed, and again with only those updates that were left at a
    checkpoint: as if a resumed run had begun anew there.
    """
    resumed = found.wanted["fresh"].lock["distill outs models/student"]
    result: dict[str, Any] = {"uninterrupted": resumed}
    changes = {"another seed": "distill.seed=1", "begun anew": "distill.num_updates=9"}
    for name, value in changes.items():
        root = found.copied("finished", found.folder / "cold")
        call(root, "danceflow", "run", "--name", "cold", "--set", value)
        result[name] = saved_students(root)["cold"]
    return result


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of all trials."""
    told: dict[str, Any] = {
        "kills": sum(row["came"] for row in rows),
        "without a fault": sum(row["came"] and not row["faults"] for row in rows),
        "repeated by the flow itself": sum(bool(row.get("repeated_by_flow")) for row in rows),
    }
    for name in ("recovery_s", "lost_s", "lost_updates", "quiet_s"):
        values = sorted(row[name] for row in rows if row.get(name) is not None)
        if values:
            told[name] = {"median": statistics.median(values), "most": values[-1]}
    return told


def main() -> int:
    """Run the trials that are left and return 1 if one of them found a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/danceflow-punisher"))  # noqa: S108
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "punisher.json")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of single trials")
    options = parser.parse_args()
    found = references(options.folder.resolve())
    commit = call(found.checkout("fresh"), "git", "rev-parse", "HEAD~1").strip()
    content = {"commit": commit, "seed": options.seed, "rows": []}
    notes = options.folder / f"trials-{options.seed}.json"
    if notes.is_file():
        content = json.loads(notes.read_text(encoding="utf-8"))
    done = {row["number"] for row in content["rows"]}
    for trial in trials(options.kills, options.seed):
        if trial.number in done or (options.only and trial.number not in options.only):
            continue
        row = punish(trial, found)
        content["rows"].append(row)
        write_json(notes, content)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
    rows = sorted(content["rows"], key=lambda row: int(row["number"]))
    if "three_way" not in content:
        content["three_way"] = three_way(found)
        write_json(notes, content)
    write_json(
        options.out,
        {
            "command": f"python benchmarks/punisher.py --kills {options.kills}",
            "commit": content["commit"],
            "usual_s": found.usual,
            "varying": sorted(found.varying),
            "summary": summary(rows),
            "three_way": content["three_way"],
            "trials": rows,
        },
    )
    sys.stdout.write(json.dumps(summary(rows), indent=2) + "\n")
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
