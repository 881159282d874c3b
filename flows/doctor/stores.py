"""The stores: databases, servers, and how far their clocks are from this machine's."""

import base64
import contextlib
import os
import re
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from danceflow.errors import DanceflowError
from danceflow.ops.tracking import main_checkout, resolve_uri, without_login
from danceflow.params.sections import TrackingParams
from danceflow.paths import Paths
from flows import dvc_graph
from flows.doctor.finding import Finding, fail, ok, warn

_SQLITE = "sqlite:///"
_TIMEOUT_S = 5.0
_SKEW_WARN_S, _SKEW_FAIL_S = 5.0, 300.0
"""S3 refuses what was signed a quarter of an hour off; heartbeats and leases much less."""

_REVISION = re.compile(r"^(down_)?revision\b[^=\n]*=(.*)$", re.MULTILINE)
_QUOTED = re.compile(r"[\"'](\w+)[\"']")
_MIGRATIONS = {
    "mlflow": ("mlflow", "store/db_migrations"),
    "prefect": ("prefect", "server/database/_migrations"),
}


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        status: of HTTP; None: it did not answer.
        text: the body, or why there was no answer.
        skew_s: seconds that its clock is ahead of this machine's; None: it did not say.
    """

    status: int | None
    text: str
    skew_s: float | None


def tracking(root: Path, section: TrackingParams) -> Iterator[Finding]:
    """Yield whether the store of runs can be used.

    Args:
        root: the checkout.
        section: the ``tracking`` section of its parameters.
    """
    if not section.enabled:
        yield ok("mlflow", "tracking.enabled is false")
        return
    try:
        uri = resolve_uri(root, section.uri)
    except DanceflowError as error:
        yield fail("mlflow", str(error), "change tracking.uri or MLFLOW_TRACKING_URI")
        return
    if uri.startswith(_SQLITE):
        yield from database("mlflow", Path(uri.removeprefix(_SQLITE)))
    elif uri.startswith(("http:", "https:")):
        yield from _mlflow_server(uri)
    else:
        yield ok("mlflow", f"{without_login(uri)} (a database that MLflow opens itself)")


def prefect(root: Path) -> Iterator[Finding]:
    """Yield whether Prefect's server, or its database, can be used.

    Args:
        root: the checkout.
    """
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        yield from database("prefect", Paths(main_checkout(root)).prefect / "prefect.db")
        return
    login = os.environ.get("PREFECT_API_AUTH_STRING")
    asked = ask(f"{url.rstrip('/')}/admin/version", _basic(login))
    advice = "start it, or change or unset PREFECT_API_URL"
    yield from _server("prefect", url, asked, version("prefect"), advice, "PREFECT_API_AUTH_STRING")


def storage(root: Path) -> Iterator[Finding]:
    """Yield how far the clocks of S3 servers are off that DVC remotes lie on.

    Args:
        root: the checkout.
    """
    with contextlib.suppress(DanceflowError):
        with dvc_graph.open_repository(root) as repo:
            remotes = dict(repo.config["remote"])
        for name, settings in remotes.items():
            address = settings.get("endpointurl")
            if address and (asked := ask(str(address), {})).status is not None:
                yield from _clock(f"remote {name}", asked)


def database(name: str, path: Path) -> Iterator[Finding]:
    """Yield whether an SQLite database can be read and its tables are those of the package.

    Args:
        name: ``mlflow`` or ``prefect``.
        path: the file.
    """
    if not path.exists():
        yield ok(name, f"{path} is not there yet; the first run makes it")
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            state = connection.execute("PRAGMA quick_check").fetchone()[0]
            rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error as error:
        advice = f"restore it from a copy, or move {path} away: the next run makes an empty one"
        yield fail(name, f"{path}: {error}", advice)
        return
    if state != "ok":
        yield fail(name, f"{path} is damaged: {state}", f"sqlite3 {path} .recover")
    elif not os.access(path, os.W_OK):
        yield fail(name, f"{path} may not be written to", f"chown {os.geteuid()} {path}")
    elif {row[0] for row in rows} == {newest := _newest(name)}:
        yield ok(name, f"{path}, {path.stat().st_size / 1e6:.1f} MB, tables of {newest}")
    else:
        text = f"{path} has the tables of {', '.join(r[0] for r in rows) or 'nobody'}, not {newest}"
        upgrade = {
            "mlflow": f"mlflow db upgrade {_SQLITE}{path}",
            "prefect": "prefect server database upgrade",
        }
        yield fail(name, text, f"keep a copy of it, then: {upgrade[name]}")


def ask(address: str, headers: Mapping[str, str]) -> Answer:
    """Return what a server says to a GET.

    Args:
        address: of what is asked for.
        headers: of the request.
    """
    begin = time.time()
    request = urllib.request.Request(address, headers=dict(headers))  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            text = answer.read(4096).decode(errors="replace")
            return Answer(answer.status, text, _skew(answer.headers.get("Date"), begin))
    except urllib.error.HTTPError as error:
        return Answer(error.code, str(error.reason), _skew(error.headers.get("Date"), begin))
    except (OSError, ValueError) as error:
        return Answer(None, without_login(str(getattr(error, "reason", error))), None)


def _mlflow_server(uri: str) -> Iterator[Finding]:
    parts = urlsplit(uri)
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    login = ":".join(os.environ.get(name, "") for name in names)
    if parts.username:
        login = f"{parts.username}:{parts.password or ''}"
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    asked = ask(
        f"{place}/api/2.0/mlflow/experiments/search?max_results=1",
        _basic(login if login != ":" else None),
    )
    if asked.status == 200:
        told = ask(f"{place}/version", _basic(login))
        asked = Answer(told.status, told.text, asked.skew_s)
    advice = "start it, or change tracking.uri or MLFLOW_TRACKING_URI"
    yield from _server("mlflow", place, asked, version("mlflow"), advice, " and ".join(names))


def _server(
    name: str, url: str, asked: Answer, expected: str, advice: str, login: str
) -> Iterator[Finding]:
    """Yield what the answer to a question for its version says of a server."""
    if asked.status is None or asked.status >= 500:
        reason = asked.text if asked.status is None else f"HTTP {asked.status}"
        yield fail(name, f"{url} does not answer ({reason})", advice)
        return
    if asked.status in {401, 403}:
        yield fail(name, f"{url} does not know this login", f"set {login}")
    elif asked.status != 200:
        yield fail(name, f"{url} answers HTTP {asked.status}: is it {name}?", advice)
    else:
        found = asked.text.strip().strip('"')
        if found.split(".")[:2] == expected.split(".")[:2]:
            yield ok(name, f"{url}, version {found}")
        else:
            text = f"{url} has version {found}, and this is {expected}"
            yield warn(name, text, "bring both to the version of constraints.txt")
    yield from _clock(name, asked)


def _clock(name: str, asked: Answer) -> Iterator[Finding]:
    if asked.skew_s is None:
        return
    text = f"{name} is {asked.skew_s:+.0f} s from this machine"
    advice = "set both by a time server: timedatectl set-ntp true"
    if abs(asked.skew_s) >= _SKEW_FAIL_S:
        yield fail("clock", text, advice)
    elif abs(asked.skew_s) >= _SKEW_WARN_S:
        yield warn("clock", text, advice)
    else:
        yield ok("clock", text)


def _skew(date: str | None, begin: float) -> float | None:
    """Return how far a server's clock is ahead; a date is told in whole seconds."""
    if not date:
        return None
    try:
        told = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    now = time.time()
    if begin - 1 <= told <= now:
        return 0.0
    return told - now if told > now else told + 1 - begin


def _basic(login: str | None) -> dict[str, str]:
    if not login:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _newest(name: str) -> str:
    """Return the newest version of a package's tables, read off the texts of its migrations.

    Importing them would import the package, too.
    """
    package, folder = _MIGRATIONS[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return "no installed package"
    versions = Path(spec.origin).parent / folder / "versions"
    sqlite = versions / "sqlite"
    known: set[str] = set()
    followed: set[str] = set()
    for file in (sqlite if sqlite.is_dir() else versions).glob("*.py"):
        for before, value in _REVISION.findall(file.read_text(encoding="utf-8")):
            (followed if before else known).update(_QUOTED.findall(value))
    return ", ".join(sorted(known - followed))
