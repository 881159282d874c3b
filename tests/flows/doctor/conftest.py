"""A small checkout to make ill."""

import shutil
from pathlib import Path

import pytest
from repository import ROOT


@pytest.fixture
def checkout(repository_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with one commit and the default's parameters."""
    root = tmp_path / "repository"
    shutil.copytree(repository_template, root, symlinks=True)
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    shutil.copyfile(ROOT / "constraints.txt", root / "constraints.txt")
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    return root
