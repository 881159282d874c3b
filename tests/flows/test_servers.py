"""What is said of servers that are not there."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from danceflow.errors import StageError
from flows.servers import require_api


@pytest.fixture
def answering() -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/api", "http://me:secret@127.0.0.1:9/api", "http://nowhere.invalid/api"],
)
def test_a_prefect_server_that_is_away_is_one_error(url: str) -> None:
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(StageError) as caught:
        require_api()
    text = str(caught.value)
    assert "does not answer" in text
    assert "unset PREFECT_API_URL" in text
    assert "secret" not in text


def test_a_server_that_answers_and_none_at_all_are_fine(answering: str) -> None:
    with temporary_settings({PREFECT_API_URL: answering}):
        require_api()
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        require_api()
