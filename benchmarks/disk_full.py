"""Lets a real disk become full under every stage, and looks at what the next run makes of it.

    sudo python benchmarks/disk_full.py [--mb 450] [--only NAME...] [--at TRY...] [--limit SECONDS]

Mounts a small file system in memory, which needs root, and takes it away at the end. A clone of
this checkout's commit lies on it with everything that its commands write: data, DVC's cache and
lists, the tracking store, temporary files. Prefect's database alone lies elsewhere: without room,
its server does not start, and nothing else would be tried.

Every try begins from the same checkout, in which the stages before are done. A command begins with
all the room there is. At one moment the file system is made as small as what lies on it: when so
many bytes are written, when something is being written or is there. Then all the room comes back,
and the same command runs again. What it ends with is held against an undisturbed run.

Every stage is tried under the flow's DVC command, and then ``danceflow run``, which registers.
With ``--at "report: 1 bytes"`` only these tries are made. They replace their rows in the record.
Every row names its commit.
"""

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from punisher import (
    MARK,
    ROOT,
    State,
    call,
    faults,
    git_locks,
    globbed,
    half_written,
    kill,
    lock_entries,
    make_fresh,
    marked,
    quiet,
    state_of,
    surroundings,
)

from danceflow.ops.files import remove, write_json

CAPABILITY = "t2i"
DVC = (sys.executable, "-P", "-m", "flows.dvc_command", "repro", "--single-item")
RUN = ("danceflow", "run")
# What each command makes.
OUTPUTS = {
    "prepare": "data/buckets",
    f"cache@{CAPABILITY}": f"data/cache/{CAPABILITY}",
    "distill": "models/student",
    f"evaluate@{CAPABILITY}": f"reports/evaluate/{CAPABILITY}.json",
    "report": "reports/gate.json",
    "register": "mlartifacts/models/*",
}
MODEL = "mlartifacts/models/*/artifacts"
WRITTEN = (1, 1 << 18, 1 << 20, 1 << 22)  # bytes, before the disk is full
OBJECTS = (1, 2, 4)  # of DVC's cache
POLL_S = 0.001
LIMIT_S = 120.0  # of one try
NO_ROOM = "no space|No space|disk is full|of disk space"
# What holds a clock or the id of a run, and so differs between two undisturbed runs, too.
OWN_CLOCK = re.compile(r"reports/(distill|evaluate|metrics|report|summary)")
LIBC = ctypes.CDLL(None, use_errno=True)
MS_REMOUNT = 32


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """Give the folder of a file system of its own; nothing that works on it outlives the block."""
    place = Path(tempfile.mkdtemp(prefix="danceflow-disk-"))
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs"]
    subprocess.run(["mount", *options, str(place)], check=True)
    try:
        yield place
    finally:
        end_all(str(place))
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


def end_all(mark: str) -> list[str]:
    """Kill every process of a mark, and return the numbers of those that there were."""
    told: set[str] = set()
    while left := marked(mark):
        for process in left:
            told.add(str(process.pid))
            kill(process)
        time.sleep(0.05)
    return sorted(told)


