"""The Hugging Face hub: what is fetched from it, and what is pushed to it.

Addresses are huggingface_hub's own, ``hf://owner/name[@revision][/path]``. Logging in is that
library's matter, too (``hf auth login``, or ``HF_TOKEN`` in the environment): no token is taken,
shown or kept here.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from danceflow.errors import HubError, UsageError
from danceflow.ops.tracking.address import holds_login, without_login

if TYPE_CHECKING:
    from huggingface_hub import HfUri

SCHEME = "hf://"

_LOG = logging.getLogger(__name__)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_PIPELINE, _TRANSFORMER = "model_index.json", "transformer"
_CARD = "README.md"
"""Its head states the licence."""
# Not what lies beside the folders of a pipeline: the same weights again, in other layouts.
_PIPELINE_FILES = (
    _PIPELINE,
    _CARD,
    *(f"*/*.{end}" for end in ("json", "safetensors", "txt", "model", "jinja")),
)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx")

What = Literal["pipeline", "teacher"]
"""What is fetched: a whole stock pipeline, or an adapter, a transformer or a pipeline's own."""


@dataclass(frozen=True)
class Fetched:
    """What was fetched.

    Attributes:
        path: the file or folder, in the hub's own cache; read only.
        address: where it is for ever, with the commit as its revision.
    """

    path: Path
    address: str


def is_address(text: str) -> bool:
    """Return whether a text is an address of the hub, and no path."""
    return text.startswith(SCHEME)


def fetch(address: str, what: What = "pipeline") -> Fetched:
    """Return a file or folder of the hub, downloaded unless the cache has it.

    With ``HF_HUB_OFFLINE`` set it comes from the cache alone. Of a file of an adapter the settings
    beside it come along; of a repository that is a pipeline, a teacher is its transformer. The
    model card beside either comes along, too.

    Args:
        address: ``hf://owner/name[@revision][/path]``.
        what: what is looked for.

    Raises:
        UsageError: it is no such address, or a login stands in it.
        HubError: there is no such thing, it may not be read, or the hub does not answer.
    """
    uri = _read(address)
    path = uri.path_in_repo.rstrip("/")
    with _told(address):
        if what == "pipeline" and not path:
            root = _snapshot(uri, _PIPELINE_FILES)
        elif not path:
            root = _snapshot(uri, ["*.json"], ["*/*"])
            if (root / _PIPELINE).is_file():
                path = _TRANSFORMER
                root = _snapshot(uri, [f"{path}/*", _CARD])
            else:
                root = _snapshot(uri, ["*.json", "*.safetensors", _CARD], ["*/*"])
        else:
            beside = [f"{PurePosixPath(path).with_name(n)}" for n in ("adapter_config.json", _CARD)]
            root = _snapshot(uri, [path, f"{path}/*", *beside])
    place = root / path
    if not place.exists() or (place.is_dir() and {p.name for p in place.iterdir()} <= {_CARD}):
        raise HubError(f"{address}: there is no {path or 'model'} in this repository")
    found = f"{SCHEME}{uri.id}@{root.name}" + (f"/{path}" if path else "")
    _LOG.info("%s: %s", address, found)
    return Fetched(place, found)


def push_folder(folder: Path, repository: str, *, private: bool, message: str) -> str:
    """Return the address of the commit by which everything in a folder was pushed.

    The repository is made if it is not there; files that it has and the folder has not stay.

    Args:
        folder: what was exported.
        repository: ``owner/name``, or ``hf://owner/name[@branch]``.
        private: whether a repository that is made can be seen by nobody else.
        message: of the commit.

    Raises:
        UsageError: it is no such name, or a login stands in it.
        HubError: the hub refuses or does not answer, or a file holds the token by which it would
            be pushed.
    """
    from huggingface_hub import HfApi, get_token

    uri = _repository(repository)
    _require_no_token(folder, get_token())
    with _told(repository):
        api = HfApi()
        api.create_repo(uri.id, private=private, exist_ok=True)
        if uri.revision is not None:
            api.create_branch(uri.id, branch=uri.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=uri.id, folder_path=folder, commit_message=message, revision=uri.revision
        )
    return f"{SCHEME}{uri.id}@{commit.oid}"


def require_repository(repository: str) -> None:
    """Check that a text names a repository; raises ``UsageError``, as ``push_folder`` does."""
    _repository(repository)


def _repository(text: str) -> "HfUri":
    uri = _read(text if is_address(text) else SCHEME + text)
    if uri.path_in_repo:
        raise UsageError(f"{text}: push to a repository, not to a folder in it")
    return uri


def _read(address: str) -> "HfUri":
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    shown = without_login(address)
    if holds_login(address):
        raise UsageError(f"{shown}: take the login out of the address; {_LOGIN}")
    try:
        uri = parse_hf_uri(address)
    except HfUriError as error:
        raise UsageError(f"{shown}: {error.msg}; write {SCHEME}owner/name[@revision]") from error
    if uri.type != "model":
        raise UsageError(f"{shown}: is the address of a {uri.type}, not of a model")
    return uri


def _snapshot(uri: "HfUri", allow: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            uri.id,
            revision=uri.revision,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore) or None,
        )
    )


def _require_no_token(folder: Path, token: str | None) -> None:
    """Raise ``HubError`` where a file beside the weights holds the token."""
    if not token:
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _WEIGHTS and token.encode() in path.read_bytes():
            raise HubError(f"{path}: holds your token of the hub; nothing was pushed")


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Say what the hub's library raises in one sentence, without a login."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{address}: accept its terms on its page, and {_LOGIN}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(f"{address}: is not there, or is private: {_LOGIN}") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{address}: has no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if _is_offline() else "the hub does not answer"
        raise HubError(f"{address}: is not in the cache as a whole, and {why}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        mend = f"; {_LOGIN} (with the right to write, to push)" if status in (401, 403) else ""
        raise HubError(f"{address}: the hub refuses ({status}){mend}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{address}: {_brief(error)}") from error


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def _brief(error: Any) -> str:
    text = without_login(f"{error}").strip()
    return text.splitlines()[0] if text else type(error).__name__
