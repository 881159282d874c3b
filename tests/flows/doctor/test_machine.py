"""The machine, as it is and as it should not be."""

import os
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from params_files import changed
from repository import ROOT

from danceflow.params.read import parse_params
from danceflow.params.yaml12 import read_yaml
from flows.doctor import machine
from flows.doctor.finding import Finding, Level


def levels(found: Any) -> dict[str, Level]:
    return {item.check: item.level for item in found}


def of(found: Any, check: str) -> Finding:
    return next(item for item in found if item.check == check)


def test_versions_are_those_of_the_pins() -> None:
    assert levels(machine.versions(ROOT)) == {"python": Level.OK, "packages": Level.OK}


def test_a_copy_further_down_the_path_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # setuptools puts its own older copies of packages at the end of the path once it is imported
    copy = tmp_path / "packaging-1.0.dist-info"
    copy.mkdir()
    (copy / "METADATA").write_text("Metadata-Version: 2.1\nName: packaging\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert levels(machine.versions(ROOT))["packages"] is Level.OK


def test_another_version_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    lines = ["numpy==1.0" if line.startswith("numpy==") else line for line in pins]
    (tmp_path / "constraints.txt").write_text("\n".join(lines))
    monkeypatch.setattr(machine, "_required", lambda: ["numpy", "no-such-package"])
    found = [item for item in machine.versions(tmp_path) if item.check == "packages"]
    assert [item.level for item in found] == [Level.FAIL, Level.WARN]
    assert "no-such-package" in found[0].text
    assert "(pinned 1.0)" in found[1].text
    assert all(item.advice for item in found)
    (tmp_path / "constraints.txt").unlink()
    assert of(machine.versions(tmp_path), "packages").level is Level.WARN


def test_what_the_project_needs_is_installed() -> None:
    assert {"torch", "prefect", "dvc", "mlflow"} <= set(machine._required())


@pytest.mark.parametrize(
    ("gib", "level"), [(500.0, Level.OK), (5.0, Level.WARN), (0.5, Level.FAIL)]
)
def test_little_room_is_told(gib: float, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=0, used=0, free=int(gib * 2**30))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    found = of(machine.room(ROOT), "disk")
    assert (found.level, f"{gib:.1f} GiB free" in found.text) == (level, True)


def test_who_has_a_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (found,) = machine.ports({port: "mine"})
        assert found.level is Level.WARN
        assert f"process {os.getpid()}" in found.text
    (found,) = machine.ports({port: "mine"})
    assert found.level is Level.OK


def test_a_device_that_is_not_there_fails() -> None:
    data = read_yaml(ROOT / "params.yaml")
    (found,) = machine.gpu(parse_params(data, "test"))
    assert found.level is Level.OK
    (found,) = machine.gpu(parse_params(changed(data, "run.device=cuda:99"), "test"))
    assert (found.level, "cuda:99" in found.text) == (Level.FAIL, True)
