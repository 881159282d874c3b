"""The surroundings of a process: what is set, what is left alone, and when."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from danceflow.errors import DiskSpaceError, UsageError
from danceflow.ops import runtime

SOURCE = Path(runtime.__file__).parents[1]


def _python(code: str, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_telemetry_is_off_unless_chosen() -> None:
    environment = {"DO_NOT_TRACK": "false"}
    runtime.set_telemetry_off(environment)
    assert environment == {**runtime.TELEMETRY_OFF, "DO_NOT_TRACK": "false"}


def test_the_makefile_and_dvc_switch_the_same_off() -> None:
    root = SOURCE.parents[1]
    makefile = (root / "Makefile").read_text()
    for name, value in runtime.TELEMETRY_OFF.items():
        assert f"export {name} ?= {value}\n" in makefile
    assert "analytics = false" in (root / ".dvc" / "config").read_text()


def test_start_sets_the_environment_and_logs_to_standard_error() -> None:
    code = (
        "import logging, os\n"
        "from danceflow.ops import runtime\n"
        "runtime.start(); runtime.start()\n"
        "logging.getLogger('danceflow.x').info('hello')\n"
        "logging.getLogger('httpx').info('chatter')\n"
        "assert logging.getLogger().handlers[0].stream.name == '<stderr>'\n"
        "print(os.environ['MLFLOW_DISABLE_TELEMETRY'], len(logging.getLogger().handlers))"
    )
    assert _python(code) == "true 1"


def test_verbose_shows_debug_messages() -> None:
    logger = logging.getLogger("danceflow")
    level = logger.level
    try:
        runtime.set_logging_up(verbose=True)
        assert logger.level == logging.DEBUG
        runtime.set_logging_up()
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(level)


def test_too_little_disk_space_is_told_before_work_begins(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    runtime.require_disk_space(folder, 1)
    with pytest.raises(DiskSpaceError, match=r"needs 1,000,000,000,000 MB .* are free") as caught:
        runtime.require_disk_space(folder, 10**18)
    assert str(folder) in str(caught.value)


def test_a_place_that_cannot_be_written_to_is_told_before_work_begins(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for name in ("new/folder", "kept", "kept/new"):
        runtime.require_writable(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere/at/all")
    names = ("file", "file/below", "loop", "loop/below", "gone", "a" * 300, "a\0b", "a/" * 3000)
    for place in (*(tmp_path / name for name in names), Path("/proc/no"), Path("/dev/null/x")):
        with pytest.raises(UsageError, match=r"cannot be written to: \S") as caught:
            runtime.require_writable(place)
        assert len(str(caught.value)) < 300


def test_bars_of_others_are_off_unless_chosen() -> None:
    code = (
        "from danceflow.ops import runtime\n"
        "runtime.start()\n"
        "from huggingface_hub.utils import are_progress_bars_disabled as off\n"
        "print(off())"
    )
    assert _python(code, HF_HUB_DISABLE_PROGRESS_BARS="") == "False"
    unset = f"import os; os.environ.pop('HF_HUB_DISABLE_PROGRESS_BARS', None)\n{code}"
    assert _python(unset) == "True"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def test_commits_can_be_written_without_an_identity(repository: Path) -> None:
    bare = {"PATH": os.environ["PATH"], "HOME": str(repository), "GIT_CONFIG_NOSYSTEM": "1"}
    added = runtime.git_identity(bare, repository)
    subprocess.run(
        ["git", "commit", "--quiet", "--allow-empty", "--message", "x"],
        cwd=repository,
        env={**bare, **added},
        check=True,
    )
    chosen = {**bare, "GIT_AUTHOR_NAME": "me"}
    assert "GIT_AUTHOR_NAME" not in runtime.git_identity(chosen, repository)


def test_a_known_identity_is_left_alone(repository: Path) -> None:
    subprocess.run(["git", "config", "user.email", "a@b"], cwd=repository, check=True)
    assert runtime.git_identity(os.environ, repository) == {}


def _checkout(root: Path) -> Path:
    """Lay out a checkout whose command tells where it was loaded from."""
    package = root / "src" / "danceflow"
    (package / "ops").mkdir(parents=True)
    for module in ("__init__.py", "errors.py", "ops/__init__.py", "ops/runtime.py"):
        (package / module).write_bytes((SOURCE / module).read_bytes())
    (package / "cli.py").write_text("import sys\nprint('loaded', __file__, *sys.argv[1:])\n")
    return package / "cli.py"


def test_a_copy_of_the_checkout_runs_its_own_code(tmp_path: Path) -> None:
    command = _checkout(tmp_path)
    code = (
        "import sys, pathlib\n"
        "from danceflow.ops import runtime\n"
        "runtime.use_code_of(pathlib.Path(sys.argv.pop(1)))\n"
        "print('not replaced')"
    )
    assert _python(code, str(tmp_path), "stage", "x") == f"loaded {command} stage x"


def test_the_copys_packages_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _checkout(tmp_path)
    monkeypatch.setenv("DANCEFLOW_CHECKOUT", "another")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "argv", ["danceflow", "stage", "x"])
    called: list[object] = []
    monkeypatch.setattr(os, "execv", lambda *args: called.extend(args))
    runtime.use_code_of(tmp_path)
    assert called == [sys.executable, [sys.executable, "-m", "danceflow.cli", "stage", "x"]]
    assert os.environ["PYTHONPATH"] == f"{tmp_path}/src:{tmp_path}:/elsewhere"


def test_the_checkouts_own_code_goes_on() -> None:
    runtime.use_code_of(SOURCE.parents[1])


def test_a_folder_without_code_uses_the_installed_one(tmp_path: Path) -> None:
    runtime.use_code_of(tmp_path)


def test_code_that_cannot_be_put_first_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _checkout(tmp_path)
    monkeypatch.setenv("DANCEFLOW_CHECKOUT", str(tmp_path))
    with pytest.raises(UsageError, match="cannot be loaded"):
        runtime.use_code_of(tmp_path)
