"""How long each stage took when it last ran here: one small file in the scratch folder."""

import fcntl
import json
from pathlib import Path

from danceflow.ops.files import write_json

_FILE = "timings.json"


def record(scratch: Path, stage: str, seconds: float) -> None:
    """Write how long a stage took; stages that end at the same time wait for each other.

    Args:
        scratch: The checkout's scratch folder.
        stage: As DVC calls it, such as ``evaluate@t2i``.
        seconds: From its start to its end.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / f"{_FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_json(scratch / _FILE, {**read(scratch), stage: round(seconds, 1)})


def read(scratch: Path) -> dict[str, float]:
    """Return the seconds of every stage that ran in this checkout, in the order of the file.

    Args:
        scratch: The checkout's scratch folder; nothing is known where it holds no timings.
    """
    try:
        found = json.loads((scratch / _FILE).read_text(encoding="utf-8"))
        return {str(stage): float(seconds) for stage, seconds in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