def used(disk: Path) -> int:
    """Return the bytes that lie on a disk."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def resize(disk: Path, num_bytes: int) -> None:
    """Let a file system in memory have so many bytes; one that holds more stays as it is."""
    LIBC.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", MS_REMOUNT, f"size={num_bytes}".encode())


@contextlib.contextmanager
def filled_when(has_come: Callable[[], bool], disk: Path) -> Iterator[threading.Event]:
    """Leave a disk no room once a moment has come within the block; give it back afterwards.

    What is given tells whether it came.
    """
    found = os.statvfs(disk)
    is_full, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_S):
            if is_full.is_set() or has_come():
                resize(disk, used(disk))  # over and over: what is freed later is taken, too
                is_full.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield is_full
    finally:
        is_over.set()
        thread.join()
        resize(disk, found.f_blocks * found.f_frsize)


def try_once(
    root: Path, command: Sequence[str], mark: str, limit_s: float
) -> tuple[int | None, str, float]:
    """Return exit code, output and seconds of a command; no code where it had to be ended."""
    environment = surroundings(root) | {"TMPDIR": str(root.parent / "tmp"), MARK: mark}
    begin = time.monotonic()
    # The output lies on another disk: what is told there is told.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            end_all(mark)
            process.wait()
        seconds = time.monotonic() - begin
        log.seek(0)
        return code, log.read().decode(errors="replace"), seconds


def reason(output: str, place: Path) -> str:
    """Return the line that says why a command failed, without what only this machine has."""
    lines = [line for line in output.splitlines() if re.match(r"error: |ERROR: ", line)]
    lines = [line for line in lines if re.search(NO_ROOM, line)] or lines
    text = lines[0] if lines else output.strip()[-300:]
    text = text.replace(f"{place}/", "").replace(f"{place}:", "the checkout:")
    return text.replace(f"{place.parents[1]}/", "")


Begin = Callable[[Path], Callable[[], bool]]
"""What looks at a checkout before a try, and gives what tells whether its moment has come."""


def written(num_bytes: int) -> Begin:
    """Give the moment when so many bytes are written."""

    def begin(root: Path) -> Callable[[], bool]:
        before = used(root)
        return lambda: used(root) - before >= num_bytes

    return begin


def appears(*patterns: str, count: int = 1) -> Begin:
    """Give the moment when so many paths are new that match."""
    seen = globbed(*patterns)

    def begin(root: Path) -> Callable[[], bool]:
        before = seen(root)
        return lambda: len(seen(root) - before) >= count

    return begin


def moments(name: str) -> dict[str, Begin]:
    """Return by their names the moments at which the disk becomes full under a command."""
    found = {f"{count:,} bytes": written(count) for count in WRITTEN}
    if name == "register":
        return {
            **found,
            "the model's folder is there": appears("mlartifacts/models/*"),
            "its code and weights are being written": appears(f"{MODEL}/*/*", count=3),
            "its description is there": appears(f"{MODEL}/MLmodel"),
        }
    output = Path(OUTPUTS[name])
    partial = str(output.with_name(f".{output.name}.*.partial"))
    return {
        **found,
        "its output is being written": appears(partial),
        "its output is there": appears(str(output)),
        **{
            f"{count} objects are in DVC's cache": appears(".dvc/cache/files/md5/*/*", count=count)
            for count in OBJECTS
        },
        "dvc.lock is being written": appears(".dvc.lock.*.partial"),
    }


def damaged(root: Path) -> list[str]:
    """Return the objects of DVC's cache whose content is not what their name says."""
    told = []
    for path in (root / ".dvc" / "cache" / "files" / "md5").glob("??/*"):
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if f"{path.parent.name}{path.name}".removesuffix(".dir") != digest:
            told.append(str(path.relative_to(root)))
    return told


def in_registry(root: Path) -> tuple[int, int, int]:
    """Return the runs that are not finished, the models that are not ready, and the versions."""
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as store:

        def count(what: str) -> int:
            return int(store.execute(f"select count(*) from {what}").fetchone()[0])  # noqa: S608

        return (
            count("runs where status <> 'FINISHED'"),
            count("logged_models where status <> 2 and lifecycle_stage = 'active'"),
            count("model_versions"),
        )


def differing(root: Path, wanted: State, name: str) -> list[str]:
    """Return in words how a command that had room again left other things than undisturbed."""
    found = lock_entries(root)
    told = [
        f"the lock differs: {entry}"
        for entry, value in found.items()
        if wanted.lock.get(entry) != value and not OWN_CLOCK.search(entry)
    ]
    if name != "register" and not any(entry.startswith(f"{name} outs") for entry in found):
        told.append("the lock lacks the stage")
    told += [f"half-written: {path}" for path in half_written(root)]
    told += [f"a lock of git: {path}" for path in git_locks(root)]
    told += [f"damaged: {path}" for path in damaged(root)]
    if (root / "mlflow.db").is_file():
        counts = in_registry(root)
        if counts != (0, 0, int(name == "register")):
            told.append(f"runs not finished, models not ready, versions: {counts}")
    return told


def tried(
    root: Path, name: str, moment: str, begin: Begin, wanted: State, log: Path, limit_s: float
) -> Any:
    """Return what a command did on a disk that became full, and the next one with room."""
    disk, command = root.parents[1], RUN if name == "register" else (*DVC, name)
    mark, said = str(disk), []
    with filled_when(begin(root), disk) as is_full:
        code, output, seconds = try_once(root, command, mark, limit_s)
        quiet(mark)
        left = end_all(mark)
    row: dict[str, Any] = {"full": moment, "came": is_full.is_set(), "exit_code": code}
    row |= {"said": "" if code == 0 else reason(output, root), "seconds": round(seconds, 1)}
    if code is None:
        said.append(f"it did not end within {limit_s:.0f} s")
    elif left:
        said.append(f"{len(left)} processes outlived it")
    if code and not re.search(NO_ROOM, output):
        said.append("the reason is not told")
    said += [f"half-written: {path}" for path in half_written(root)]
    said += [f"damaged: {path}" for path in damaged(root)]
    code, again, seconds = try_once(root, command, mark, limit_s)
    quiet(mark)
    end_all(mark)
    row |= {"next_exit_code": code, "next_seconds": round(seconds, 1)}
    if "Traceback" in output + again:
        said.append("a traceback")
    said += [f"the next run: {reason(again, root)}"] if code else differing(root, wanted, name)
    with log.open("a", encoding="utf-8") as file:
        title = f"{name}, {moment}: {row['exit_code']}, then {code}"
        file.write(f"===== {title}\n{output}\n----- with room again\n{again}\n")
    return {**row, "faults": said}


