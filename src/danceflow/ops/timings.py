"""What each stage cost when it last ran here: one small file in the scratch folder."""

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from danceflow.ops.files import exclusive, write_json

_FILE = "timings.json"
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes; macOS counts in bytes, Linux in KiB."""
_OWN, _CHILDREN = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN


@dataclass(frozen=True)
class Cost:
    """What a stage took.

    Attributes:
        seconds: From its start to its end.
        processor_seconds: Of all cores together.
        memory_bytes: The most that its process held at a time; not what lies on an accelerator.
    """

    seconds: float
    processor_seconds: float
    memory_bytes: int


class Meter:
    """Measures this process from the moment it is made."""

    def __init__(self) -> None:
        """Begin."""
        self._started, self._before = time.monotonic(), _processor_seconds()

    def read(self) -> Cost:
        """Return what was taken so far."""
        peak = max(resource.getrusage(who).ru_maxrss for who in (_OWN, _CHILDREN)) * _PEAK_UNIT
        processor = _processor_seconds() - self._before
        return Cost(round(time.monotonic() - self._started, 1), round(processor, 1), peak)


def record(scratch: Path, stage: str, cost: Cost) -> None:
    """Write what a stage cost; stages that end at the same time wait for each other.

    Args:
        scratch: The checkout's scratch folder.
        stage: As DVC calls it, such as ``evaluate@t2i``.
        cost: What it took.
    """
    with exclusive(scratch / _FILE):
        known = {**read(scratch), stage: cost}
        write_json(scratch / _FILE, {name: asdict(item) for name, item in known.items()})


def read(scratch: Path) -> dict[str, Cost]:
    """Return the cost of every stage that ran in this checkout, in the order of the file.

    Args:
        scratch: The checkout's scratch folder; nothing is known where it holds no timings.
    """
    try:
        found = json.loads((scratch / _FILE).read_text(encoding="utf-8"))
        return {
            str(stage): Cost(
                float(item["seconds"]), float(item["processor_seconds"]), int(item["memory_bytes"])
            )
            for stage, item in found.items()
        }
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (_OWN, _CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)
