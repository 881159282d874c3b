import errno
import os
from pathlib import Path

import pytest
from dvc.repo import Repo

from danceflow.errors import DiskSpaceError
from flows.dvc_graph import open_repository


@pytest.mark.parametrize("name", ["site/cache.db", None])
def test_no_room_is_one_error_that_names_the_place(tmp_path: Path, name: str | None) -> None:
    Repo.init(str(tmp_path), no_scm=True).close()
    place = tmp_path / (name or ".dvc")
    reason = (errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(place)] if name else []))
    with pytest.raises(DiskSpaceError) as raised, open_repository(tmp_path):
        raise OSError(*reason)
    assert str(raised.value) == f"{place}: no space left on the disk; nothing was kept"


def test_another_error_of_the_system_stays_what_it_is(tmp_path: Path) -> None:
    Repo.init(str(tmp_path), no_scm=True).close()
    with pytest.raises(PermissionError), open_repository(tmp_path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "file")
