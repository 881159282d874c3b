import functools
import gc
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import durations
import pytest
import started
from doc_commands import claims

from danceflow.ops.runtime import TELEMETRY_OFF
from danceflow.ops.tracking import TrackingSettings

# Of tests/support: a project that is evaluated and reported once, and an endpoint that judges.
pytest_plugins = ["evaluated", "judge_server"]

TESTS = Path(__file__).parent
# What `make quick` leaves out: suites of no single module, and files that run stages or programs.
HOMES = ("contract", "e2e", "extension", "golden", "numerics", "pipeline", "runs", "team")
COSTLY = re.compile(r"\bimport (stage|subprocess|prepare)\b|\brun_stage\b|stock_cases|tiny_stock")
# And tests that ask for a project that ran, for a server's database, a browser or a compiler.
COSTLY_FIXTURES = frozenset(
    ("prepared", "reported", "mlflow_template", "prefect_template", "browser", "compiler")
)
NUM_CASES = 2  # of every parametrised test
ONE_RUN = "e2e"  # the room whose files share one run of the pipeline
ONE_TEAM = "team"  # the room whose files share the servers
CASES = pytest.StashKey[Counter[str]]()  # how many each test has, before any is left out


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported now stays to the end: no collection of garbage needs to look at it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, let the long files begin first: at the end nobody waits for them.

    And with ``--quick`` keep the first cases of every short test alone.
    """
    config.stash[CASES] = Counter(durations.test_of(item.nodeid) for item in items)
    if config.getoption("--quick"):
        kept = dict.fromkeys(_first_cases(items))
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = list(kept)
    if hasattr(config, "workerinput"):
        files: dict[str, set[str]] = {}
        for item in items:
            file = durations.file_of(item.nodeid)
            files.setdefault(_scope(file), set()).add(file)
        took = {scope: durations.of_files(names) for scope, names in files.items()}
        items.sort(key=lambda item: -took[_scope(durations.file_of(item.nodeid))])


def _first_cases(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    seen: Counter[str] = Counter()
    for item in items:
        name = durations.test_of(item.nodeid)
        seen[name] += 1
        is_costly = item.get_closest_marker("pipeline") is not None
        is_costly |= not COSTLY_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        if seen[name] <= NUM_CASES and durations.is_quick(name) and not is_costly:
            yield item


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``--quick`` leave out what takes long; a file that is named is taken."""
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    room = collection_path.relative_to(TESTS).parts[0]
    is_costly = room in HOMES or COSTLY.search(collection_path.read_text(encoding="utf-8"))
    return True if is_costly else None


def pytest_configure(config: pytest.Config) -> None:
    started.watch()
    if config.getoption("--record-durations") and not hasattr(config, "workerinput"):
        if config.getoption("--quick"):
            raise pytest.UsageError("--quick runs some tests of a file; record them all")
        config.pluginmanager.register(durations.Recorder())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test that is named as the one that runs a page's command has started it, all cases done."""
    yield
    claimed = claims().get(durations.test_of(item.nodeid), ())
    if claimed and _ends_its_test(item):
        for command in claimed:
            assert started.is_started(command.words), f"was not started here: {command}"


def _ends_its_test(item: pytest.Item) -> bool:
    """Return whether an item is the last case of its test, and all the others were selected."""
    name = durations.test_of(item.nodeid)
    cases = [other for other in item.session.items if durations.test_of(other.nodeid) == name]
    is_whole = len(cases) == item.config.stash[CASES][name]
    return is_whole and cases[-1] is item and not any("[" in arg for arg in item.config.args)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers, keep together what shares a file's fixtures or the one run."""
    from xdist.scheduler import LoadFileScheduling

    class Rooms(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(durations.file_of(nodeid))

    config.option.loadscopereorder = False  # the order is that of the collection
    return Rooms(config, log)


def _scope(file: str) -> str:
    """Return the name of what one worker runs as a whole: a file, or files that share something."""
    if file.startswith(f"{TESTS.name}/{ONE_TEAM}/"):
        return ONE_TEAM
    is_shared = file.startswith(f"{TESTS.name}/{ONE_RUN}/") and _shares_the_run(file)
    return ONE_RUN if is_shared else file


@functools.cache
def _shares_the_run(file: str) -> bool:
    """Return whether a file of the room asks for the one run."""
    text = (TESTS.parent / file).read_text(encoding="utf-8")
    return re.search(r"\b(finished|first_run)\b", text) is not None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="the tests of one minute: short ones, without stages, stores or programs",
    )
    parser.addoption(
        "--record-durations",
        action="store_true",
        help="write tests/durations.json: what is quick, and which files begin first",
    )
    parser.addoption(
        "--record-golden",
        action="store_true",
        help="write golden traces and pictures from this run instead of comparing with them",
    )


@pytest.fixture(scope="session", autouse=True)
def _surroundings() -> Iterator[None]:
    """Telemetry off, no store and no identity from outside."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TELEMETRY_OFF.items():
            patch.setenv(name, value)
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_EXP_NAME"):
            patch.delenv(name, raising=False)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@localhost")
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
        yield


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow-template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def prefect_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty Prefect database; a server that makes its own takes twice as long."""
    home = tmp_path_factory.mktemp("prefect-template")
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    environment = {**os.environ, "PREFECT_HOME": str(home)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return home / "prefect.db"


@pytest.fixture
def tracking(mlflow_template: Path, tmp_path: Path) -> TrackingSettings:
    """Settings of a checkout in ``tmp_path`` with its own fresh database."""
    root = tmp_path / "checkout"
    root.mkdir()
    shutil.copyfile(mlflow_template, root / "mlflow.db")
    return TrackingSettings(root, True, None, "scenes", "student")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One real ephemeral Prefect server for all tests of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        from prefect.testing.utilities import prefect_test_harness

        with prefect_test_harness(server_startup_timeout=180):
            yield
