"""Prefect's database and server belong to the project; the user's stay as they are."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danceflow.errors import DiskSpaceError, StageError, UsageError
from danceflow.ops.files import file_digests
from flows import home
from flows.home import at_home

JOINS = """
import sys, time
from pathlib import Path
from prefect.settings import get_current_settings
from flows.home import at_home, is_own_server
with at_home(Path(sys.argv[1])) as found:
    assert is_own_server()
    print(found.url, get_current_settings().logging.level, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout of a user whose own Prefect has runs; no server is configured."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    users = tmp_path / "user"
    users.mkdir()
    (users / "prefect.db").write_bytes(b"runs of other projects")
    (users / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "ERROR"\n'
    )
    monkeypatch.setenv("PREFECT_HOME", str(users))
    root = tmp_path / "checkout"
    root.mkdir()
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield root


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def joining(root: Path) -> tuple[subprocess.Popen[str], str]:
    """Return a process that uses the server, and the server's address."""
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    process = subprocess.Popen(
        [sys.executable, "-c", JOINS, str(root)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    url, level = process.stdout.readline().split()
    assert level == "ERROR"  # of the user's profile
    return process, url


@pytest.mark.pipeline
def test_one_server_serves_all_commands_of_a_project_and_ends_with_the_last(
    checkout: Path, tmp_path: Path
) -> None:
    before = file_digests(tmp_path / "user")
    first, url = joining(checkout)
    second, same = joining(checkout)
    try:
        assert url.startswith("http://127.0.0.1:")
        assert same == url
        assert (checkout / ".prefect" / "prefect.db").is_file()
        first.kill()  # the one that has started the server
        first.communicate()
        assert home.answers(url)
        with at_home(checkout, 4242) as found:
            assert found.url == url
            assert os.environ["PREFECT_API_URL"] == url
            assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
            second.kill()
            second.communicate()
            assert found.is_alive()
        until(lambda: not found.is_alive(), "the server outlives its users")
        assert not home.answers(url)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert file_digests(tmp_path / "user") == before
    assert "PREFECT_API_URL" not in os.environ


def test_a_server_that_is_configured_is_used_and_nothing_is_made(
    checkout: Path, answering: str
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: answering}), at_home(checkout) as found:
        assert (found.url, found.page) == (answering, answering.removesuffix("/api"))
        assert not home.is_own_server()
        assert os.environ["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert list(checkout.iterdir()) == []


def test_a_port_that_is_taken_is_told(checkout: Path) -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen(1)
        number = place.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {number} is taken"), at_home(checkout, number):
            pass


def test_a_server_without_room_for_its_database_is_told_at_once(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_ROOM_BYTES", 1 << 60)
    told = r"\.prefect: needs .* MB of disk space, .* MB are free"
    with pytest.raises(DiskSpaceError, match=told), at_home(checkout):
        pass


def test_a_server_that_does_not_start_says_where_the_reason_is(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = home.prefect_server(1).__class__((sys.executable, "-c", "raise SystemExit('why')"))
    monkeypatch.setattr(home, "prefect_server", lambda port: broken)
    with pytest.raises(StageError, match=r"server\.log says why"), at_home(checkout):
        pass
    assert (checkout / ".prefect" / "server.log").read_text() == "why\n"


def test_a_server_that_does_not_answer_is_told_from_one_that_ended(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that is too busy: its log says nothing."""
    slow = home.prefect_server(1).__class__((sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(home, "prefect_server", lambda port: slow)
    monkeypatch.setattr(home, "_START_TIMEOUT_S", 1.0)
    told = "does not answer at http.* within 1 s; the machine may be too busy: try again"
    with pytest.raises(StageError, match=told), at_home(checkout):
        pass
