"""The sentence for an unknown name, and exit codes."""

from danceflow.errors import ConfigError, DanceflowError, TrackingError, unknown_name


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
