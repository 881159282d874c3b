"""Files for their owner's eyes alone."""

import os
from pathlib import Path

from flows.team.private import is_private, write_private


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    old = os.umask(0)
    try:
        write_private(path, "one")
        write_private(path, "two")
    finally:
        os.umask(old)
    assert path.read_text() == "two"
    assert is_private(path)
    path.chmod(0o640)
    assert not is_private(path)
