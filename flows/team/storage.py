"""An S3 server for one machine: moto's, with a memory that lasts and a door.

moto speaks S3 and forgets everything when it ends; anybody may ask it. Here every object that was
written is in a file before the writer is answered, and comes back at the next start; and a request
must be signed with the one key.

Run as ``python -m flows.team.storage PORT FOLDER``, with the key in ``AWS_ACCESS_KEY_ID`` and
``AWS_SECRET_ACCESS_KEY``. It listens on this machine alone.
"""

import hashlib
import hmac
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from danceflow.errors import DanceflowError
from danceflow.ops.files import atomic_file, remove, write_json

_HOST = "127.0.0.1"
_REGION = "us-east-1"
_SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/s3/aws4_request, ?"
    r"SignedHeaders=(?P<headers>[^,]+), ?Signature=(?P<signature>[0-9a-f]{64})"
)
_WRITING = ("PUT", "POST", "DELETE")
_HEALTH = "/health"

Answer = Callable[..., Any]
Environment = dict[str, Any]


class Objects:
    """The buckets of moto, and their copy on the disk.

    A bucket is a folder. An object is two files named by the hash of its key: its bytes, and what
    is known of it. The second is written last: without it there is no object.
    """

    def __init__(self, folder: Path) -> None:
        from moto.core.models import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        self._folder = folder
        self._backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._lock = threading.Lock()

    def restore(self, region: str) -> int:
        """Return how many objects were found and given to moto."""
        count = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        for bucket in sorted(place for place in self._folder.iterdir() if place.is_dir()):
            self._backend.create_bucket(bucket.name, region)
            for note in sorted(bucket.glob("*.json")):
                known = json.loads(note.read_text(encoding="utf-8"))
                key = self._backend.put_object(
                    bucket.name,
                    known["key"],
                    note.with_suffix("").read_bytes(),
                    etag=known["etag"],
                    disable_notification=True,
                )
                key.set_metadata(known["metadata"], replace=True)
                count += 1
        return count

    def keep(self, bucket: str, key: str) -> None:
        """Make the copy of an object, or of all of a bucket, what moto has."""
        with self._lock:
            folder = self._folder / bucket
            if bucket not in self._backend.buckets:
                remove(folder)
                return
            folder.mkdir(parents=True, exist_ok=True)
            present = self._backend.buckets[bucket].keys
            if key:
                self._keep(folder, key, present.get(key))
                return
            known = {_name(name) for name in present}
            for note in folder.glob("*.json"):
                if note.stem not in known:
                    _forget(note.with_suffix(""))

    def _keep(self, folder: Path, key: str, found: Any) -> None:
        place = folder / _name(key)
        if found is None:
            _forget(place)
            return
        note = {
            "key": key,
            "etag": found.etag.strip('"'),
            "metadata": {name: str(value) for name, value in found.metadata.items()},
        }
        with atomic_file(place) as partial:
            partial.write_bytes(found.value)
        write_json(place.with_suffix(".json"), note)


class Door:
    """A WSGI application around moto's: who may come in, and what is kept of what they bring."""

    def __init__(self, inside: Answer, objects: Objects, key: str, secret: str) -> None:
        self._inside = inside
        self._objects = objects
        self._key = key
        self._secret = secret

    def __call__(self, environment: Environment, start: Answer) -> Iterable[bytes]:
        """Return the answer to a request."""
        target = str(environment.get("REQUEST_URI") or environment["PATH_INFO"])
        path = urlsplit(target).path
        method = environment["REQUEST_METHOD"]
        if path == _HEALTH:
            start("200 OK", [("Content-Type", "text/plain")])
            return [b"OK"]
        if not self._is_signed(method, target, _headers(environment)):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        status: list[str] = []

        def note(line: str, *rest: Any) -> Any:
            status.append(line)
            return start(line, *rest)

        answer: Iterable[bytes] = self._inside(environment, note)
        if method in _WRITING and status and status[0].startswith("2"):
            bucket, _, key = unquote(path).lstrip("/").partition("/")
            self._objects.keep(bucket, key)
        return answer

    def _is_signed(self, method: str, target: str, headers: Mapping[str, str]) -> bool:
        """Return whether a request bears the signature that only the key's owner can make."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        said = _SIGNATURE.match(headers.get("authorization", ""))
        if said is None or said["key"] != self._key or "x-amz-date" not in headers:
            return False
        signed = {name: headers.get(name, "") for name in said["headers"].split(";")}
        request = AWSRequest(method, f"http://{headers.get('host', '')}{target}", signed)
        request.context["timestamp"] = headers["x-amz-date"]
        signer = S3SigV4Auth(Credentials(self._key, self._secret), "s3", said["region"])
        text = signer.string_to_sign(request, signer.canonical_request(request))
        return hmac.compare_digest(signer.signature(text, request), said["signature"])


def serve(port: int, folder: Path, key: str, secret: str, region: str = _REGION) -> None:
    """Serve the objects of a folder until this process is ended.

    Args:
        port: on this machine's own address.
        folder: where objects are kept.
        key: who may ask.
        secret: by which the key's owner signs.
        region: of the buckets.
    """
    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    objects = Objects(folder)
    objects.restore(region)
    door = Door(create_backend_app("s3"), objects, key, secret)
    run_simple(_HOST, port, door, threaded=True, request_handler=MotoRequestHandler)


def create_bucket(name: str, environment: Mapping[str, str]) -> None:
    """Make a bucket, unless there is one.

    Args:
        name: the bucket's.
        environment: address and key of the server, as ``AWS_...`` variables.

    Raises:
        DanceflowError: the server refuses or cannot be reached.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=environment.get("AWS_ENDPOINT_URL_S3"),
        region_name=environment.get("AWS_DEFAULT_REGION", _REGION),
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    try:
        known = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
        if name not in known:
            client.create_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        raise DanceflowError(f"S3 bucket {name!r}: {error}") from error


def _headers(environment: Environment) -> dict[str, str]:
    found = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): str(value)
        for name, value in environment.items()
        if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environment.get(name):
            found[name.replace("_", "-").lower()] = str(environment[name])
    return found


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _forget(place: Path) -> None:
    place.with_suffix(".json").unlink(missing_ok=True)
    place.unlink(missing_ok=True)


if __name__ == "__main__":
    serve(
        int(sys.argv[1]),
        Path(sys.argv[2]),
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
    )
