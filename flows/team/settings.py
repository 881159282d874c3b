"""Where a team's servers keep what, on which ports they listen, and by which passwords."""

import json
import secrets
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from danceflow.errors import DanceflowError, UsageError, unknown_name
from danceflow.ops.files import exclusive, write_json
from danceflow.paths import Paths
from flows.ports import HOST, free_ports
from flows.team.private import write_private

USER = "danceflow"
"""Of PostgreSQL, of MLflow and of Prefect."""
BUCKET = "danceflow"
REMOTE = "team"
"""The name of the DVC remote that lies in the bucket."""
POOL = "danceflow"
"""The work pool of ``prefect.yaml``."""
REGION = "us-east-1"
DATABASES = ("mlflow", "mlflow_auth", "prefect")
SERVICES = ("postgres", "s3", "mlflow", "prefect", "worker", "model")

PROXIED = {
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}
"""Artifacts go through MLflow's server: its clients need neither address nor key of S3."""

_SECRETS = ("postgres", "s3", "mlflow", "mlflow_pages", "prefect", "service_token")
"""Each has a password of its own; that of ``mlflow_pages`` signs the forms of MLflow's pages."""


@dataclass(frozen=True)
class Team:
    """What was decided once for the servers of a checkout, and stays over restarts.

    Attributes:
        root: the checkout.
        ports: on which each service listens, by its name.
        passwords: by what they open.
    """

    root: Path
    ports: Mapping[str, int]
    passwords: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """Everything that the servers keep."""
        return Paths(self.root).team

    def data(self, service: str) -> Path:
        """Return where a service keeps its data."""
        return self.folder / service

    def log(self, service: str) -> Path:
        """Return the file that a service writes its log to."""
        return self.folder / "logs" / f"{service}.log"

    @property
    def environment_file(self) -> Path:
        """What ``environment`` returns, for a shell's ``source``; for its owner's eyes alone."""
        return self.folder / "env"

    def address(self, service: str) -> str:
        """Return the HTTP address of a service."""
        return f"http://{HOST}:{self.ports[service]}"

    def database(self, name: str) -> str:
        """Return the URI of a database; the password stands in ``PGPASSWORD`` alone."""
        return f"postgresql://{USER}@{HOST}:{self.ports['postgres']}/{name}"

    @property
    def remote(self) -> str:
        """The URL of the DVC remote."""
        return f"s3://{BUCKET}/dvc"

    @property
    def storage_environment(self) -> Mapping[str, str]:
        """What a client of the S3 server needs."""
        return {
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": self.passwords["s3"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.address("s3"),
        }

    @property
    def environment(self) -> Mapping[str, str]:
        """What a command needs that works with the servers: addresses and passwords."""
        return {
            "MLFLOW_TRACKING_URI": self.address("mlflow"),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.passwords["mlflow"],
            **PROXIED,
            "PREFECT_API_URL": f"{self.address('prefect')}/api",
            "PREFECT_API_AUTH_STRING": f"{USER}:{self.passwords['prefect']}",
            "DANCEFLOW_SERVICE_TOKEN": self.passwords["service_token"],
            **self.storage_environment,
        }


def prepare(root: Path, ports: Mapping[str, int] | None = None) -> Team:
    """Return the team of a checkout; what is not decided yet is decided and written down.

    Args:
        root: the checkout.
        ports: those that were asked for, by service; the others stay, or are free ones.

    Raises:
        UsageError: there is no such service.
        DanceflowError: a file of it cannot be read.
    """
    for name in ports or {}:
        if name not in SERVICES:
            raise UsageError(unknown_name("service", name, SERVICES))
    folder = Paths(root).team
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        known = _read(folder / "ports.json")
        chosen = {name: int(str(port)) for name, port in known.items()} | dict(ports or {})
        missing = [name for name in SERVICES if name not in chosen]
        chosen |= dict(zip(missing, free_ports(len(missing), set(chosen.values())), strict=True))
        if len(set(chosen.values())) < len(chosen):
            raise UsageError(f"two services on one port: {chosen}; give each its own")
        if chosen != known:
            write_json(folder / "ports.json", chosen)
        passwords = {name: str(word) for name, word in _read(folder / "passwords.json").items()}
        missing = [name for name in _SECRETS if name not in passwords]
        if missing:
            passwords |= {name: secrets.token_urlsafe(24) for name in missing}
            write_private(folder / "passwords.json", json.dumps(passwords))
        team = Team(root, chosen, passwords)
        lines = [f"{name}={shlex.quote(value)}" for name, value in team.environment.items()]
        write_private(team.environment_file, "\n".join([*lines, ""]))
    return team


def read_ports(texts: Iterable[str]) -> dict[str, int]:
    """Return ports by service.

    Args:
        texts: such as ``mlflow=5000``.

    Raises:
        UsageError: a text is none of these.
    """
    found = {}
    for text in texts:
        name, _, port = text.partition("=")
        if not (port.isdecimal() and 0 < int(port) < 65536):
            raise UsageError(f"{text!r}: write it as SERVICE=PORT, such as mlflow=5000")
        found[name] = int(port)
    return found


def load(root: Path) -> Team:
    """Return the team of a checkout that was prepared before.

    Raises:
        UsageError: it was not.
    """
    if not (Paths(root).team / "passwords.json").is_file():
        raise UsageError(f"{root} has no team's servers yet: call `danceflow team up`")
    return prepare(root)


def _read(path: Path) -> dict[str, object]:
    """Return the content of a small JSON file, nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DanceflowError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise DanceflowError(f"{path}: is no list of names and values")
    return found
