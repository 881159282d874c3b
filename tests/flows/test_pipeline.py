import shutil
from pathlib import Path

import pytest
from repository import ROOT

from danceflow.errors import ConfigError, TrackingError
from danceflow.params.read import load_params
from flows.dvc_graph import DvcError
from flows.dvc_stage import StageFailedError, StageStoppedError


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (StageFailedError("killed for memory", "distill", -9), True),
        (StageFailedError("a hiccup", "distill", 1), True),
        (StageFailedError("a bug", "distill", 1, True), False),
        (StageFailedError("dvc: busy", "distill", None), True),
        (StageFailedError("bad input", "distill", 2), False),
        (StageStoppedError("cancelled", "distill", None), False),
        (TrackingError("no answer"), True),
        (ConfigError("wrong"), False),
        (DvcError("a cycle"), False),
        (OSError("hiccup"), True),
        (KeyError("bug"), False),
    ],
)
def test_only_what_may_pass_by_itself_is_repeated(error, repeated):
    from prefect.states import Failed

    from flows.pipeline import worth_repeating

    assert worth_repeating(None, None, Failed(data=error)) is repeated


def test_weights_that_are_missing_are_told_before_a_stage_starts(tmp_path: Path) -> None:
    from flows.pipeline import _run, _Settings

    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    path.write_text(path.read_text().replace("inception: null", "inception: nowhere.pt"))
    where = f"evaluate.weights.inception: {tmp_path}/nowhere.pt: there is no such"
    with pytest.raises(ConfigError, match=where):
        _run(tmp_path, load_params(path), None, _Settings())


def test_a_distillation_that_cannot_start_is_told_before_a_stage_starts(tmp_path: Path) -> None:
    from flows.pipeline import _run, _Settings

    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    path.write_text(path.read_text().replace("warm_start: null", "warm_start: 99"))
    with pytest.raises(ConfigError, match=f"{path}: distill: warm_start is 99"):
        _run(tmp_path, load_params(path), None, _Settings())
