"""The promotion gate: a pure function of two summaries and a policy."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danceflow.ops.files import write_json

if TYPE_CHECKING:
    from danceflow.params.sections import GateParams

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One condition of the gate.

    Attributes:
        capability: which capability it is about.
        kind: ``retention`` (against the teacher) or ``regression`` (against the champion).
        value: what was measured; None when it was not.
        limit: the least value that passes.
        passed: whether it does.
    """

    capability: str
    kind: str
    value: float | None
    limit: float
    passed: bool

    def __str__(self) -> str:
        """Return the condition as a sentence."""
        if self.kind == "retention":
            needs = f"needs {self.limit:.1%} of the teacher's score"
            found = "has no retention" if self.value is None else f"keeps {self.value:.1%}"
        else:
            needs = f"needs {self.limit:.4g}, the champion's score less what may be lost"
            found = "has no score" if self.value is None else f"scores {self.value:.4g}"
        return f"{self.capability}: {found}, {needs}"


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: every condition that was checked."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every condition holds, and there was one."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass, one sentence per failed condition; empty when it passed."""
        if not self.checks:
            return ("there is no capability to check",)
        return tuple(str(check) for check in self.checks if not check.passed)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for ``reports/gate.json``."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "checks": [
                {
                    "capability": check.capability,
                    "kind": check.kind,
                    "value": check.value,
                    "limit": check.limit,
                    "passed": check.passed,
                }
                for check in self.checks
            ],
        }


def verdict(summary: Summary, champion: Summary | None, policy: "GateParams") -> Verdict:
    """Return whether a student may become champion, with every condition checked.

    Every capability of the policy or of the summary must keep its share of the teacher's score
    (a capability that the policy does not name must keep all of it), and every capability of the
    champion must keep its share of the champion's score. What was not measured does not pass.

    Args:
        summary: the student's ``reports/summary.json``.
        champion: the current champion's; None when there is none, or it is the student itself.
        policy: the limits, as the section ``gate`` tells them.
    """
    measured = _capabilities(summary)
    return Verdict(
        (
            *_retention_checks(measured, policy.min_retention),
            *_regression_checks(measured, _capabilities(champion or {}), policy.max_regression),
        )
    )


def write_verdict(path: Path, answer: Verdict) -> None:
    """Write a verdict (atomically) as JSON."""
    write_json(path, answer.as_json())


def _capabilities(summary: Summary) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = summary.get("capabilities", {})
    return found


def _retention_checks(
    measured: Mapping[str, Mapping[str, Any]], limits: Mapping[str, float]
) -> Iterator[Check]:
    for name in dict.fromkeys([*limits, *measured]):
        limit = limits.get(name, 1.0)
        value = _number(measured.get(name, {}).get("retention"))
        yield Check(name, "retention", value, limit, value is not None and value >= limit)


def _regression_checks(
    measured: Mapping[str, Mapping[str, Any]],
    champion: Mapping[str, Mapping[str, Any]],
    max_regression: float,
) -> Iterator[Check]:
    for name, row in champion.items():
        best = _number(row.get("student"))
        if best is None:
            continue
        limit = best * (1.0 - max_regression)
        value = _number(measured.get(name, {}).get("student"))
        yield Check(name, "regression", value, limit, value is not None and value >= limit)


def _number(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
