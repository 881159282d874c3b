"""What the two commands stand on: pins, settings, ignored files, the Makefile, and the house.

Every rule is read off the tree: a file that moves takes its rules along.
"""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions, version
from pathlib import Path

import durations
import pytest
from packaging.specifiers import SpecifierSet
from repository import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIRED = (
    *PROJECT["project"]["dependencies"],
    *(text for text in EXTRAS["dev"] if not text.startswith("danceflow[")),
)
"""What `make setup` installs."""


def _name(requirement: str) -> str:
    """The name of what a requirement asks for, as `PINS` is searched for it."""
    return re.split(r"[<>=\[]", requirement)[0].lower().replace("_", "-")


def test_pins_are_exact_and_name_no_place() -> None:
    for name, pin in PINS.items():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", pin), f"{name}=={pin}"


def test_what_is_required_is_pinned_and_installed_so() -> None:
    pins = {_name(name): pin for name, pin in PINS.items()}
    for name in map(_name, REQUIRED):
        assert version(name).partition("+")[0] == pins[name], name


def test_no_pin_asks_for_a_newer_python_than_the_project() -> None:
    """Pins are noted on one machine's Python; another has an earlier patch of the same release."""
    least = PROJECT["project"]["requires-python"].partition(",")[0].removeprefix(">=")
    pins = {_name(name) for name in PINS}
    for found in distributions():
        if _name(found.name) in pins and "Requires-Python" in found.metadata:
            asked = found.metadata["Requires-Python"]
            assert f"{least}.0" in SpecifierSet(asked), (found.name, asked)


def test_every_extra_is_pinned() -> None:
    pins = {_name(name) for name in PINS}
    for extra, requirements in EXTRAS.items():
        for name in map(_name, requirements):
            assert name in pins or name == _name(PROJECT["project"]["name"]), (extra, name)


def test_the_pins_that_matter() -> None:
    assert PINS["torch"] == "2.13.0"
    assert tuple(int(part) for part in PINS["fastapi"].split(".")[:2]) < (0, 151)


def test_the_bill_of_materials_holds_every_pin_and_is_the_same_each_time(tmp_path: Path) -> None:
    written = []
    for name in ("one.json", "two.json"):
        command = [sys.executable, "deploy/sbom.py", str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, check=True)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    bill = json.loads(written[0])
    held = {_name(part["name"]): part["version"] for part in bill["components"]}
    assert held == {_name(name): pin for name, pin in PINS.items()}
    assert bill["metadata"]["component"]["name"] == "danceflow"


def test_prefect_waits_long_enough_for_its_server() -> None:
    code = (
        "from prefect.settings import get_current_settings\n"
        "server = get_current_settings().server\n"
        "print(server.ephemeral.startup_timeout_seconds, server.analytics_enabled)"
    )
    environment = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["120", "False"]


def _ignored(path: str) -> bool:
    done = subprocess.run(
        ["git", "check-ignore", "--quiet", "--no-index", path], cwd=ROOT, check=False
    )
    assert done.returncode in {0, 1}
    return done.returncode == 0


@pytest.mark.parametrize(
    "path",
    [
        ".venv/bin/python",
        "mlflow.db",
        "mlflow.db-wal",
        "mlruns/0/x",
        "mlartifacts/0/x",
        ".danceflow/work/x",
        ".prefect/prefect.db",
        "src/danceflow/__pycache__/x.pyc",
        ".coverage",
        "data/buckets/t2i/x.arrow",
        "data/cache/t2i/x",
        "models/student/x.safetensors",
        "reports/distill/metrics.jsonl",
        "reports/evaluate/t2i/grid.png",
        "reports/evaluate/t2i.json",
        "reports/data.json",
        "reports/summary.json",
        "reports/gate.json",
        "models/teachers/.base.safetensors.1-ab.partial",
        "generated/000.png",
        "edited/000.png",
        "studio/studio.db",
    ],
)
def test_what_git_must_not_hold_is_ignored(path: str) -> None:
    assert _ignored(path)


@pytest.mark.parametrize(
    "path",
    [
        "dvc.lock",
        "models/teachers/base.safetensors",
        "models/teachers/base/weights.safetensors",
        "reports/teachers/t2i.png",
        "reports/teachers.json",
        "reports/metrics.json",
        "src/danceflow/data/cache.py",
        "src/danceflow/models/families/sd3.py",
    ],
)
def test_what_git_must_hold_is_not_ignored(path: str) -> None:
    assert not _ignored(path)


