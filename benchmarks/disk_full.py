"""Lets a real disk become full under every stage, and looks at what the next run makes of it.

    sudo python benchmarks/disk_full.py [--mb 450] [--only NAME...] [--out FILE]

Mounts a small file system in memory, which needs root, and takes it away at the end. A clone of
this checkout's commit lies on it with everything that its commands write: data, DVC's cache and
lists, the tracking store, Prefect's database, temporary files.

A command begins with all the room there is. Once it has written so many bytes, or once its output
is there, another file takes what is left. The next try of the same command may write some more,
and so on until it ends. Every stage is tried under the flow's DVC command, and then ``danceflow
run``, which registers. What is left at the end is held against an undisturbed run.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from punisher import (
    MARK,
    ROOT,
    call,
    faults,
    kill,
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
# What each command makes: the disk is full once it is there, and DVC's cache and list are not.
OUTPUTS = {
    "prepare": "data/buckets",
    f"cache@{CAPABILITY}": f"data/cache/{CAPABILITY}",
    "distill": "models/student",
    f"evaluate@{CAPABILITY}": f"reports/evaluate/{CAPABILITY}.json",
    "report": "reports/gate.json",
    "register": "mlartifacts/models/*/artifacts/*",
}
WRITTEN = (1, 1 << 18, 1 << 20, 1 << 22, 1 << 24)  # bytes, before the disk is full
POLL_S = 0.002
LIMIT_S = 600.0  # of one try
NO_ROOM = "no space|No space|disk is full|of disk space"
# What holds a clock or the id of a run, and so differs between two undisturbed runs, too.
OWN_CLOCK = re.compile(r"reports/(distill|evaluate|metrics|report|summary)")


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


def free(disk: Path) -> int:
    """Return the bytes that are left on a disk."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


@contextlib.contextmanager
def filled_when(has_come: Callable[[], bool], disk: Path) -> Iterator[threading.Event]:
    """Take all room of a disk once a moment has come within the block; give it back afterwards.

    What is given tells whether it came.
    """
    ballast = disk / "ballast"
    is_full, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_S):
            if not is_full.is_set() and not has_come():
                continue
            is_full.set()
            with contextlib.suppress(OSError), ballast.open("ab") as file:
                if left := free(disk):  # what is freed later is taken, too
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), left)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield is_full
    finally:
        is_over.set()
        thread.join()
        ballast.unlink(missing_ok=True)


def try_once(root: Path, command: Sequence[str], mark: str) -> tuple[int | None, str, float]:
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
            code: int | None = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
            end_all(mark)
            process.wait()
        seconds = time.monotonic() - begin
        log.seek(0)
        return code, log.read().decode(errors="replace"), seconds


def half_written(root: Path) -> list[str]:
    """Return the files that were begun and that stand for nothing."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*.partial"))


def reason(output: str, place: Path) -> str:
    """Return the line that says why a command failed, without what only this machine has."""
    lines = [line for line in output.splitlines() if re.match(r"error: |ERROR: ", line)]
    lines = [line for line in lines if re.search(NO_ROOM, line)] or lines
    text = lines[0] if lines else output.strip()[-300:]
    return text.replace(f"{place}/", "").replace(f"{place}:", "the checkout:")


def fill(root: Path, name: str, log: Path) -> dict[str, Any]:
    """Return what a command did on a disk that became full under it, and at last did not."""
    disk = root.parents[1]
    command = RUN if name == "register" else (*DVC, name)
    tries, said = [], []

    def written(num_bytes: int) -> Callable[[], bool]:
        before = free(disk)
        return lambda: before - free(disk) >= num_bytes

    def is_there() -> bool:
        return any(root.glob(OUTPUTS[name]))

    moments: list[tuple[str, Callable[[], Callable[[], bool]]]] = [
        (f"{count:,} bytes", functools.partial(written, count)) for count in WRITTEN
    ]
    moments.insert(3, ("its output is there", lambda: is_there))
    moments.append(("never", lambda: lambda: False))
    for moment, begin in moments:
        mark = str(disk)
        with filled_when(begin(), disk) as is_full:
            code, output, seconds = try_once(root, command, mark)
            quiet(mark)
            left = end_all(mark)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"===== {name}, {moment}: {code} after {seconds:.1f} s\n{output}\n")
        why = "" if code == 0 else reason(output, root)
        row = {"full_after": moment, "came": is_full.is_set(), "exit_code": code, "said": why}
        tries.append({**row, "seconds": round(seconds, 1)})
        if code is None:
            said.append(f"{moment}: it did not end within {LIMIT_S:.0f} s")
        if left and code is not None:
            said.append(f"{moment}: {len(left)} processes outlived it")
        if "Traceback" in output:
            said.append(f"{moment}: a traceback")
        if partials := half_written(root):
            said.append(f"{moment}: half-written: {', '.join(partials)}")
        if code and not re.search(NO_ROOM, output):
            said.append(f"{moment}: the reason is not told")
        if code == 0 and (moment == "never" or name != "register"):
            break
    return {"stage": name, "tries": tries, "faults": said}


def undisturbed(root: Path, *, registers: bool) -> Any:
    """Return the state that a run leaves which has all the room it needs, and clear it away."""
    call(root, *DVC[:-1])
    if registers:
        call(root, *RUN)
    wanted = state_of(root)
    call(root, "git", "clean", "-ffdxq")
    call(root, "git", "checkout", "--quiet", ".")
    remove(root.parent / "site")
    return wanted


def main() -> int:
    """Fill the disk under every stage and return 1 where something was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=450, help="size of the disk")
    parser.add_argument("--only", nargs="+", default=list(OUTPUTS), choices=list(OUTPUTS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "disk_full.json")
    parser.add_argument("--log", type=Path, default=Path("/tmp/danceflow-disk.log"))  # noqa: S108
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("only root may mount a file system: sudo python benchmarks/disk_full.py")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is taken away
    options.log.write_text("", encoding="utf-8")
    content: dict[str, Any] = {
        "command": " ".join(["sudo python benchmarks/disk_full.py --only", *options.only]),
        "commit": "",
        "megabytes": options.mb,
        "stages": [],
    }
    with small_disk(options.mb) as disk:
        root = disk / "work" / "checkout"
        make_fresh(root, [CAPABILITY])
        (root.parent / "tmp").mkdir()
        content["commit"] = call(root, "git", "rev-parse", "HEAD~1").strip()
        wanted = undisturbed(root, registers="register" in options.only)
        for name in options.only:
            row = fill(root, name, options.log)
            content["stages"].append(row)
            write_json(options.out, content)
            sys.stdout.write(json.dumps(row, indent=1) + "\n")
            sys.stdout.flush()
        found = state_of(root)
    varying = frozenset(entry for entry in found.lock if OWN_CLOCK.search(entry))
    told = faults(found, wanted, varying, experiment=False)
    write_json(options.out, {**content, "afterwards": told})
    sys.stdout.write(f"{told}\n")
    return int(bool(told) or any(row["faults"] for row in content["stages"]))


if __name__ == "__main__":
    sys.exit(main())
