"""The promotion gate: what the rows of a student say about every condition, and how surely.

A pure function of evidence and a policy. Every condition is a difference that should not be below
0: the score less the floor, less a share of the teacher's, less a share of the champion's. The
bootstrap over prompts gives its bounds, each of one-sided confidence ``gate.confidence``. Lies the
lower one at 0 or above, the condition holds; lies the upper one below 0, it does not; otherwise it
is not known with these rows, and what is not known is not promoted.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from danceflow.ops.files import write_json
from danceflow.report.bootstrap import Array, pair
from danceflow.report.evidence import Evidence, Scored

if TYPE_CHECKING:
    from danceflow.params.sections import GateParams

Decision = Literal["pass", "fail", "unknown"]
Kind = Literal["floor", "retention", "regression"]

NUM_RESAMPLES = 2000
MIN_PROMPTS = 20
"""Fewer prompts of a capability tell nothing: the scores of a few are easily all equal."""

_WHOSE: Mapping[Kind, str] = {
    "floor": "",
    "retention": " of the teacher's score",
    "regression": " of the champion's score",
}
_POWER = 0.8  # how often the rows that a sentence asks for would settle the matter
_MAX_FACTOR = 100  # times as many rows: more is as good as never
_ROUNDING = 1e-9
_DIGITS = 6
_SEED = 0


@dataclass(frozen=True)
class Check:
    """One condition of the gate.

    Attributes:
        capability: which capability it is about.
        kind: ``floor`` (a score), ``retention`` (a share of the teacher's score) or
            ``regression`` (a share of the champion's).
        decision: whether it holds.
        limit: the least value that passes.
        value: what was measured; None: it was not.
        low: the value's lower bound.
        high: its upper bound.
        num_rows: how many prompts say so.
        needed: where it is not known, how many prompts would settle it four times in five, should
            the value stay; None: more prompts are not likely to.
        note: why it could not be measured.
    """

    capability: str
    kind: Kind
    decision: Decision
    limit: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    num_rows: int = 0
    needed: int | None = None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is known to hold."""
        return self.decision == "pass"

    @property
    def shown(self) -> str:
        """What was measured, with its bounds, or why it was not."""
        if self.value is None:
            return self.note or "was not measured"
        bounds = ""
        if self.low is not None and self.high is not None:
            bounds = f" (between {self._figure(self.low)} and {self._figure(self.high)})"
        return f"{self._figure(self.value)}{bounds}"

    @property
    def needs(self) -> str:
        """The limit, and whose share it is."""
        return self._figure(self.limit) + _WHOSE[self.kind]

    def __str__(self) -> str:
        """Return the condition and what is known of it as a sentence."""
        verb = "" if self.value is None else "scores " if self.kind == "floor" else "keeps "
        return f"{self.capability}: {verb}{self.shown}, needs {self.needs}{self._known()}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        names = (
            *("capability", "kind", "decision", "passed", "value", "low", "high", "limit"),
            *("num_rows", "needed"),
        )
        return {name: getattr(self, name) for name in names} | {"sentence": str(self)}

    def _known(self) -> str:
        if self.decision != "unknown" or self.value is None:
            return ""
        if self.note:
            return f": not known, {self.note}"
        if self.needed is None:
            return (
                f": not known with these {self.num_rows} prompts, and more are not likely to tell, "
                "as it lies at the limit"
            )
        return (
            f": not known with these {self.num_rows} prompts; about {self.needed} would tell, "
            "should it stay so"
        )

    def _figure(self, value: float) -> str:
        return f"{value:.4g}" if self.kind == "floor" else f"{value:.1%}"


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: every condition that was checked.

    Attributes:
        checks: the conditions.
        confidence: one-sided, of each decision.
        against: what the student was compared with, such as ``version 3``; empty: no champion.
    """

    checks: tuple[Check, ...]
    confidence: float
    against: str = ""

    @property
    def decision(self) -> Decision:
        """``fail`` where a condition does not hold, else ``unknown`` where one is not known."""
        found = {check.decision for check in self.checks} or {"unknown"}
        worst: Sequence[Decision] = ("fail", "unknown", "pass")
        return next(decision for decision in worst if decision in found)

    @property
    def passed(self) -> bool:
        """Whether every condition is known to hold, and there was one."""
        return self.decision == "pass"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass, one sentence per condition; empty when it passed."""
        if not self.checks:
            return ("there is no capability to check",)
        return tuple(str(check) for check in self.checks if not check.passed)

    @property
    def headline(self) -> str:
        """The answer in a few words."""
        return {
            "pass": "passes the gate",
            "fail": "does not pass the gate",
            "unknown": "does not pass the gate yet: not known with these rows",
        }[self.decision]

    def as_json(self) -> dict[str, Any]:
        """Return plain data for ``reports/gate.json``."""
        return {
            "passed": self.passed,
            "decision": self.decision,
            "confidence": self.confidence,
            "against": self.against,
            "reasons": list(self.reasons),
            "checks": [check.as_json() for check in self.checks],
        }


@dataclass(frozen=True)
class Rival:
    """The champion, and what of the student is compared with it.

    Attributes:
        name: such as ``version 3``.
        evidence: the champion's.
        candidate: the student's, by the same evaluation; None: what the student was judged by.
        trouble: why the champion could not be evaluated again where that was needed.
    """

    name: str
    evidence: Evidence
    candidate: Evidence | None = None
    trouble: str = ""


def verdict(evidence: Evidence, rival: Rival | None, policy: "GateParams") -> Verdict:
    """Return whether a student may become champion, with every condition checked.

    Every capability of the policy or of the evidence must reach its floor, where it has one, and
    keep its share of the teacher's score (one that the policy does not name must keep all of it).
    Every capability of the champion must keep its share of the champion's score, on the same rows
    and by the same evaluation. What was not measured is not known, and does not pass.

    Args:
        evidence: the student's.
        rival: the present champion; None when there is none, or it is the student itself.
        policy: the limits, as the section ``gate`` tells them.
    """
    names = dict.fromkeys([*policy.min_retention, *policy.min_score, *evidence.capabilities])
    checks: list[Check] = []
    for name in names:
        scored = evidence.capabilities.get(name)
        if name in policy.min_score:
            checks.append(_floor(name, scored, policy.min_score[name], policy.confidence))
        limit = policy.min_retention.get(name, 1.0)
        checks.append(_retention(name, scored, limit, policy.confidence))
    if rival is not None:
        checks += _regressions(rival.candidate or evidence, rival, policy)
    return Verdict(tuple(checks), policy.confidence, "" if rival is None else rival.name)


def write_verdict(path: Path, answer: Verdict) -> None:
    """Write a verdict (atomically) as JSON."""
    write_json(path, answer.as_json())


def _floor(name: str, scored: Scored | None, limit: float, confidence: float) -> Check:
    check = _Asked(name, "floor", limit, confidence)
    if scored is None:
        return check.unknown("was not evaluated")
    return check.decide({(c, uid, seed): (score,) for c, uid, seed, score, _ in scored.rows})


def _retention(name: str, scored: Scored | None, limit: float, confidence: float) -> Check:
    check = _Asked(name, "retention", limit, confidence)
    if scored is None:
        return check.unknown("was not evaluated")
    if any(teacher is None for *_, teacher in scored.rows):
        return check.unknown("its teacher was not asked the same")
    return check.decide(
        {
            (category, uid, seed): (student, teacher)
            for category, uid, seed, student, teacher in scored.rows
            if teacher is not None
        }
    )


def _regressions(evidence: Evidence, rival: Rival, policy: "GateParams") -> Iterator[Check]:
    limit = max(0.0, 1.0 - policy.max_regression)
    why = f": {rival.trouble}" if rival.trouble else ""
    if not rival.evidence.capabilities:
        for name in evidence.capabilities:
            note = f"nothing is known of the champion ({rival.name}){why}"
            yield _Asked(name, "regression", limit, policy.confidence).unknown(note)
    for name, theirs in rival.evidence.capabilities.items():
        check = _Asked(name, "regression", limit, policy.confidence)
        ours = evidence.capabilities.get(name)
        if ours is None:
            yield check.fail(f"was not evaluated, and the champion ({rival.name}) can do it")
        elif other := ours.differs_from(theirs):
            yield check.unknown(
                f"the champion ({rival.name}) was evaluated otherwise ({', '.join(other)}){why}"
            )
        else:
            yield check.compare(ours, theirs)


@dataclass(frozen=True)
class _Asked:
    """A condition before it is decided."""

    capability: str
    kind: Kind
    limit: float
    confidence: float

    def unknown(self, note: str) -> Check:
        return Check(self.capability, self.kind, "unknown", self.limit, note=note)

    def fail(self, note: str) -> Check:
        return Check(self.capability, self.kind, "fail", self.limit, note=note)

    def compare(self, ours: Scored, theirs: Scored) -> Check:
        """Return what the rows say that both were scored on.

        Both were asked the same; what only one was scored on had words that the other does not
        know, or a judge gave no answer about it.
        """
        champion = {(category, uid, seed): score for category, uid, seed, score, _ in theirs.rows}
        common = {
            (category, uid, seed): (score, champion[category, uid, seed])
            for category, uid, seed, score, _ in ours.rows
            if (category, uid, seed) in champion
        }
        categories = {category for category, *_ in (*ours.rows, *theirs.rows)}
        if lost := sorted(categories - {category for category, *_ in common}):
            return self.unknown(f"has no row of {', '.join(lost)} in common with the champion")
        return self.decide(common)

    def decide(self, rows: Mapping[tuple[str, str, int], tuple[float, ...]]) -> Check:
        """Return what rows say: the score alone, or with it the score that it is compared to."""
        if not rows:
            return self.unknown("has no rows")
        width = len(next(iter(rows.values())))
        paired = pair(
            {str(at): [(*key, values[at]) for key, values in rows.items()] for at in range(width)}
        )
        overall, num_prompts = paired.overall(), paired.num_prompts
        if width > 1 and overall[1] <= 0:
            if self.kind == "regression":  # there is nothing to lose
                note = "the champion scores 0"
                return Check(self.capability, self.kind, "pass", self.limit, note=note)
            return self.unknown("its teacher scores 0, of which nothing can be kept")
        replicates = _replicates(tuple(paired.categories.values()))
        value = _share(overall)
        low, high = self._bounds(_share(replicates))
        found = Check(
            *(self.capability, self.kind, "unknown", self.limit, _round(value), low, high),
            num_rows=num_prompts,
        )
        smallest = min(len(scores) for scores in paired.categories.values())
        if num_prompts < MIN_PROMPTS or smallest < 2:
            note = f"as {num_prompts} prompts are too few to tell (at least {MIN_PROMPTS}"
            return replace(found, note=f"{note}, two of each category)")
        gaps = self._gap(replicates)
        tails = (1.0 - self.confidence, self.confidence)
        lower, upper = (float(end) for end in np.quantile(gaps, tails))
        rounding = _ROUNDING * max(1.0, float(np.abs(overall).max()))
        if lower >= -rounding:
            return replace(found, decision="pass")
        if upper < -rounding:
            return replace(found, decision="fail")
        return replace(found, needed=self._needed(float(self._gap(overall)), gaps, num_prompts))

    def _gap(self, overall: Array) -> Array:
        """Return by how much the condition holds: linear, so that no ratio can blow up."""
        if overall.shape[-1] == 1:
            gap: Array = overall[..., 0] - self.limit
            return gap
        return np.asarray(overall[..., 0] - self.limit * overall[..., 1])

    def _bounds(self, values: Array) -> tuple[float | None, float | None]:
        if not np.isfinite(values).all():
            return None, None
        low, high = np.quantile(values, [1.0 - self.confidence, self.confidence])
        return _round(low), _round(high)

    def _needed(self, gap: float, gaps: Array, num_prompts: int) -> int | None:
        """Return how many prompts, in the same mixture, would settle it with 80 % power."""
        normal = NormalDist()
        reach = (normal.inv_cdf(self.confidence) + normal.inv_cdf(_POWER)) * float(gaps.std())
        if abs(gap) * math.sqrt(_MAX_FACTOR) < reach:
            return None
        return math.ceil(num_prompts * (reach / gap) ** 2)


def _round(value: "np.floating[Any] | Array") -> float:
    return round(float(value), _DIGITS)


def _share(overall: Array) -> Array:
    """Return the score, or the share of the other's score, of overall scores [..., fields]."""
    if overall.shape[-1] == 1:
        score: Array = overall[..., 0]
        return score
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(overall[..., 0] / overall[..., 1])


def _replicates(categories: Sequence[Array]) -> Array:
    """Return bootstrap replicates of the means over categories, [NUM_RESAMPLES, fields].

    As ``PairedScores.resampled``, with deviations widened by sqrt(n / (n - 1)) in a category of n
    prompts: the bootstrap's variance lacks that factor (Efron and Tibshirani 1993, chapter 5.3),
    which is small for 40 prompts and not for 5.
    """
    generator = np.random.default_rng(_SEED)
    total = np.zeros((NUM_RESAMPLES, categories[0].shape[1]))
    for scores in categories:
        count, mean = len(scores), scores.mean(axis=0)
        drawn = generator.multinomial(count, np.full(count, 1 / count), size=NUM_RESAMPLES)
        widened = math.sqrt(count / (count - 1)) if count > 1 else 1.0
        total += mean + (drawn @ scores / count - mean) * widened
    result: Array = total / len(categories)
    return result