def _make(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_make_lists_its_targets() -> None:
    named = re.findall(r"make ([\w-]+) ", _make("help"))
    expected = "run test quick check audit sbom docs ui team-up team-down teachers clean help"
    assert set(expected.split()) <= set(named)


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("run", "danceflow run"),
        ("test", "python -m pytest -n 2"),
        ("coverage", "python -m pytest -n 2 --cov --cov-report=term --cov-fail-under=85"),
        ("quick", "python -m pytest -n 2 --quick"),
        ("check", "danceflow check"),
        ("check", "DISABLE_MKDOCS_2_WARNING=true NO_MKDOCS_2_WARNING=1 mkdocs build"),
        ("docs", "python docs/_site/reference.py"),
        ("ui", "danceflow ui"),
        ("team-up", "danceflow team up"),
        ("team-down", "danceflow team down"),
        ("teachers", "danceflow teachers"),
    ],
)
def test_make_sets_up_and_then_calls_the_command(target: str, command: str) -> None:
    lines = _make("--dry-run", "--always-make", target).splitlines()
    setup = next(index for index, line in enumerate(lines) if "pip install" in line)
    assert "--constraint constraints.txt --editable '.[dev]'" in lines[setup]
    assert any(line.startswith(command) for line in lines[setup + 1 :])


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


# ---------------------------------------------------------------------------------------------
# The house: where files lie, what they are called, and whom they import

TESTS = ROOT / "tests"
HOMES = {
    "contract": "one suite over everything of a kind, or over all that can be brought",
    "e2e": "the real stages under the real tools",
    "extension": "what can be added, added and then used",
    "golden": "numbers that were recorded",
    "numerics": "mathematics across modules, against closed forms",
    "pipeline": "the real tools around stages of a moment",
    "team": "the real stages with the real servers of a team",
    "runs": "several stages one after the other, in one process",
}
"""The rooms of tests that stand for no package."""
PLACES = {"danceflow": ROOT / "src" / "danceflow", "flows": ROOT / "flows"}
ABOUT_THE_WHOLE = {"project", "recipes"}
MARKS = {"danceflow.files", "danceflow.origin"}  # what files and stores are marked with
PAST = ("CHANGELOG.md", "docs/log.md", "docs/decisions/")  # they tell what was


