"""PostgreSQL as a program of this machine: where it is, as whom it runs, and its databases."""

import contextlib
import os
import pwd
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from danceflow.errors import DanceflowError
from danceflow.ops.files import remove
from flows.team.private import write_private

_DEBIAN = Path("/usr/lib/postgresql")
_WHEEL = "pgserver"
_LAST_WORDS_S = 20.0
"""How long the processes of a killed server may take to notice."""
_USERS = ("postgres", "nobody")
"""As whom the servers of the super-user run, whom PostgreSQL refuses."""


@dataclass(frozen=True)
class Account:
    """As whom a program runs, as ``subprocess`` takes it; None: as this process's user."""

    user: int | None = None
    group: int | None = None

    @property
    def extra_groups(self) -> list[int] | None:
        """No further groups, of another user."""
        return None if self.user is None else []


def programs() -> Path:
    """Return the folder of PostgreSQL's programs: Debian's newest, else the wheel's.

    Raises:
        DanceflowError: there is neither.
    """
    found = [folder / "bin" for folder in _DEBIAN.glob("*") if (folder / "bin/postgres").is_file()]
    if found:
        return max(found, key=lambda place: _number(place.parent.name))
    spec = find_spec(_WHEEL)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    raise DanceflowError(
        "PostgreSQL is not installed: `apt-get install postgresql`, or `pip install "
        "'danceflow[team]'`, which brings its programs along"
    )


def account() -> Account:
    """Return as whom PostgreSQL runs.

    Raises:
        DanceflowError: this is the super-user, and there is nobody else.
    """
    if os.geteuid() != 0:
        return Account()
    for name in _USERS:
        with contextlib.suppress(KeyError):
            found = pwd.getpwnam(name)
            return Account(found.pw_uid, found.pw_gid)
    raise DanceflowError(
        f"PostgreSQL does not run as root, and there is no user {' or '.join(_USERS)}: add one"
    )


def create_cluster(data: Path, user: str, password: str) -> None:
    """Make the folder of a server's data, unless there is one already.

    One that a killed process left half-made is made anew: the server's version is written last.

    Args:
        data: the folder.
        user: who may do everything.
        password: of the user.

    Raises:
        DanceflowError: it cannot be made, or its owner cannot come to it.
    """
    if (data / "made").is_file():
        return
    remove(data)
    data.mkdir(parents=True)
    owner = account()
    word = data / "password"
    write_private(word, password)
    if owner.user is not None and owner.group is not None:
        _require_way(data, owner.user, owner.group)
        for place in (data, word):
            os.chown(place, owner.user, owner.group)
    options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", f"--username={user}")
    places = ("--pgdata", str(data / "cluster"), "--pwfile", str(word))
    done = subprocess.run(
        [str(programs() / "initdb"), *options, *places],
        cwd=data,
        capture_output=True,
        text=True,
        check=False,
        user=owner.user,
        group=owner.group,
        extra_groups=owner.extra_groups,
    )
    word.unlink()
    if done.returncode != 0:
        raise DanceflowError(f"{data}: initdb failed: {done.stderr.strip()}")
    (data / "made").touch()


def clear_lock(data: Path) -> None:
    """Remove the lock of a server that was killed, once all of its processes are gone.

    PostgreSQL does not start while a process has the number in it, be that one only waiting for
    its parent to look, as in containers, or by now somebody else's.

    Args:
        data: the folder of the server's data.

    Raises:
        DanceflowError: a server works on the data.
    """
    cluster = data / "cluster"
    lock = cluster / "postmaster.pid"
    deadline = time.monotonic() + _LAST_WORDS_S
    while lock.exists() and (found := _working_in(cluster)):
        if time.monotonic() > deadline:
            raise DanceflowError(f"{cluster}: process {found[0]} works on it; end that first")
        time.sleep(0.1)
    lock.unlink(missing_ok=True)


def command(data: Path, host: str, port: int) -> Sequence[str]:
    """Return the command that serves the databases of a folder, by TCP alone.

    A socket's path may have 107 characters at most, which a checkout's can be longer than.
    """
    settings = {"listen_addresses": host, "port": port, "unix_socket_directories": ""}
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return (str(programs() / "postgres"), "-D", str(data / "cluster"), *options)


def create_databases(uri: str, password: str, names: Sequence[str]) -> None:
    """Make databases that are not there yet.

    Args:
        uri: of the server's own database ``postgres``.
        password: of the URI's user.
        names: of the databases.

    Raises:
        DanceflowError: the driver is missing, or the server refuses.
    """
    try:
        import psycopg2
    except ImportError:
        raise DanceflowError(
            "PostgreSQL's driver is missing: pip install 'danceflow[postgres]'"
        ) from None
    try:
        with contextlib.closing(psycopg2.connect(uri, password=password)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                known = {row[0] for row in cursor.fetchall()}
                for name in names:
                    if name not in known:
                        cursor.execute(f'CREATE DATABASE "{name}"')
    except psycopg2.Error as error:
        raise DanceflowError(f"PostgreSQL: {str(error).strip()}") from None


def answers(uri: str, password: str) -> bool:
    """Return whether a server takes a connection."""
    import psycopg2

    try:
        psycopg2.connect(uri, password=password, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def _working_in(folder: Path) -> list[int]:
    """Return the processes whose working folder is one, as that of all of PostgreSQL's is."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder.resolve()):
                found.append(process.pid)
    return found


def _require_way(folder: Path, user: int, group: int) -> None:
    """Raise DanceflowError where a user cannot come to a folder because of one above it."""
    for place in folder.parents:
        found = place.stat()
        shift = 6 if found.st_uid == user else 3 if found.st_gid == group else 0
        if not found.st_mode >> shift & 0o1:
            name = pwd.getpwuid(user).pw_name
            raise DanceflowError(
                f"PostgreSQL does not run as root, and user {name} may not enter {place}: "
                f"chmod o+x {place}, or use a checkout elsewhere, or another user than root"
            )


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))
