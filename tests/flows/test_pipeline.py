import pytest

from danceflow.errors import ConfigError, TrackingError, UsageError
from flows.dvc_graph import DvcError
from flows.dvc_stage import StageFailedError, StageStoppedError
from flows.schedule import check_cron


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


@pytest.mark.parametrize("cron", ["", "every night", "0 25 * * *"])
def test_a_schedule_that_is_none_is_refused(cron):
    with pytest.raises(UsageError, match="is no cron schedule"):
        check_cron(cron)


def test_a_schedule_is_accepted():
    check_cron("0 2 * * *")


def test_a_flow_is_served_once_at_a_time_with_its_checkout(monkeypatch, tmp_path):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.pipeline import run_pipeline, serve

    seen: dict = {}
    monkeypatch.setattr(type(run_pipeline), "serve", lambda self, *a, **k: seen.update(k, args=a))
    with temporary_settings({PREFECT_API_URL: "http://somewhere/api"}):
        serve(tmp_path, "0 2 * * *")
    assert seen["cron"] == "0 2 * * *"
    assert seen["parameters"] == {"root": str(tmp_path)}
    assert seen["global_limit"].limit == 1
    assert seen["global_limit"].collision_strategy.value == "ENQUEUE"
