"""A tiny DVC repository whose stages are shell commands."""

import http.server
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

GRAPH = """
stages:
  last:
    cmd: cat b@1 b@2 f > last
    deps: [b@1, b@2, f]
    outs: [last]
  first:  # comments stay
    cmd: echo ${word} > a && echo first ran
    deps: [raw]
    params: [word]
    outs: [a]
  fixed:
    cmd: echo changed > f
    deps: [a]
    frozen: true
    outs:
      - f:
          cache: false
  both:
    matrix:
      part: [1, 2]
    cmd: cat a > b@${item.part}
    deps: [a]
    outs: ["b@${item.part}"]
"""


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C and a closed terminal end what the tests start, also where the tests ignore them.

    Tests in the background ignore SIGINT, those under nohup SIGHUP, and so would their children.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def answering() -> Iterator[str]:
    """The address of an API that answers."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def repository_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository-template") / "repository"
    root.mkdir()
    run(root, "git", "init", "-q", "-b", "main")
    run(root, sys.executable, "-m", "dvc", "init", "-q")
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text("# the word\nword: one  # said first\nnested:\n  depth: 1\n")
    (root / "raw").write_text("raw")
    (root / "f").write_text("committed\n")
    (root / ".gitignore").write_text("/.danceflow/\n/a\n/b@*\n/last\n")
    run(root, sys.executable, "-m", "dvc", "add", "-q", "raw")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-q", "-m", "first")
    return root


@pytest.fixture
def repository(repository_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy, while the working folder is somewhere else."""
    root = tmp_path / "repository"
    shutil.copytree(repository_template, root, symlinks=True)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    return root
