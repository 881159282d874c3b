"""The sentence for an unknown name, foreign text in messages, and exit codes."""

import pytest

from danceflow.errors import ConfigError, DanceflowError, TrackingError, brief, unknown_name


def test_the_nearest_name_is_offered() -> None:
    assert unknown_name("method", "danceop", ["soft", "danceopd"]) == (
        "unknown method 'danceop': did you mean 'danceopd'? known are danceopd, soft"
    )


def test_a_name_like_none_is_told_what_there_is() -> None:
    assert unknown_name("query", "xyz", ["low"]) == "unknown query 'xyz': known are low"
    assert unknown_name("query", "xyz", []) == "unknown query 'xyz': known are none"


def test_bad_input_and_failures_exit_differently() -> None:
    assert ConfigError("x").exit_code == 2
    assert DanceflowError("x").exit_code == TrackingError("x").exit_code == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a pet", "a pet"),
        ("", ""),
        ("two\n lines\t", "two lines"),
        ("nul \0, half \ud800, bell \a", "nul \\x00, half \\ud800, bell \\x07"),
        ("it's", "it's"),
        ("x" * 80, "x" * 80),
        ("x" * 81, "x" * 80 + "... (81 characters)"),
        (" " * 5000, "... (5000 characters)"),
        ("\0" * 10**6, "\\x00" * 20 + "... (1000000 characters)"),
    ],
)
def test_foreign_text_is_told_in_brief(text: str, shown: str) -> None:
    assert brief(text) == shown
