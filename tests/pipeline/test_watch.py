"""A crossed limit starts the pipeline where the parameters say so."""

import pytest

from danceflow.params.read import load_params
from danceflow.watch.checks import Check
from danceflow.watch.compare import Comparison

pytestmark = [pytest.mark.pipeline, pytest.mark.usefixtures("prefect_server")]

CROSSED = Check("unknown_words", "generate", "crossed", 0.4, 0.05, "40.0% of 50 prompts have one")
FOUND = Comparison("2026-01-01T00:00:00+00:00", "", {"1": 50}, (CROSSED,), {})


def test_a_difference_starts_a_run_and_says_what_it_learned(project, settings) -> None:
    from flows.watch import follow

    params = load_params(project.root / "params.yaml")
    watch = params.watch.model_copy(update={"on_drift": "retrain"})
    params = params.model_copy(update={"watch": watch})
    first = follow(project.root, params, FOUND, 1.0)
    assert first.startswith("limits are crossed; the pipeline was run: ")
    assert "distill" in first
    assert first.endswith("; it gave version 1")
    again = follow(project.root, params, FOUND, 1.0)
    assert "nothing was stale" in again
    assert "add rows like the prompts of the page" in again
