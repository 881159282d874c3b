"""A result tells what it was made from."""

import os
import platform

import pytest
import torch

from danceflow.report.curves import Curves
from danceflow.report.origin import machine, milliseconds, versions


def test_versions_are_those_that_run() -> None:
    found = versions()
    assert found["Python"] == platform.python_version()
    assert found["torch"] == str(torch.__version__)
    assert "not installed" not in found.values()


def test_the_machine_is_told_and_not_named() -> None:
    found = machine()
    assert found["System"].startswith(platform.system())
    assert "core" in found["Processor"]
    assert platform.node() not in " ".join(found.values())


def test_a_system_that_tells_no_affinity_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert f"{os.cpu_count()} core" in machine()["Processor"]


def test_a_forward_pass_takes_the_time_of_a_field_evaluation() -> None:
    assert milliseconds(Curves(seconds=30.0, field_evaluations=20_000)) == pytest.approx(1.5)
    several = Curves(seconds=30.0, field_evaluations=20_000, num_processes=4)
    assert milliseconds(several) == pytest.approx(6.0)
    assert milliseconds(Curves(seconds=30.0)) is None
    assert milliseconds(Curves(field_evaluations=5)) is None
