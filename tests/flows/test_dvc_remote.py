"""DVC remotes of a checkout."""

import shutil
import subprocess
from pathlib import Path

import pytest

from danceflow.errors import StageError
from flows import dvc_remote
from flows.dvc_graph import DvcError
from flows.dvc_remote import Remote

pytestmark = pytest.mark.pipeline


def test_there_is_none_at_first(repository: Path) -> None:
    assert dvc_remote.remotes(repository) == ()
    with pytest.raises(StageError, match="dvc remote add --default"):
        dvc_remote.require_remote(repository)
    with pytest.raises(StageError, match="there is no default DVC remote"):
        dvc_remote.push(repository)


def test_one_is_set_where_git_does_not_look(repository: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "remote")
    for _ in range(2):
        dvc_remote.set_remote(repository, "team", url, {})
    assert dvc_remote.require_remote(repository) == Remote("team", url, True)
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert status.stdout == ""


def test_a_default_that_was_chosen_stays(repository: Path, tmp_path: Path) -> None:
    dvc_remote.set_remote(repository, "own", str(tmp_path / "own"), {})
    dvc_remote.set_remote(repository, "team", str(tmp_path / "team"), {})
    assert dvc_remote.require_remote(repository).name == "own"
    assert [remote.name for remote in dvc_remote.remotes(repository)] == ["own", "team"]


def test_a_login_in_an_address_is_not_shown(repository: Path) -> None:
    dvc_remote.set_remote(repository, "web", "https://me:Planted-1@127.0.0.1:9/x", {})
    (found,) = dvc_remote.remotes(repository)
    assert found.url == "https://***@127.0.0.1:9/x"
    with pytest.raises(DvcError, match="'web' cannot be reached") as caught:
        dvc_remote.reach(repository, "web")
    assert "Planted" not in str(caught.value)


def test_a_folder_is_reached_where_it_can_be_made(repository: Path, tmp_path: Path) -> None:
    dvc_remote.set_remote(repository, "disk", str(tmp_path / "new" / "remote"), {})
    dvc_remote.reach(repository, "disk")
    dvc_remote.set_remote(repository, "proc", "/proc/1/remote", {})
    with pytest.raises(DvcError, match="'proc' cannot be reached"):
        dvc_remote.reach(repository, "proc")


def test_what_is_pushed_another_clone_has(repository: Path, tmp_path: Path) -> None:
    dvc_remote.set_remote(repository, "disk", str(tmp_path / "remote"), {})
    dvc_remote.push(repository)
    shutil.rmtree(repository / ".dvc" / "cache")
    (repository / "raw").unlink()
    subprocess.run(["dvc", "pull", "--quiet", "raw.dvc"], cwd=repository, check=True)
    assert (repository / "raw").read_text() == "raw"


def test_what_cannot_be_pushed_is_told(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    dvc_remote.set_remote(repository, "disk", str(tmp_path / "file" / "remote"), {})
    with pytest.raises(DvcError, match=r"dvc push --run-cache in .*repository"):
        dvc_remote.push(repository)
