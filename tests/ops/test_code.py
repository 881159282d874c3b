"""Which files a stage's result depends on: none that it reaches is missed, none is too many."""

import functools
import shutil
from pathlib import Path

import pytest
from repository import ROOT

from danceflow.errors import StageError
from danceflow.ops.code import SOURCE, code_digest, digest_of, reached_files, reached_modules
from danceflow.params.yaml12 import read_yaml
from danceflow.stages import STAGES

DEPS = {
    name: [dep for dep in entry["deps"] if dep.startswith("src/")]
    for name, entry in read_yaml(ROOT / "dvc.yaml")["stages"].items()
}
# No stage but the one that is named goes by these.
ELSEWHERE = {
    "danceflow/check.py": "",
    "danceflow/cli.py": "",
    "danceflow/params/read.py": "",
    "danceflow/errors.py": "",
    "danceflow/report/tables/table.py": "",
    "danceflow/report/page/templates/report.css": "report",
    "danceflow/report/page/templates/report.html.j2": "report",
    "danceflow/report/page/page.py": "report",
    "danceflow/models/bring.py": "",
    "danceflow/ops/clean.py": "",
    "danceflow/ops/keys.py": "",
    "danceflow/ops/runtime.py": "",
    "danceflow/ops/tracking/store.py": "",
    "danceflow/paths.py": "",
    "danceflow/plan/cost.py": "",
    "danceflow/registry/register.py": "",
    "danceflow/params/sections.py": "",
    "danceflow/stages.py": "",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, at another place, with files that only a machine has."""
    place = tmp_path_factory.mktemp("code") / "src"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "danceflow", place / "danceflow", ignore=ignored)
    compiled = place / "danceflow" / "fields" / "__pycache__" / "objective.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_bytes(b"compiled")
    return place


def changed(source: Path, stage: str, file: Path) -> bool:
    """Whether a further line in a file changes what stands for a stage's code."""
    before, text = _digest(source, stage), file.read_text()
    try:
        file.write_text(text + "\n# One line more.\n")
        return digest_of(source, *STAGES[stage].modules) != before
    finally:
        file.write_text(text)


@functools.cache
def _digest(source: Path, stage: str) -> str:
    return digest_of(source, *STAGES[stage].modules)


def files_of(source: Path, dep: str) -> list[Path]:
    place = source / dep.removeprefix("src/")
    found = sorted(path for path in place.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return [path for path in found or [place] if path.stat().st_size and _has_code(path)]


def _has_code(file: Path) -> bool:
    return file.name != "__init__.py" or "import" in file.read_text()


@pytest.mark.parametrize(
    ("stage", "dep"), [(stage, dep) for stage, deps in DEPS.items() for dep in deps]
)
def test_a_line_in_any_dep_of_a_stage_makes_its_code_another(
    source: Path, stage: str, dep: str
) -> None:
    files = files_of(source, dep)
    assert files
    for file in files:
        assert changed(source, stage, file), file


@pytest.mark.parametrize("file", ELSEWHERE)
def test_a_line_elsewhere_makes_no_difference(source: Path, file: str) -> None:
    found = [stage for stage in STAGES if changed(source, stage, source / file)]
    assert found == ([ELSEWHERE[file]] if ELSEWHERE[file] else [])


@pytest.mark.parametrize("stage", STAGES)
def test_neither_the_place_nor_compiled_files_count(source: Path, stage: str) -> None:
    modules = STAGES[stage].modules
    assert digest_of(source, *modules) == digest_of(SOURCE, *modules) == code_digest(*modules)


def test_a_file_that_moved_or_went_makes_the_code_another(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    before = digest_of(source, "danceflow.report.stage")
    (tmp_path / "src/danceflow/report/page/templates/report.css").unlink()
    assert digest_of(tmp_path / "src", "danceflow.report.stage") != before


def test_a_module_that_is_not_there_is_told(source: Path) -> None:
    with pytest.raises(StageError, match="there is no module danceflow.train.destill"):
        digest_of(source, "danceflow.train.destill")


# ---------------------------------------------------------------------------------------------
# What counts as an import


def _write(root: Path, module: str, text: str, name: str = "") -> None:
    folder = root.joinpath(*module.split("."))
    file = folder / name if name else folder.with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    for parent in (file.parent, *file.parent.parents):
        if parent == root:
            break
        (parent / "__init__.py").touch()
    file.write_text(text)


@pytest.mark.parametrize(
    "line",
    [
        "import danceflow.models.families.sd3",
        "from danceflow.models.families import sd3",
        "from danceflow.models.families.sd3 import Family",
        "from ..models.families import sd3",
        "from ..models.families.sd3 import Family",
        "def load():\n    from danceflow.models.families import sd3",
        "TABLE = {'sd3': 'danceflow.models.families.sd3:Family'}",
        "from danceflow.scenes import world",
        "from danceflow.facade import Family",
        "from danceflow.facade import Other",
        "from danceflow.facade import *",
        "import danceflow.facade",
        "from danceflow.busy import nothing",
    ],
)
def test_every_kind_of_import_is_followed(tmp_path: Path, line: str) -> None:
    _write(tmp_path, "danceflow.models.families.sd3", "Family = 1\n")
    _write(tmp_path, "danceflow.scenes.world", "from danceflow.models.families import sd3\n")
    handing = "from danceflow.facade.inner import Renamed as Family, Other\n__all__ = ['Family']\n"
    _write(tmp_path, "danceflow.facade", handing, "__init__.py")
    inner = "from ..models.families.sd3 import Family as Renamed\nOther = 2\n"
    _write(tmp_path, "danceflow.facade.inner", inner)
    busy = "import danceflow.models.families.sd3\nprint('it does something')\n"
    _write(tmp_path, "danceflow.busy", busy, "__init__.py")
    _write(tmp_path, "danceflow.data.prepare", f"{line}\n")
    assert "danceflow/models/families/sd3.py" in reached_files(tmp_path, "danceflow.data.prepare")


def test_a_package_that_hands_names_on_is_no_import_of_the_others(tmp_path: Path) -> None:
    text = "from danceflow.facade.one import a\nfrom danceflow.facade.two import b\n"
    _write(tmp_path, "danceflow.facade", text, "__init__.py")
    _write(tmp_path, "danceflow.facade.one", "a = 1\n")
    _write(tmp_path, "danceflow.facade.two", "b = 1\n")
    for line in ("from danceflow.facade import a", "from danceflow.facade.one import a"):
        _write(tmp_path, "danceflow.data.prepare", f"{line}\n")
        assert reached_files(tmp_path, "danceflow.data.prepare") == (
            "danceflow/data/prepare.py",
            "danceflow/facade/__init__.py",
            "danceflow/facade/one.py",
        )


def test_imports_for_types_and_of_the_frame_do_not_count(tmp_path: Path) -> None:
    _write(tmp_path, "danceflow.models.families.sd3", "WIDTH = 1\n")
    for module in ("stages", "ops.tracking.store"):
        _write(tmp_path, f"danceflow.{module}", "import danceflow.models.families.sd3\n")
    _write(
        tmp_path,
        "danceflow.data.prepare",
        "import os\nfrom typing import TYPE_CHECKING\nfrom danceflow import stages, config\n"
        "from danceflow.ops.tracking.store import open_store\n"
        "if TYPE_CHECKING:\n    from danceflow.models.families import sd3\n",
    )
    assert reached_files(tmp_path, "danceflow.data.prepare") == ("danceflow/data/prepare.py",)


def test_imports_in_a_circle_end(tmp_path: Path) -> None:
    _write(tmp_path, "danceflow.data.a", "from danceflow.data import b\n")
    _write(tmp_path, "danceflow.data.b", "from danceflow.data import a, no_module\n")
    assert reached_modules(tmp_path, "danceflow.data.a") == {
        "danceflow.data",
        "danceflow.data.a",
        "danceflow.data.b",
    }


def test_files_that_code_names_count(tmp_path: Path) -> None:
    _write(tmp_path, "danceflow.data.page", "A, B, C = 'looks', 'numbers.json', 'scenes'\n")
    for name in ("looks/page.css", "looks/more/part.j2", "numbers.json", "other.json"):
        file = tmp_path / "danceflow/data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    _write(tmp_path, "danceflow.data.scenes.world", "A = 1\n")
    assert reached_files(tmp_path, "danceflow.data.page") == (
        "danceflow/data/looks/more/part.j2",
        "danceflow/data/looks/page.css",
        "danceflow/data/numbers.json",
        "danceflow/data/page.py",
    )
