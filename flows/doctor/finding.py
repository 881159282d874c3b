"""What a check found: how bad it is, what it is, and what to do."""

from dataclasses import dataclass
from enum import StrEnum

from danceflow.ops.tracking import without_login


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: what was looked at.
        level: how bad it is.
        text: what was found.
        advice: what to do; empty where nothing is.
    """

    check: str
    level: Level
    text: str
    advice: str = ""

    def __str__(self) -> str:
        """Return the line."""
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:5}{self.check:13}{self.text}{advice}"

    def as_data(self) -> dict[str, str]:
        """Return the finding for JSON."""
        return {
            "check": self.check,
            "level": str(self.level),
            "text": self.text,
            "advice": self.advice,
        }


def ok(check: str, text: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(check, Level.OK, without_login(text))


def warn(check: str, text: str, advice: str) -> Finding:
    """Return that something works and should be mended."""
    return Finding(check, Level.WARN, without_login(text), without_login(advice))


def fail(check: str, text: str, advice: str) -> Finding:
    """Return that something does not work."""
    return Finding(check, Level.FAIL, without_login(text), without_login(advice))
