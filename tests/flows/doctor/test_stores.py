"""Databases and servers that are broken for real."""

import http.server
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.doctor import stores
from flows.doctor.finding import Finding, Level

pytestmark = pytest.mark.pipeline


def section(uri: str | None, enabled: bool = True) -> Any:
    return SimpleNamespace(uri=uri, enabled=enabled, experiment="x", registered_model="y")


def only(found: Iterable[Finding]) -> Finding:
    (item,) = found
    return item


class Server:
    """Answers every question with one status, body and date."""

    def __init__(self) -> None:
        self.status, self.body, self.ahead_s = 200, b'"0.1"', 0.0
        self.seen: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append(self.headers.get("Authorization"))
                self.send_response_only(outer.status)
                date = formatdate(time.time() + outer.ahead_s, usegmt=True)
                self.send_header("Date", date)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_a_database_is_there_or_will_be(
    tmp_path: Path, mlflow_template: Path, checkout: Path
) -> None:
    path = tmp_path / "mlflow.db"
    assert only(stores.database("mlflow", path)).level is Level.OK
    shutil.copyfile(mlflow_template, path)
    assert "tables of" in only(stores.database("mlflow", path)).text
    assert only(stores.tracking(checkout, section(f"sqlite:///{path}"))).level is Level.OK


def test_a_damaged_database_fails(tmp_path: Path, mlflow_template: Path) -> None:
    path = tmp_path / "mlflow.db"
    data = bytearray(mlflow_template.read_bytes())
    data[4096:40_960] = b"\xff" * 36_864
    path.write_bytes(data)
    assert only(stores.database("mlflow", path)).level is Level.FAIL
    path.write_text("no database at all, but a text of some length" * 100)
    found = only(stores.database("mlflow", path))
    assert (found.level, "move" in found.advice) == (Level.FAIL, True)


def test_tables_of_another_version_fail(tmp_path: Path, mlflow_template: Path) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copyfile(mlflow_template, path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'older'")
    connection.close()
    found = only(stores.database("mlflow", path))
    assert (found.level, "tables of older" in found.text) == (Level.FAIL, True)
    assert f"mlflow db upgrade sqlite:///{path}" in found.advice


def test_prefects_own_database_is_looked_at(checkout: Path) -> None:
    assert only(stores.prefect(checkout)).level is Level.OK
    path = checkout / ".prefect" / "prefect.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('older')")
    connection.close()
    assert "prefect server database upgrade" in only(stores.prefect(checkout)).advice
    newest = stores._newest("prefect")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (newest,))
    connection.close()
    assert only(stores.prefect(checkout)).level is Level.OK


def test_a_server_that_is_away_fails(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = "http://me:Planted-1@127.0.0.1:9"
    found = only(stores.tracking(checkout, section(login)))
    assert (found.level, "does not answer" in found.text) == (Level.FAIL, True)
    assert "Planted" not in str(found)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert only(stores.prefect(checkout)).level is Level.FAIL


@pytest.mark.parametrize(
    ("status", "level", "said"),
    [
        (200, Level.WARN, "has version 0.1"),
        (401, Level.FAIL, "does not know this login"),
        (404, Level.FAIL, "is it mlflow?"),
        (500, Level.FAIL, "HTTP 500"),
    ],
)
def test_what_a_server_answers_is_told(
    checkout: Path, server: Server, status: int, level: Level, said: str
) -> None:
    server.status = status
    first, *_ = stores.tracking(checkout, section(server.address))
    assert (first.level, said in first.text) == (level, True), first


def test_the_login_is_given_and_not_told(
    checkout: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server.address}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:Planted-1")
    text = " ".join(map(str, stores.prefect(checkout)))
    assert server.seen == ["Basic bWU6UGxhbnRlZC0x"]
    assert "Planted" not in text


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(0.0, Level.OK), (30.0, Level.WARN), (-30.0, Level.WARN), (3600.0, Level.FAIL)],
)
def test_a_clock_that_is_off_is_told(
    checkout: Path, server: Server, ahead_s: float, level: Level
) -> None:
    server.ahead_s = ahead_s
    found = list(stores.tracking(checkout, section(server.address)))
    assert [item.level for item in found if item.check == "clock"] == [level]


def test_what_is_switched_off_or_impossible_is_told(checkout: Path) -> None:
    assert only(stores.tracking(checkout, section(None, enabled=False))).level is Level.OK
    assert only(stores.tracking(checkout, section("runs"))).level is Level.FAIL
    other = only(stores.tracking(checkout, section("postgresql://me:Planted-1@host/x")))
    assert "Planted" not in str(other)
