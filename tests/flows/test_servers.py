"""What is said of servers that are not there."""

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from danceflow.errors import StageError
from flows.servers import require_api


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
