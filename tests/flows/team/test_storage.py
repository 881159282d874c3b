"""The S3 server: what it keeps, and whom it lets in."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from danceflow.errors import DanceflowError
from flows.ports import is_free
from flows.team.storage import create_bucket

pytestmark = pytest.mark.pipeline

KEY = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "Planted-Key-1"}
ODD = "a folder/ä+b&c=%41 d/x"
LARGE = os.urandom(9_000_000)


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = next(port for port in range(19_000, 20_000) if is_free(port))
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "flows.team.storage", str(self.port), str(self.folder)]
        self.process = subprocess.Popen(
            command, env={**os.environ, **KEY}, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health").close()
            except OSError:
                assert self.process.poll() is None
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "somebody", secret: str = "Planted-Key-1") -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"max_attempts": 1}),
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("s3") / "data")
    create_bucket("things", {**KEY, "AWS_ENDPOINT_URL_S3": found.address})
    yield found
    found.kill()


def content(client: Any, key: str) -> bytes:
    return bytes(client.get_object(Bucket="things", Key=key)["Body"].read())


def test_what_was_written_is_there_after_a_kill(server: Server) -> None:
    client = server.client()
    client.put_object(Bucket="things", Key=ODD, Body=b"odd", Metadata={"colour": "red"})
    client.put_object(Bucket="things", Key="a", Body=b"old")
    client.put_object(Bucket="things", Key="a", Body=b"new")
    client.put_object(Bucket="things", Key="a/b", Body=b"below")
    client.put_object(Bucket="things", Key="gone", Body=b"x")
    client.delete_object(Bucket="things", Key="gone")
    for name in ("one", "two"):
        client.put_object(Bucket="things", Key=name, Body=b"x")
    named = [{"Key": "one"}, {"Key": "two"}]
    client.delete_objects(Bucket="things", Delete={"Objects": named})
    (server.folder.parent / "large").write_bytes(LARGE)  # sent in parts
    client.upload_file(str(server.folder.parent / "large"), "things", "large")
    listed = client.list_objects_v2(Bucket="things")["Contents"]
    before = {item["Key"]: item["ETag"] for item in listed}
    server.kill()
    server.start()
    listed = client.list_objects_v2(Bucket="things")["Contents"]
    assert {item["Key"]: item["ETag"] for item in listed} == before
    assert set(before) == {ODD, "a", "a/b", "large"}
    assert content(client, ODD) == b"odd"
    assert client.head_object(Bucket="things", Key=ODD)["Metadata"] == {"colour": "red"}
    assert (content(client, "a"), content(client, "a/b")) == (b"new", b"below")
    assert content(client, "large") == LARGE


def test_a_bucket_that_was_removed_stays_removed(server: Server) -> None:
    client = server.client()
    client.create_bucket(Bucket="passing")
    client.delete_bucket(Bucket="passing")
    assert not (server.folder / "passing").exists()
    create_bucket("things", {**KEY, "AWS_ENDPOINT_URL_S3": server.address})  # there already


@pytest.mark.parametrize(
    ("key", "secret"), [("somebody", "Another-Key"), ("another", "Planted-Key-1")]
)
def test_who_has_not_the_key_is_refused(server: Server, key: str, secret: str) -> None:
    with pytest.raises(ClientError, match="403|AccessDenied"):
        server.client(key, secret).list_objects_v2(Bucket="things")
    with pytest.raises(DanceflowError, match="S3 bucket 'things'") as caught:
        create_bucket(
            "things",
            {
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "AWS_ENDPOINT_URL_S3": server.address,
            },
        )
    assert secret not in str(caught.value)


def test_who_signs_nothing_is_refused(server: Server) -> None:
    for path in ("/", "/things", "/things/a", "/moto-api/data.json", "/moto-api/reset"):
        with pytest.raises(urllib.request.HTTPError) as caught:
            urllib.request.urlopen(server.address + path)
        assert caught.value.code == 403
