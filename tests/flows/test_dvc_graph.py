import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from little_room import little_room
from repository import ROOT

from danceflow.errors import DiskSpaceError
from flows.dvc_graph import DvcError, changed_stages, open_repository


@pytest.mark.parametrize("name", ["site/cache.db", None])
def test_no_room_is_one_error_that_names_the_place(tmp_path: Path, name: str | None) -> None:
    Repo.init(str(tmp_path), no_scm=True).close()
    place = tmp_path / (name or ".dvc")
    reason = (errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(place)] if name else []))
    with pytest.raises(DiskSpaceError) as raised, open_repository(tmp_path):
        raise OSError(*reason)
    assert str(raised.value) == f"{place}: no space left on the disk; nothing was kept"


def test_another_refusal_of_the_system_is_one_error_too(tmp_path: Path) -> None:
    Repo.init(str(tmp_path), no_scm=True).close()
    told = rf"DVC in {tmp_path}: \[Errno 13\] Permission denied: 'file'"
    with pytest.raises(DvcError, match=told), open_repository(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "file")


def test_databases_that_cannot_be_written_are_one_error_of_a_flow(repository: Path) -> None:
    """No file may grow, in a process of its own: what a flow does first, on a full disk."""
    code = (
        "import sys; from danceflow.errors import DanceflowError; from flows import dvc_graph\n"
        "try: dvc_graph.changed_stages(sys.argv[1])\n"
        "except DanceflowError as error: print(error)"
    )
    with little_room(0):
        done = subprocess.run(
            [sys.executable, "-c", code, str(repository)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stderr == ""
    assert done.stdout.startswith(f"DVC in {repository}: [Errno 5] Input/output error: ")
    assert f"'{repository.parent / 'site'}/" in done.stdout
    assert "first" in changed_stages(repository)
