"""An OpenAI-compatible endpoint on this machine, with every mood that a test gives it."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from danceflow.params.sections import JudgeParams

Reply = tuple[int, dict | str | bytes, dict]
RAW = 0
"""A status with which the content is all that is sent."""

REASON = "reason phrase"
"""Among the headers, what stands behind the status code."""


class Server:
    """An OpenAI-compatible endpoint; ``answer`` says what it does with a request."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.answer: Callable[[dict, int], Reply] = usual
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                with outer.lock:
                    outer.requests.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    number = len(outer.requests)
                assert self.path == "/v1/chat/completions"
                status, content, headers = outer.answer(body, number)
                with contextlib.suppress(ConnectionError):  # who asked has gone
                    self.reply(status, content, headers)

            def reply(self, status: int, content: dict | str | bytes, headers: dict) -> None:
                if status == RAW:
                    self.wfile.write(content)
                    self.close_connection = True
                    return
                if isinstance(content, dict):
                    content = json.dumps(content)
                data = content.encode() if isinstance(content, str) else content
                self.send_response(status, headers.get(REASON))
                for name, value in headers.items():
                    if name != REASON:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments) -> None:
                pass

        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@contextlib.contextmanager
def listening() -> Iterator[Server]:
    """Give an endpoint that answers until the end of the block."""
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    """An endpoint of one test, in the mood that it has usually."""
    with listening() as found:
        yield found


def completion(text: object, finish_reason: str = "stop", **further) -> dict:
    """A chat completion; ``further`` stands in its message."""
    usage = {"prompt_tokens": 1000, "completion_tokens": 20}
    message = {"role": "assistant", "content": text, **further}
    choice = {"message": message, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": usage}


def usual(body: dict, number: int) -> Reply:
    text = body["messages"][0]["content"][0]["text"]
    if "marks" not in text:
        return 200, completion('Sure: {"right": true, "reason": "all there"}'), {}
    marks = [9, 4] if "edited version" in text else [8, 9]
    return 200, completion(json.dumps({"marks": marks, "reason": "so so"})), {}


def settings(url: str, **changes) -> JudgeParams:
    values = {
        "url": url,
        "model": "eyes-1",
        "key_variable": None,
        "offline": False,
        "is_score": False,
        "num_samples": 1,
        "num_retries": 2,
        "max_unusable": 0.0,
        "timeout_s": 5.0,
        "price_in": 2.0,
        "price_out": 10.0,
    }
    return JudgeParams(**{**values, **changes})
