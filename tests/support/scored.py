"""Evidence of versions that nobody trained: rows whose scores are known."""

from collections.abc import Sequence

from danceflow.report.evidence import Evidence, Scored

ASKED = {"rows": "0123456789abcdef", "num_steps": 4, "seeds": [0], "judge": None, "code": "c0"}
NUM_PROMPTS = 30


def rows_of(
    student: float | Sequence[float], teacher: float | None = 1.0, categories: int = 2
) -> tuple[tuple[str, str, int, float, float | None], ...]:
    """Rows of equal scores, or of the scores given, category after category in turn."""
    scores = [student] * NUM_PROMPTS if isinstance(student, int | float) else student
    return tuple(
        (f"c{place % categories}", f"{place:04d}", 0, score, teacher)
        for place, score in enumerate(scores)
    )


def scored(student: float | Sequence[float], teacher: float | None = 1.0, **asked) -> Scored:
    """What a student scores on one capability, by an evaluation that may be changed."""
    return Scored(
        identity={**ASKED, **asked},
        scale=1.0,
        teacher="teacher:base",
        rows=rows_of(student, teacher),
    )


def evidence_of(
    score: float, retention: float = 1.0, capabilities: Sequence[str] = ("t2i",), **asked
) -> Evidence:
    """A version that scores the same on every prompt of every capability."""
    row = {"student": score, "teacher": score / retention, "retention": retention}
    row |= {"retention_interval": [retention, retention], "num_samples": NUM_PROMPTS}
    return Evidence(
        capabilities=dict.fromkeys(capabilities, scored(score, score / retention, **asked)),
        summary=dict.fromkeys(capabilities, row),
    )
