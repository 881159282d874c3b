"""Sets the clock of a pipeline and of its servers while they run, and looks at what they leave.

    python benchmarks/clock_jumps.py [--folder DIR] [--out FILE]

``danceflow run`` and all that it starts see a clock that is set at the beginning of every stage:
ahead by hours, back by days, ahead by a year. A small library shows it to them
(``clock_offset.c``; it needs a C compiler). What counts seconds since the machine's start is left
alone. Another run goes undisturbed. Both must leave the same.
"""

import argparse
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

from punisher import CAPABILITIES, ROOT, Run, faults, references, state_of

from danceflow.ops.files import write_json

HOUR, DAY = 3_600, 86_400
JUMPS = {
    "prepare": 2 * HOUR,
    f"cache@{CAPABILITIES[0]}": -5 * HOUR,
    f"cache@{CAPABILITIES[1]}": 30 * DAY,
    "distill": -DAY,
    f"evaluate@{CAPABILITIES[0]}": 400 * DAY,
    f"evaluate@{CAPABILITIES[1]}": 0,
    "report": -3 * DAY,
    "register": HOUR,
}


def library(folder: Path) -> Path:
    """Build what shows another time, and return it."""
    made = folder / "clock_offset.so"
    source = Path(__file__).with_name("clock_offset.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", made, source, "-ldl"], check=True)
    return made


def set_clock(file: Path, seconds: int) -> None:
    """Let every process that has mapped the file see another time, at once."""
    with file.open("r+b" if file.exists() else "wb") as place:
        place.write(struct.pack("l", seconds))


def main() -> int:
    """Return 1 where a clock that was set changed what a run leaves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/danceflow-clock"))  # noqa: S108
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "clock_jumps.json")
    options = parser.parse_args()
    found = references(options.folder)
    root = found.copied("fresh", options.folder / "clock")
    clock, log = root.parent / "clock", root.parent / "log"
    set_clock(clock, 0)
    shown = {"LD_PRELOAD": str(library(root.parent)), "CLOCK_OFFSET_FILE": str(clock)}
    os.environ.update(shown)
    run = Run(root, "clock", log)
    for name in shown:
        del os.environ[name]
    waiting = dict(JUMPS)
    while run.is_running:
        for stage in [stage for stage in waiting if run.began(stage)]:
            set_clock(clock, waiting.pop(stage))
        time.sleep(0.05)
    code, seconds = run.wait()
    said = faults(state_of(root), found.wanted["fresh"], found.varying, experiment=False)
    if code:
        said.append(f"exit code {code}")
    if waiting:
        said.append(f"stages that did not begin: {', '.join(waiting)}")
    told = re.findall(r".*(?:WARNING|ERROR|Crashed).*", run.text)
    result = {
        "command": "python benchmarks/clock_jumps.py",
        "jumps": JUMPS,
        "seconds": round(seconds, 1),
        "told": told,
        "faults": said,
    }
    write_json(options.out, result)
    sys.stdout.write(f"{result}\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
