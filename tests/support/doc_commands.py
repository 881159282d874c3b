"""The commands that people read, in README and docs, with what is said about how to test them.

A block of commands may stand below a comment that no page shows:

    <!-- needs: hours -->             nobody runs it in a test; it takes hours, a GPU, or the like
    <!-- tested as: ... -->           a test runs these words instead, which take a moment
"""

import functools
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from repository import ROOT

NEEDS = frozenset({"a GPU", "hours", "another machine", "containers", "other numbers"})
PROGRAMS = frozenset(
    {
        "bash",
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
"""Takes its commands from the pages, word by word."""

REACHES = "tests/test_cli.py::test_what_a_page_shows_reaches_the_code_behind_it"
"""Takes them from the pages, too, and ends where the work begins, which has tests of its own."""

_DOORS = "tests/e2e/test_doors.py"
_TEAM = "tests/team/test_team_pipeline.py"
_PAGE_OF_TEAM = f"{_TEAM}::test_the_page_s_commands_work"
_RACE = "tests/team/test_team_promotion.py"
# Which test runs what begins with these words. Of two the longer one counts. A test that is named
# fails where it has not started such a program with such options.
EXECUTED = {
    "curl localhost:8080": TUTORIAL,
    "danceflow bring-teachers": REACHES,
    "danceflow bring-teachers /models": "tests/e2e/test_smoke.py::test_a_family_is_distilled",
    "danceflow diff": TUTORIAL,
    "danceflow doctor": f"{_TEAM}::test_the_doctor_tells_a_wrong_login_and_not_the_password",
    "danceflow edit": TUTORIAL,
    "danceflow evaluate": TUTORIAL,
    "danceflow experiments": TUTORIAL,
    "danceflow explain": TUTORIAL,
    "danceflow export": REACHES,
    "danceflow export out --format diffusers": TUTORIAL,
    "danceflow generate": TUTORIAL,
    "danceflow history": TUTORIAL,
    "danceflow promote": f"{_RACE}::test_of_two_promotions_at_once_one_wins_and_the_other_says_why",
    "danceflow promote --wait-for-approval": f"{_RACE}::test_a_person_approves_and_is_remembered",
    "danceflow rollback": f"{_RACE}::test_a_rollback_restores_the_former_champion",
    "danceflow run --dry-run": TUTORIAL,
    "danceflow run --pull": f"{_TEAM}::"
    "test_a_second_clone_has_everything_from_s3_and_executes_nothing",
    "danceflow run --push": f"{_TEAM}::test_runs_are_in_postgres_and_artifacts_in_s3",
    "danceflow run --recipe": REACHES,
    "danceflow run --wait-for-approval": REACHES,
    "danceflow run -S": f"{_DOORS}::"
    "test_after_dvc_exp_run_the_flow_executes_nothing_and_keeps_the_checkout",
    "danceflow serve": "tests/pipeline/test_killed.py::"
    "test_what_is_killed_counts_as_crashed_and_the_next_run_goes_on",
    "danceflow serve-model": REACHES,
    "danceflow studio": REACHES,
    "danceflow studio --url": "tests/studio/test_serve.py::"
    "test_the_command_shows_a_page_over_a_service_and_ends_on_sigterm",
    "danceflow sweep": REACHES,
    "danceflow sync": TUTORIAL,
    "danceflow table": REACHES,
    "danceflow ui": "tests/flows/test_pages.py::"
    "test_however_the_command_ends_nothing_of_the_servers_is_left",
    "danceflow watch": REACHES,
    "danceflow team exec python": _PAGE_OF_TEAM,
    "danceflow team exec danceflow": REACHES,
    "danceflow team status": _PAGE_OF_TEAM,
    "dvc exp show": TUTORIAL,
    "dvc metrics diff": TUTORIAL,
    "dvc remote add": TUTORIAL,
    "make team-": "tests/test_project.py::test_make_sets_up_and_then_calls_the_command",
    "make test": "tests/test_project.py::test_make_sets_up_and_then_calls_the_command",
    "make run": f"{_DOORS}::test_after_the_flow_neither_the_flow_nor_dvc_repro_executes_anything",
    "mlflow models serve": "tests/service/test_serve.py::"
    "test_a_process_follows_the_champion_and_ends_what_it_began",
    "source .venv/bin/activate": TUTORIAL,
}

_FENCE = re.compile(r"\s*```(\w*)\s*$")
_VARIABLES = re.compile(r"^(?:(?:sudo|[A-Z][A-Z_]*=\S*)\s+)*")
"""What may stand before a program."""
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


@functools.cache
def claims() -> Mapping[str, tuple[Command, ...]]:
    """The commands that tests must have started, by the test; those of a file read them here."""
    found: dict[str, list[Command]] = {}
    for command in (command for page in PAGES for command in blocks(page)):
        test = executed_by(command)
        if "::" in test and test != REACHES and not command.needs:
            found.setdefault(test, []).append(command)
    return {test: tuple(commands) for test, commands in found.items()}


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
        if language not in ("", "bash", "sh") or not (begun or first in PROGRAMS):
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


def overlooked(page: Path) -> Iterator[str]:
    """Lines that a reader would type and no test sees, since nothing here knows their program."""
    seen: set[int] = set()
    for command in blocks(page):
        seen.update(range(command.line, command.line + command.text.count("\n") + 1))
    language: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        elif language in ("", "bash", "sh") and number not in seen and line.strip():
            first = _VARIABLES.sub("", line).split(" ")[0]
            is_typed = language or first == "sudo" or shutil.which(first)
            if is_typed and not first.startswith("#"):
                yield f"{page.name}:{number}: {line}"


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