@functools.cache
def modules() -> Mapping[str, Path]:
    """The project's modules by their dotted names."""
    found = {}
    for name, place in PLACES.items():
        for file in place.rglob("*.py"):
            parts = (name, *file.relative_to(place).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = file
    return found


def files_of_tests() -> list[Path]:
    return sorted(file.relative_to(TESTS) for file in TESTS.rglob("test_*.py"))


def test_every_test_file_is_of_a_module_or_has_a_home() -> None:
    """``tests/<room>/test_<module>.py``; a package counts as a module."""
    wrong = []
    for file in files_of_tests():
        name = file.stem.removeprefix("test_")
        dotted = ".".join((*file.parent.parts, name))
        is_known = f"danceflow.{dotted}" in modules() or dotted in modules()
        is_whole = file.parent == Path() and name in ABOUT_THE_WHOLE
        is_home = len(file.parts) == 2 and file.parts[0] in HOMES
        if not (is_known or is_whole or is_home):
            wrong.append(f"tests/{file}: there is no module danceflow.{dotted}, and it is no home")
    assert wrong == []


def test_no_two_files_of_the_homes_have_one_name() -> None:
    names = Counter(file.name for file in files_of_tests() if file.parts[0] in HOMES)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_folder_of_tests_is_a_room() -> None:
    rooms = {file.parent for file in files_of_tests()} - {Path()}
    for room in rooms:
        name = ".".join(room.parts)
        assert name in HOMES or name in modules() or f"danceflow.{name}" in modules(), room
    assert {room.parts[0] for room in rooms} >= HOMES.keys()


def test_quick_takes_some_tests_of_every_room_and_no_whole_run() -> None:
    command = [sys.executable, "-m", "pytest", "--quick", "--collect-only", "-q", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = [line for line in done.stdout.splitlines() if "::" in line]
    assert [name for name in names if not durations.is_quick(name)] == []
    files = [durations.file_of(name) for name in names]
    counts = Counter(Path(file).relative_to("tests").parts[0] for file in files)
    own = [name for name in modules() if name.startswith("danceflow.")]
    packages = {name.split(".")[1] for name in own if name.count(".") == 2}
    rooms = {name for name in packages if (TESTS / name).is_dir()} | {"flows"}
    assert {room: counts[room] for room in rooms if counts[room] < 5} == {}
    assert not counts.keys() & HOMES.keys()
    assert 500 < len(files) < 2000


def test_durations_of_files_that_did_not_run_stay(tmp_path: Path) -> None:
    record = tmp_path / "durations.json"
    here, there = "tests/test_project.py", "tests/test_cli.py"
    old = {here: 9.0, there: 3.0, "tests/test_gone.py": 5.0}
    record.write_text(json.dumps({"files": old, "cases": {f"{there}::test_it": 1.0}}))
    recorder = durations.Recorder(record)
    for case, seconds in (("a", 2.0), ("b", 1.0)):
        for when in ("setup", "call"):
            report = pytest.TestReport(
                f"{here}::test_it[{case}]", (here, 1, ""), {}, "passed", None, when, (),
                duration=seconds,
            )  # fmt: skip
            recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish()
    assert json.loads(record.read_text()) == {
        "files": {there: 3.0, here: 6.0},
        "cases": {f"{there}::test_it": 1.0, f"{here}::test_it": 1.5},
    }


def test_tests_find_the_repository_in_one_place() -> None:
    """Counted steps up from a test are wrong as soon as it moves."""
    counted = re.compile(r"\(__file__\)\.?(?:resolve\(\))?\.?parent")
    found = [file for file in TESTS.rglob("*.py") if counted.search(file.read_text())]
    own = {TESTS / "support" / "repository.py", TESTS / "conftest.py", TESTS / "test_project.py"}
    assert set(found) <= own


def texts() -> Iterator[tuple[str, str]]:
    """The tracked files that speak of modules, and their content."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        is_text = name == "Makefile" or Path(name).suffix in {".md", ".py", ".toml", ".yaml"}
        if is_text and not name.startswith((*PAST, "tests/")) and (ROOT / name).is_file():
            yield name, (ROOT / name).read_text(encoding="utf-8")


def _is_there(dotted: str) -> bool:
    """Return whether a module has this name, or a module says it of something in it."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        if (file := modules().get(".".join(parts[:count]))) is not None:
            rest = parts[count:]
            return not rest or re.search(rf"\b{rest[0]}\b", file.read_text()) is not None
    return False


def test_no_text_names_a_module_that_is_not_there() -> None:
    spelt = re.compile(r"(?<![\w./-])(?:danceflow|flows)(?:\.[a-z_]\w*)+")
    wrong = {
        f"{name}: {dotted}"
        for name, text in texts()
        for dotted in spelt.findall(text)
        if dotted not in MARKS and not _is_there(dotted)
    }
    assert sorted(wrong) == []


def test_no_text_names_a_file_of_the_project_that_is_not_there() -> None:
    spelt = re.compile(r"(?<![\w./-])(?:src/danceflow|flows|tests)/[\w./-]*\w")
    wrong = {
        f"{name}: {path}"
        for name, text in texts()
        for path in spelt.findall(text)
        if not (ROOT / path).exists()
    }
    assert sorted(wrong) == []


def _imports(file: Path, module: str) -> Iterator[str]:
    """Yield the modules of the project that a file imports when it is used."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else ()), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in modules():
                    yield inner
                elif base in modules():
                    yield base


def _circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of names that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set(), list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph.get(name, ())
        reached[start] = seen
    return sorted(
        {
            tuple(sorted(other for other in reached[name] if name in reached.get(other, ())))
            for name in graph
            if name in reached[name]
        }
    )


@functools.cache
def import_graph() -> Mapping[str, set[str]]:
    return {name: set(_imports(file, name)) - {name} for name, file in modules().items()}


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, imports for types do not."""
    assert _circles(import_graph()) == []


@pytest.mark.parametrize("depth", [2, 3])
def test_no_packages_import_each_other_in_a_circle(depth: int) -> None:
    """Seen from some depth a package and all that lies in it are one."""
    graph: dict[str, set[str]] = {}
    for name, imported in import_graph().items():
        room = _room(name, depth)
        found = {_room(other, depth) for other in imported}
        graph.setdefault(room, set()).update(o for o in found if not _is_inside(room, o))
    assert _circles(graph) == []


def _room(name: str, depth: int) -> str:
    return ".".join(name.split(".")[:depth])


def _is_inside(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
