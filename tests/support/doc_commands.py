"""The commands that people read, in README and docs, with what is said about how to test them.

A block of commands may stand below a comment that no page shows:

    <!-- needs: hours -->             nobody runs it in a test; hours, a GPU or another machine
    <!-- tested as: ... -->           a test runs these words instead, which take a moment
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT

NEEDS = frozenset({"a GPU", "hours", "another machine"})
PROGRAMS = frozenset(
    {
        "cp",
        "curl",
        "danceflow",
        "docker",
        "dvc",
        "export",
        "git",
        "make",
        "mlflow",
        "pip",
        "prefect",
        "python",
        "source",
    }
)
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "reference" not in page.parts),
]
TUTORIAL = "tests/e2e/test_tutorial.py"

# Which test runs what begins with these words. Of two the longer one counts.
EXECUTED = {
    "cp deploy/example.env": "tests/team/test_deploy_files.py",
    "curl localhost:8080": TUTORIAL,
    "curl -H": "tests/service/test_serve.py",
    "danceflow bring-teachers": "tests/e2e/test_smoke.py",
    "danceflow deploy": "tests/flows/test_schedule.py",
    "danceflow diff": "tests/flows/test_diff.py",
    "danceflow digits": "tests/runs/test_digits.py",
    "danceflow doctor": "tests/team/test_team_pipeline.py",
    "danceflow edit": TUTORIAL,
    "danceflow evaluate": TUTORIAL,
    "danceflow experiments": TUTORIAL,
    "danceflow explain": TUTORIAL,
    "danceflow studio": "tests/studio/test_serve.py",
    "danceflow export": "tests/registry/test_export.py",
    "danceflow generate": TUTORIAL,
    "danceflow history": TUTORIAL,
    "danceflow promote": "tests/team/test_team_promotion.py",
    "danceflow promote --wait-for-approval": "tests/flows/test_approval.py",
    "danceflow rollback": "tests/team/test_team_promotion.py",
    "danceflow run --dry-run": TUTORIAL,
    "danceflow run --pull": "tests/team/test_team_pipeline.py",
    "danceflow run --push": "tests/team/test_team_pipeline.py",
    "danceflow run --recipe": "tests/runs/test_digits.py",
    "danceflow run --wait-for-approval": "tests/flows/test_approval.py",
    "danceflow run -S": "tests/e2e/test_doors.py",
    "danceflow serve": "tests/pipeline/test_killed.py",
    "danceflow serve-model": "tests/service/test_serve.py",
    "danceflow sweep": "tests/pipeline/test_sweep.py",
    "danceflow sync": TUTORIAL,
    "danceflow table": "tests/pipeline/test_sweep.py",
    "danceflow team": "tests/team/test_team_pipeline.py",
    "danceflow ui": "tests/flows/test_pages.py",
    "danceflow watch": "tests/pipeline/test_watch.py",
    "docker compose": "tests/team/test_deploy_files.py",
    "dvc exp show": TUTORIAL,
    "dvc metrics diff": TUTORIAL,
    "dvc remote add": "tests/flows/test_dvc_remote.py",
    "export DANCEFLOW_SERVICE_TOKEN": "tests/service/test_serve.py",
    "make run": TUTORIAL,
    "make team-": "tests/team/test_team_pipeline.py",
    "make test": "tests/test_project.py",
    "mlflow models serve": "tests/registry/test_serving_model.py",
    "python -m pytest tests/golden": "tests/golden/test_loss_traces.py",
    "source .venv/bin/activate": TUTORIAL,
}

_FENCE = re.compile(r"\s*```(\w*)\s*$")
_VARIABLES = re.compile(r"^(?:[A-Z][A-Z_]*=\S*\s+)*")
_MARK = re.compile(r"<!-- (needs|tested as): (.+) -->")
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


@dataclass(frozen=True)
class Command:
    """A command as a page shows it.

    Attributes:
        page: relative to the repository.
        line: of the page, from 1.
        text: without its comment.
        words: what a shell makes of it.
        needs: why no test runs it; "": one does.
        tested_as: what a test runs instead; "": the command itself.
    """

    page: str
    line: int
    text: str
    words: tuple[str, ...]
    needs: str = ""
    tested_as: str = ""

    def __str__(self) -> str:
        """Say where it stands, and what it is."""
        return f"{self.page}:{self.line}: {self.text}"


def executed_by(command: Command) -> str:
    """The test that runs a command; "": none is named."""
    found = [begin for begin in EXECUTED if command.text.startswith(begin)]
    return EXECUTED[max(found, key=len)] if found else ""


def blocks(page: Path) -> Iterator[Command]:
    """The commands in a page's fenced blocks."""
    lines = page.read_text(encoding="utf-8").splitlines()
    name, mark, is_code, language, begun, start = str(page.relative_to(ROOT)), {}, False, "", "", 0
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if fence:
            is_code, language = not is_code, fence[1]
            mark = mark if is_code else {}
            continue
        if not is_code:
            found = _MARK.fullmatch(line.strip())
            mark = {found[1]: found[2]} if found else mark if not line.strip() else {}
            continue
        first = _VARIABLES.sub("", line).split(" ")[0]
        if language not in ("", "sh") or not (begun or first in PROGRAMS):
            continue
        start, begun = (start, f"{begun}\n{line}") if begun else (number, line)
        try:
            words = tuple(shlex.split(begun.replace("\\\n", " "), comments=True))
        except ValueError:  # a quotation that ends further down
            continue
        if begun.endswith("\\"):
            continue
        text = _VARIABLES.sub("", re.sub(r"\s+# .*$", "", begun))
        words = words[len(_VARIABLES.match(begun)[0].split()) :]
        yield Command(name, start, text, words, mark.get("needs", ""), mark.get("tested as", ""))
        begun = ""
    assert not begun, f"{name}:{start}: does not end"


def mentions(page: Path) -> Iterator[Command]:
    """The commands that a page names within its sentences."""
    text = re.sub(r"(?ms)^\s*```.*?^\s*```", _blank, page.read_text(encoding="utf-8"))
    for found in _INLINE.finditer(text):
        said = " ".join(found[1].split())
        if said.split(" ")[0] in PROGRAMS and " " in said:
            line = text.count("\n", 0, found.start()) + 1
            words = tuple(shlex.split(said))
            yield Command(str(page.relative_to(ROOT)), line, said, words)


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")
