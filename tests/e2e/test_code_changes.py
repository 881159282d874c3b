"""A line of code changes, and the stages that reach it, and no others, do their work anew.

Each test changes one line in the checkout and asks the real ``dvc repro`` for a stage whose work
folder of the first run is still there. Before, DVC ran the stage, which found its old work, passed
it on and let ``dvc.lock`` say that the new code made it.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from checkout import Checkout

from danceflow.models.package import read_manifest

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(900)]

DOUBLED = (
    "return (student_velocity - target_velocity).square()",
    "return 2 * (student_velocity - target_velocity).square()",
)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def finished(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same with a store of its own: a training anew is a further run."""
    checkout = finished.checkout
    shutil.copyfile(checkout.root / "mlflow.db", tmp_path / "mlflow.db")
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    monkeypatch.setattr(checkout, "environment", {**checkout.environment, **store})
    return finished


def edit(checkout: Checkout, file: str, old: str, new: str) -> None:
    """Change one place of the checkout's code."""
    path = checkout.root / "src/danceflow" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file}: {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new))


def content(folder: Path) -> Mapping[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def work_of(checkout: Checkout, name: str) -> set[str]:
    place = checkout.paths.work("any").parent
    return {path.name for path in place.glob(f"{name}-*") if path.is_dir()}


def updates(checkout: Checkout) -> list[int]:
    """The updates whose losses the student's record holds."""
    rows = map(json.loads, checkout.paths.distill_metrics.read_text().splitlines())
    return [row["step"] for row in rows if "loss" in row]


def test_a_change_of_the_loss_makes_every_update_anew(finished) -> None:
    checkout = finished.checkout
    before = (checkout.paths.student / WEIGHTS).read_bytes()
    work, steps = work_of(checkout, "distill"), updates(checkout)
    edit(checkout, "fields/objective.py", *DOUBLED)
    assert checkout.dvc("repro", "--single-item", "prepare", "cache", "distill") == ["distill"]
    (new,) = work_of(checkout, "distill") - work
    assert new.endswith(read_manifest(checkout.paths.student)["key"])
    assert updates(checkout) == steps
    assert (checkout.paths.student / WEIGHTS).read_bytes() != before

    # Back to the first code: its work is there, and is that code's own.
    checkout.restore()
    assert checkout.dvc("repro", "--single-item", "--force", "distill") == ["distill"]
    assert (checkout.paths.student / WEIGHTS).read_bytes() == before
    assert work_of(checkout, "distill") == work | {new}


def test_a_change_of_what_is_cached_computes_it_anew(finished) -> None:
    checkout = finished.checkout
    folder = checkout.paths.cache("t2i")
    before, work = content(folder), work_of(checkout, "cache-t2i")
    edit(checkout, "data/cache.py", 'f"cache/{capability}"', 'f"other/{capability}"')
    assert checkout.dvc("repro", "--single-item", "prepare", "cache@t2i") == ["cache@t2i"]
    assert len(work_of(checkout, "cache-t2i") - work) == 1
    after = content(folder)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"index.json", *(name for name in after if name.startswith("samples"))}


def test_a_comment_in_what_is_cached_computes_it_anew_and_trains_nothing(finished) -> None:
    """The result is the same to the byte, so what stands on it is not stale."""
    checkout = finished.checkout
    before, work = content(checkout.paths.cache("t2i")), work_of(checkout, "cache-t2i")
    edit(checkout, "data/cache.py", "_NUM_EXAMPLES = 3\n", "_NUM_EXAMPLES = 3  # few\n")
    assert checkout.dvc("repro", "--single-item", "cache@t2i", "distill") == ["cache@t2i"]
    assert len(work_of(checkout, "cache-t2i") - work) == 1
    assert content(checkout.paths.cache("t2i")) == before


def test_a_change_of_what_is_prepared_prepares_it_anew(finished) -> None:
    checkout = finished.checkout
    folder = checkout.paths.bucket("t2i") / "train"
    before = content(folder)
    edit(checkout, "worlds/scenes.py", 'f"{bucket}/{split}", 0, i', 'f"other/{split}", 0, i')
    assert checkout.dvc("repro", "--single-item", "prepare") == ["prepare"]
    assert content(folder) != before


def test_a_style_sheet_is_a_matter_of_the_report_alone(finished) -> None:
    checkout = finished.checkout
    css = checkout.root / "src/danceflow/report/page/templates/report.css"
    css.write_text(css.read_text() + "\n/* A further word. */\n")
    for file in ("cli.py", "check.py", "plan/cost.py", "registry/register.py", "ops/runtime.py"):
        path = checkout.root / "src/danceflow" / file
        path.write_text(path.read_text() + "\n# A further word.\n")
    (checkout.root / "README.md").write_text("Other words.\n")
    assert checkout.dvc("repro") == ["report"]
    assert "A further word." in checkout.paths.report_page.read_text()


def test_another_number_of_steps_reaches_the_package_without_an_update(finished) -> None:
    checkout = finished.checkout
    before, work = (checkout.paths.student / WEIGHTS).read_bytes(), work_of(checkout, "distill")
    log = updates(checkout)
    checkout.set("evaluate.num_steps", 3)
    assert checkout.dvc("repro", "--single-item", "distill") == ["distill"]
    assert read_manifest(checkout.paths.student)["num_steps"] == 3
    assert (checkout.paths.student / WEIGHTS).read_bytes() == before
    assert (work_of(checkout, "distill"), updates(checkout)) == (work, log)


def test_clean_removes_old_work_and_says_so(finished) -> None:
    checkout = finished.checkout
    paths = checkout.paths
    (kept,) = (
        paths.work(name)
        for name in work_of(checkout, "distill")
        if name.endswith(read_manifest(paths.student)["key"])
    )
    old = paths.work("distill-00000000000000aa")
    old.mkdir()
    (old / "checkpoint.safetensors").write_bytes(b"x" * 2_000_000)
    for folder in (old, kept):
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (0, 0))
    said = checkout.run("danceflow", "clean").splitlines()
    assert said[0] == f"removed {old} (2.0 MB)"
    assert said[-1].startswith("1 work folders removed, 2,000,000 bytes freed; ")
    assert not old.exists()
    assert (kept / "checkpoint.safetensors").is_file()
    assert checkout.dvc("repro") == []
