import pytest

from danceflow.errors import ConfigError, TrackingError
from flows.dvc_graph import DvcError
from flows.dvc_stage import StageFailedError, StageStoppedError


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (StageFailedError("killed for memory", "distill", -9), True),
        (StageFailedError("a bug, or a hiccup", "distill", 1), True),
        (StageFailedError("dvc: busy", "distill", None), True),
        (StageFailedError("bad input", "distill", 2), False),
        (StageStoppedError("cancelled", "distill", None), False),
        (TrackingError("no answer"), True),
        (ConfigError("wrong"), False),
        (DvcError("a cycle"), False),
        (OSError("hiccup"), True),
    ],
)
def test_only_what_may_pass_by_itself_is_repeated(error, repeated):
    from prefect.states import Failed

    from flows.pipeline import worth_repeating

    assert worth_repeating(None, None, Failed(data=error)) is repeated
