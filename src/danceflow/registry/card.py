"""The model card: what a person needs to know of a version, on its page in the registry.

It is written anew whenever the gate has judged the version, so that it always tells the last
verdict. What it holds is short on purpose: the rows stand in the run's files.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from danceflow.ops.tracking import Store, known, store_errors, without_login
from danceflow.registry.about import About
from danceflow.registry.open import DIGEST_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from danceflow.report.evidence import Evidence
    from danceflow.report.gate import Verdict

MAX_DESCRIPTION = 5000  # characters; a column of MLflow's database
MAX_TAG = 5000  # characters; MLflow cuts a run's tag at 8000 without a word
VERDICT_FILE = "gate.json"

_NUM_LISTED = 8

LIMITS = (
    (
        "Scores are those of the test prompts, with the steps and guidance named above; other "
        "prompts, words and sizes were not measured."
    ),
    (
        "It makes and edits pictures of the sizes that it was trained on, and knows the words of "
        "its training prompts."
    ),
    "It was trained to do as its teachers do: their faults are its faults.",
)
_HEAD = """| capability | student | teacher | retention | 95 % interval | prompts |
|---|---|---|---|---|---|"""
_BY_STEPS = (
    "Share of the teacher's score in its own number of steps, and the score; one noise seed. "
    "**Bold**: the number that it answers in."
)


def fitting(sentences: Sequence[str], limit: int = MAX_TAG) -> str:
    """Return sentences in one line; those that do not fit are counted.

    Args:
        sentences: what to say.
        limit: characters at most.
    """
    text = "; ".join(sentences)
    kept = len(sentences)
    while len(text) > limit and kept:
        kept -= 1
        rest = f"{len(sentences) - kept} more in {VERDICT_FILE}"
        text = "; ".join([*sentences[:kept], rest])
    return text


def publish(store: Store, version: "ModelVersion", evidence: "Evidence", answer: "Verdict") -> None:
    """Put a verdict into the files of a version's run, and the card on the version's page.

    Args:
        store: where it is registered.
        version: which one.
        evidence: what it was judged by.
        answer: the gate's.

    Raises:
        TrackingError: the store cannot be reached.
    """
    with store_errors(store.uri):
        run = version.run_id and known(lambda: store.client.get_run(version.run_id))
        if run is not None and run.info.lifecycle_stage == "active":
            text = json.dumps(answer.as_json(), indent=2, ensure_ascii=False) + "\n"
            store.client.log_text(run.info.run_id, text, VERDICT_FILE)
        store.client.update_model_version(
            version.name, str(version.version), description=card(version, evidence, answer, run)
        )


def card(
    version: "ModelVersion", evidence: "Evidence", answer: "Verdict", run: "Run | None"
) -> str:
    """Return the card of a version as Markdown, at most ``MAX_DESCRIPTION`` characters.

    Args:
        version: which one.
        evidence: what it was judged by.
        answer: the gate's.
        run: that it comes from; None: it is gone.
    """
    params: Mapping[str, str] = {} if run is None else run.data.params
    origin = "\n".join(f"- {line}" for line in _origin(version, evidence, params, run))
    head = (
        f"# {version.name}, version {version.version}\n\n"
        f"One student that does what several teachers do. {_summary(answer)}\n\n"
        f"## Scores\n\n{_HEAD}"
    )
    tail = (
        f"## Where it comes from\n\n{origin}\n\n## How to load it\n\n{_loading(version)}\n\n"
        "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS) + "\n"
    )
    between = "\n\n## Verdict of the gate\n\n"
    room = MAX_DESCRIPTION - len(head) - len(between) - len(tail) - 3
    verdict = _fitting_lines(_verdict_lines(answer), room * 2 // 3)
    scores = _fitting_lines(_score_lines(evidence), room - len(verdict))
    steps = steps_table(evidence)
    if len(verdict) + len(scores) + len(steps) > room:  # the rest says more; the report has it
        steps = ""
    return f"{head}\n{scores}{steps}{between}{verdict}\n\n{tail}"


def score_table(evidence: "Evidence") -> str:
    """Return the scores of every capability with their intervals, a table in Markdown."""
    return "\n".join([_HEAD, *_score_lines(evidence)])


def steps_table(evidence: "Evidence") -> str:
    """Return what is kept in few steps, with its heading; empty where nobody measured it."""
    found = {name: item for name, item in evidence.steps.items() if len(_by_steps(item)) > 1}
    numbers = sorted({n for item in found.values() for n in _by_steps(item)}, reverse=True)
    if not found:
        return ""
    lines = [
        f"\n\n## In other numbers of steps\n\n{_BY_STEPS}\n",
        f"| capability | {' | '.join(map(str, numbers))} |",
        f"|---|{'---|' * len(numbers)}",
    ]
    for name, item in found.items():
        rows = _by_steps(item)
        cells = [_kept(rows.get(n), is_own=n == item["student_steps"]) for n in numbers]
        lines.append(f"| {plain(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_steps(item: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    return {row["steps"]: row["student"] for row in item["rows"] if row["student"] is not None}


def _kept(row: Mapping[str, Any] | None, *, is_own: bool) -> str:
    if row is None:
        return "-"
    share = "-" if row["share"] is None else f"{row['share']:.0%}"
    text = f"{share} ({_figure(row['score'])})"
    return f"**{text}**" if is_own else text


def _summary(answer: "Verdict") -> str:
    against = f", compared with {answer.against}" if answer.against else ", without a champion"
    return f"It {answer.headline} (confidence {answer.confidence:.0%}{against})."


def _score_lines(evidence: "Evidence") -> list[str]:
    lines = []
    for name, scored in evidence.capabilities.items():
        row = evidence.summary.get(name, {})
        interval = row.get("retention_interval")
        shown = "-" if not interval else f"{interval[0]:.0%} to {interval[1]:.0%}"
        retention = row.get("retention")
        kept = "-" if retention is None else f"{retention:.1%}"
        prompts = len({uid for _, uid, *_ in scored.rows})
        figures = f"{_figure(row.get('student'))} | {_figure(row.get('teacher'))}"
        lines.append(
            f"| {plain(name)} (of {scored.scale:g}) | {figures} | {kept} | {shown} | {prompts} |"
        )
    return lines


def _verdict_lines(answer: "Verdict") -> list[str]:
    """Return every condition, those that do not hold first."""
    order = {"fail": 0, "unknown": 1, "pass": 2}
    checks = sorted(answer.checks, key=lambda check: order[check.decision])
    return [f"- **{check.decision}** {plain(str(check))}" for check in checks] or [
        "- there was nothing to check"
    ]


def _origin(
    version: "ModelVersion", evidence: "Evidence", params: Mapping[str, str], run: "Run | None"
) -> list[str]:
    about = About.of_tags(version.tags)
    teachers = dict.fromkeys(
        scored.teacher.removeprefix("teacher:") for scored in evidence.capabilities.values()
    )
    if about is None:
        lines = [f"Teachers: {_listed(teachers)}"]
    else:
        found = replace(about, teachers={**teachers, **about.teachers})
        lines = [plain(line) for line in found.lines()]
    for label, name in (
        ("Family", "family.name"),
        ("Method", "distill.method"),
        ("Start", "distill.init"),
        ("Updates", "distill.num_updates"),
    ):
        if name in params:
            lines.append(f"{label}: {plain(params[name])}")
    inputs = [] if run is None else [item.dataset for item in run.inputs.dataset_inputs]
    if inputs:
        digests = [f"{item.name} {item.digest}" for item in inputs]
        lines.append(f"Data (DVC's digests): {_listed(digests)}")
    for scored in list(evidence.capabilities.values())[:1]:
        asked = ", ".join(
            f"{name} {json.dumps(value)}"
            for name, value in scored.identity.items()
            if value is not None
        )
        lines.append(f"Evaluation: {plain(asked)}")
    lines.append(f"Content (SHA-256): `{version.tags.get(DIGEST_TAG, 'unknown')}`")
    if "git.commit" in version.tags:
        dirty = " with local changes" * (version.tags.get("git.dirty") == "true")
        lines.append(f"Code: git commit `{version.tags['git.commit'][:12]}`{dirty}")
    if "dvc.experiment" in version.tags:
        lines.append(f"DVC experiment: {plain(version.tags['dvc.experiment'])}")
    return lines


def _listed(names: Iterable[str]) -> str:
    """Return the first names, and how many follow."""
    found = [plain(name) for name in names]
    more = f" and {len(found) - _NUM_LISTED} more" * (len(found) > _NUM_LISTED)
    return ", ".join(found[:_NUM_LISTED]) + more


def _loading(version: "ModelVersion") -> str:
    uri = f"models:/{version.name}/{version.version}"
    return (
        f"```python\nfrom danceflow.registry.open import open_student\n\n"
        f'student = open_student("{uri}")\nimages = student.generate(["..."], seed=0)\n```\n\n'
        f"From a shell: `danceflow generate '...' --from {uri}`, or "
        f"`mlflow models serve -m {uri} --env-manager local`."
    )


def _fitting_lines(lines: Sequence[str], room: int) -> str:
    """Return as many lines as fit, and how many do not."""
    kept = list(lines)
    while kept and sum(len(line) + 1 for line in kept) + 40 > room:
        kept.pop()
    left = len(lines) - len(kept)
    more = f"\n\n{left} more in the run's files" * (left > 0)
    return "\n".join(kept) + more


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def plain(text: str) -> str:
    """Return a text that is one cell of a Markdown table, whatever a name holds."""
    escaped = without_login(" ".join(text.split())).replace("\\", "\\\\")
    for sign in "|<>`*_[]":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