@contextlib.contextmanager
def prefect_elsewhere(root: Path, place: Path) -> Iterator[None]:
    """Let the project's Prefect have a folder on another disk within the block."""
    here = root / ".prefect"
    here.mkdir(mode=0o700, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["mount", "--bind", str(place), str(here)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(here)], check=True)


def fill(
    root: Path,
    name: str,
    at: Mapping[str, Begin],
    wanted: State,
    aside: Path,
    log: Path,
    limit_s: float,
) -> Iterator[Any]:
    """Give, try by try, what a command did on a disk that became full under it, and the next."""
    work, kept = root.parent, aside / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    subprocess.run(["cp", "-a", str(work), str(kept)], check=True)
    for moment, begin in at.items():
        for path in work.iterdir():
            remove(path)
        subprocess.run(["cp", "-a", f"{kept}/.", str(work)], check=True)
        with prefect_elsewhere(root, aside / "prefect"):
            yield tried(root, name, moment, begin, wanted, log, limit_s)


def undisturbed(root: Path, aside: Path) -> State:
    """Return the state that a run leaves which has all the room it needs, and clear it away."""
    with prefect_elsewhere(root, aside / "prefect"):
        call(root, *RUN)
        wanted = state_of(root)
    call(root, "git", "clean", "-ffdxq")
    call(root, "git", "checkout", "--quiet", ".")
    remove(root.parent / "site")
    return wanted


def put(record: Any, name: str, row: Mapping[str, Any]) -> None:
    """Put a try into a record, in place of the one of the same stage and moment if there is one."""
    tries = next((stage["tries"] for stage in record["stages"] if stage["stage"] == name), None)
    if tries is None:
        tries = []
        record["stages"].append({"stage": name, "tries": tries})
    places = [number for number, one in enumerate(tries) if one["full"] == row["full"]]
    if places:
        tries[places[0]] = row
    else:
        tries.append(row)


def main() -> int:
    """Fill the disk under every stage and return 1 where something was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=450, help="size of the disk")
    parser.add_argument("--only", nargs="+", default=list(OUTPUTS), choices=list(OUTPUTS))
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of one try")
    parser.add_argument("--at", nargs="+", default=[], help="only these, as STAGE: MOMENT")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "disk_full.json")
    parser.add_argument("--log", type=Path, default=Path("/tmp/danceflow-disk.log"))  # noqa: S108
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root may mount a file system: sudo python benchmarks/disk_full.py")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is taken away
    options.log.write_text("", encoding="utf-8")
    content: dict[str, Any] = {
        "command": "sudo python benchmarks/disk_full.py",
        "megabytes": options.mb,
        "stages": [],
    }
    if options.at and options.out.exists():
        content = json.loads(options.out.read_text(encoding="utf-8"))
    with small_disk(options.mb) as disk, tempfile.TemporaryDirectory() as folder:
        root, aside = disk / "work" / "checkout", Path(folder)
        make_fresh(root, [CAPABILITY])
        (root.parent / "tmp").mkdir()
        commit = call(root, "git", "rev-parse", "HEAD~1").strip()
        wanted = undisturbed(root, aside)
        for name in OUTPUTS:
            at = {
                moment: begin
                for moment, begin in moments(name).items()
                if not options.at or f"{name}: {moment}" in options.at
            }
            if name not in options.only or not at:  # the stages behind it need it
                if name != "register":
                    call(root, *DVC, name)
                continue
            for row in fill(root, name, at, wanted, aside, options.log, options.limit):
                put(content, name, {**row, "commit": commit})
                write_json(options.out, content)
                sys.stdout.write(f"{name} {json.dumps(row)}\n")
                sys.stdout.flush()
        told = None
        if "register" in options.only:
            varying = frozenset(entry for entry in wanted.lock if OWN_CLOCK.search(entry))
            told = faults(state_of(root), wanted, varying, experiment=False)
    write_json(options.out, content | ({} if told is None else {"afterwards": told}))
    sys.stdout.write(f"{told}\n")
    rows = [row for stage in content["stages"] for row in stage["tries"]]
    return int(bool(told) or any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
