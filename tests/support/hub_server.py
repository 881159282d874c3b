"""A model hub on this machine: what huggingface_hub asks of one, in memory."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """Repositories by name and commit, and what was asked.

    Attributes:
        url: where it listens, for ``HF_ENDPOINT``.
        token: who has it may write, and read what is private.
        commits: files by commit, the last one is ``main``, by repository.
        private: repositories that nobody else sees.
        gated: repositories whose terms were not accepted.
        asked: methods and paths.
    """

    url: str = ""
    token: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """Commit files to a repository and return the commit's name."""
        commits = self.commits.setdefault(repository, {})
        all_files = {**(list(commits.values())[-1] if commits else {}), **files}
        name = hashlib.sha1(repr((len(commits), sorted(all_files.items()))).encode()).hexdigest()
        commits[name] = all_files
        return name

    def add_folder(self, repository: str, folder: Path) -> str:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return self.add(
            repository, {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
        )

    def files(self, repository: str) -> dict[str, bytes]:
        """Return the files of the last commit."""
        return list(self.commits[repository].values())[-1]

    def commit_of(self, repository: str, revision: str) -> str | None:
        commits = self.commits[repository]
        if revision == "main":
            return list(commits)[-1] if commits else ""
        return revision if revision in commits else None


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer_get()

    def do_HEAD(self) -> None:
        self._answer_get()

    def _answer_get(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository, revision = found[1], found[2] or "main"
            commit = self._commit(repository, revision)
            if commit is not None:
                names = self.hub.commits[repository].get(commit, {})
                siblings = [{"rfilename": name} for name in names]
                self._json({"id": repository, "sha": commit, "siblings": siblings})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            commit = self._commit(found[1], found[2])
            if commit is not None:
                files = self.hub.commits[found[1]][commit].items()
                self._json(
                    [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in files]
                )
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self._commit(found[1], found[2])
            if commit is None:
                return
            data = self.hub.commits[found[1]][commit].get(found[3])
            headers = {"X-Repo-Commit": commit}
            if data is None:
                self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
            else:
                self._send(200, data, {**headers, "ETag": f'"{_etag(data)}"'})
        else:
            self._send(404, b"")

    def do_POST(self) -> None:
        path, body = self._path(), self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._send(401, b"")
        elif path == "/api/repos/create":
            given = json.loads(body)
            owner = given.get("organization") or "me"
            repository = f"{owner}/{given['name']}"
            if repository in self.hub.commits:
                self._json({"error": "exists", "url": f"{self.hub.url}/{repository}"}, 409)
                return
            self.hub.commits[repository] = {}
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(repository)
            self._json({"url": f"{self.hub.url}/{repository}", "name": repository, "id": "1"})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", path):
            files = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith("tensors") else "regular",
                    "shouldIgnore": False,
                }
                for item in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            objects = [
                {
                    **item,
                    "actions": {"upload": {"href": f"{self.hub.url}/objects/{item['oid']}"}},
                }
                for item in asked
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            files = {}
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = self.hub.objects[value["oid"]]
            commit = self.hub.add(found[1], files)
            url = f"{self.hub.url}/{found[1]}/commit/{commit}"
            self._json({"commitUrl": url, "commitOid": commit})
        else:
            self._send(404, b"")

    def do_PUT(self) -> None:
        path, data = self._path(), self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.objects[path.removeprefix("/objects/")] = data
        self._send(200, b"")

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        return path

    def _commit(self, repository: str, revision: str) -> str | None:
        """Return a commit that may be read; otherwise answer why not."""
        mine = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository not in self.hub.commits or (repository in self.hub.private and not mine):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        if repository in self.hub.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            return None
        commit = self.hub.commit_of(repository, revision)
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def hub_server(token: str) -> Iterator[Hub]:
    hub = Hub(token=token)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
