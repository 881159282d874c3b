"""PostgreSQL's programs, and as whom they run."""

import os
import pwd
import tempfile
from pathlib import Path

import pytest

from danceflow.errors import DanceflowError
from flows.team import postgres


def test_the_programs_are_there() -> None:
    folder = postgres.programs()
    assert all((folder / name).is_file() for name in ("initdb", "postgres"))


def test_the_wheel_has_the_programs_where_debian_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    assert "pgserver" in str(postgres.programs())
    assert (postgres.programs() / "initdb").is_file()


def test_without_any_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    monkeypatch.setattr(postgres, "_WHEEL", "no_such_package")
    with pytest.raises(DanceflowError, match="apt-get install postgresql"):
        postgres.programs()


def test_the_newest_of_debian_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("9.6", "15", "17"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "postgres").touch()
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    assert postgres.programs() == tmp_path / "17" / "bin"


def test_the_super_user_hands_it_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert postgres.account() == postgres.Account()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = postgres.account()
    assert found.user is not None
    assert pwd.getpwuid(found.user).pw_name in {"postgres", "nobody"}
    monkeypatch.setattr(postgres, "_USERS", ("no-such-user",))
    with pytest.raises(DanceflowError, match="no user no-such-user"):
        postgres.account()


@pytest.mark.pipeline
def test_a_folder_that_its_user_cannot_come_to_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = pwd.getpwnam("nobody")
    account = postgres.Account(owner.pw_uid, owner.pw_gid)
    monkeypatch.setattr(postgres, "account", lambda: account)
    with (
        tempfile.TemporaryDirectory() as closed,  # for its owner alone
        pytest.raises(DanceflowError, match=f"nobody may not enter {closed}: chmod"),
    ):
        postgres.create_cluster(Path(closed) / "postgres", "danceflow", "Planted-1")


@pytest.mark.pipeline
def test_a_half_made_cluster_is_made_anew() -> None:
    """``initdb`` itself refuses a folder in which something lies."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        data = Path(folder) / "postgres"
        (data / "cluster" / "base").mkdir(parents=True)
        postgres.create_cluster(data, "danceflow", "Planted-1")
        made = (data / "made").stat().st_mtime_ns
        assert (data / "cluster" / "PG_VERSION").is_file()
        assert not (data / "password").exists()
        postgres.create_cluster(data, "danceflow", "Planted-1")
        assert (data / "made").stat().st_mtime_ns == made
