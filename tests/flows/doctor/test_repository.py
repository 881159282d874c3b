"""A checkout that was made ill for real."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from danceflow.ops.files import exclusive
from flows import dvc_remote
from flows.doctor import repository
from flows.doctor.finding import Finding, Level

pytestmark = pytest.mark.pipeline


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def bad(found: Iterable[Finding]) -> list[tuple[Level, str]]:
    listed = [item for item in found if item.level is not Level.OK]
    assert all(item.advice for item in listed)
    return [(item.level, item.text) for item in listed]


@pytest.fixture
def clean(checkout: Path) -> Path:
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message", "parameters")
    return checkout


def test_a_sound_checkout_has_nothing(clean: Path) -> None:
    for look in (repository.git_state, repository.permissions, repository.leftovers):
        assert bad(look(clean)) == []
    assert list(repository.clock(clean)) == []
    assert bad(repository.git_version()) == []


def test_changed_files_and_a_detached_head_are_told(clean: Path) -> None:
    (clean / "f").write_text("changed\n")
    git(clean, "switch", "--quiet", "--detach")
    (first, second) = bad(repository.git_state(clean))
    assert first[0] is second[0] is Level.WARN
    assert "detached" in first[1]
    assert second[1] == "changed and not committed: f"


def test_a_shallow_clone_is_told(clean: Path, tmp_path: Path) -> None:
    target = tmp_path / "shallow"
    git(clean, "clone", "--quiet", "--depth", "1", f"file://{clean}", str(target))
    assert "shallow" in bad(repository.git_state(target))[0][1]


def test_no_git_and_no_commit_fail(tmp_path: Path) -> None:
    (level, text), *_ = bad(repository.git_state(tmp_path))
    assert (level, "no git checkout" in text) == (Level.FAIL, True)
    git(tmp_path, "init", "--quiet")
    assert bad(repository.git_state(tmp_path)) == [(Level.FAIL, "there is no commit yet")]


def test_no_git_program_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bad(repository.git_version())[0][0] is Level.FAIL


def test_remotes_are_asked(checkout: Path, tmp_path: Path) -> None:
    assert "no remote" in bad(repository.dvc_state(checkout))[0][1]
    dvc_remote.set_remote(checkout, "disk", str(tmp_path / "remote"), {})
    assert bad(repository.dvc_state(checkout)) == []
    dvc_remote.set_remote(checkout, "away", "http://127.0.0.1:9/x", {})
    (level, text), *_ = bad(repository.dvc_state(checkout))
    assert (level, text.startswith("away at http://127.0.0.1:9/x")) == (Level.FAIL, True)


def test_settings_of_dvc_that_are_broken_fail(checkout: Path) -> None:
    (checkout / ".dvc" / "config").write_text("[core\n")
    assert bad(repository.dvc_state(checkout))[0][0] is Level.FAIL


def test_a_secret_that_others_may_read_fails(checkout: Path) -> None:
    (checkout / ".env").write_text("KEY=Planted-1\n")
    (checkout / ".env").chmod(0o644)
    (level, text), *_ = bad(repository.permissions(checkout))
    assert (level, ".env" in text, "Planted" in text) == (Level.FAIL, True, False)


def test_what_may_not_be_written_to_fails(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The super-user may write everywhere: the answer of the system is what is changed."""
    closed = str(checkout / ".dvc")
    monkeypatch.setattr(os, "access", lambda place, mode: str(place) != closed)
    assert bad(repository.permissions(checkout)) == [
        (Level.FAIL, f"may not be written to: {closed}")
    ]


def test_leftovers_of_killed_processes_are_told(checkout: Path, tmp_path: Path) -> None:
    place = checkout / ".danceflow" / "worktrees"
    for name in ("trial.a1", "alive.b2"):
        (place / name).mkdir(parents=True)
    git(checkout, "worktree", "add", "--quiet", "--detach", str(tmp_path / "gone"))
    subprocess.run(["rm", "-r", str(tmp_path / "gone")], check=True)
    lock = checkout / ".git" / "index.lock"
    lock.touch()
    os.utime(lock, (0, 0))
    with exclusive(place / "alive.b2"):
        texts = [text for _, text in bad(repository.leftovers(checkout))]
    assert texts[0] == "worktrees of experiments that were killed: trial.a1"
    assert str(tmp_path / "gone") in texts[1]
    assert str(lock) in texts[2]


def test_a_clock_that_is_behind_the_last_commit_fails(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_COMMITTER_DATE", "@4102444800 +0000")
    git(checkout, "commit", "--quiet", "--allow-empty", "--message", "from the future")
    (level, text), *_ = bad(repository.clock(checkout))
    assert (level, "behind the last commit" in text) == (Level.FAIL, True)
