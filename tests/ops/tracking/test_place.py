"""Where the store lies, in every layout that git has: real repositories."""

import shutil
from pathlib import Path

import pytest
from layouts import BELOW, LAYOUTS, Layout, git

from danceflow.errors import TrackingError
from danceflow.ops.tracking import main_checkout, mark_experiment, resolve_uri
from danceflow.paths import Paths


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source-of-the-project"
    folder.mkdir()
    (folder / "params.yaml").write_text("a: 1\n")
    return folder


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Layout:
    return LAYOUTS[request.param](tmp_path / "place", source)


@pytest.fixture(params=[name for name in LAYOUTS if name != "no_git"])
def tracked(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Layout:
    return LAYOUTS[request.param](tmp_path / "place", source)


def test_store_and_project_stay_together(layout):
    assert main_checkout(layout.project) == layout.home
    assert main_checkout(layout.home) == layout.home
    assert resolve_uri(layout.project, None) == f"sqlite:///{layout.home}/mlflow.db"


def test_a_project_that_is_reached_through_a_link_has_one_store(layout, tmp_path):
    (tmp_path / "link").symlink_to(layout.project, target_is_directory=True)
    assert main_checkout(tmp_path / "link") == layout.home


def test_a_worktree_made_for_an_experiment_uses_the_store_of_its_checkout(layout, tmp_path):
    """Also where its folder lies on another disk, and where git could not tell."""
    elsewhere = tmp_path / "scratch" / "trial" / "below"
    elsewhere.mkdir(parents=True)
    mark_experiment(elsewhere, layout.project)
    assert main_checkout(elsewhere) == layout.home


@pytest.mark.parametrize("place", [Path("tmp1"), Path("standalone") / "tmp1"])
@pytest.mark.parametrize("at_the_top", [True, False])
def test_a_copy_that_dvc_makes_for_an_experiment_uses_the_store_of_its_checkout(
    tracked, place, at_the_top
):
    """DVC clones the whole of git's repository below its own folder, at git's top or below it."""
    top = Path(git(tracked.project, "rev-parse", "--show-toplevel"))
    repository = top if at_the_top else tracked.project
    copy = repository / ".dvc" / "tmp" / "exps" / place
    git(top, "clone", "--quiet", "--no-local", str(top), str(copy))
    inside = copy / tracked.project.relative_to(top)
    assert inside.is_dir()
    assert main_checkout(inside) == tracked.home


def test_a_moved_repository_still_has_its_store(source, tmp_path):
    for name in ("monorepo", "submodule_below", "bare_inside"):
        LAYOUTS[name](tmp_path / name, source)
        (tmp_path / name).rename(tmp_path / f"{name}-moved")
    moved = tmp_path / "monorepo-moved" / "main" / BELOW
    assert main_checkout(moved) == moved
    moved = tmp_path / "submodule_below-moved" / "super" / "sub" / BELOW
    assert main_checkout(moved) == moved


@pytest.mark.parametrize("name", ["linked", "linked_below", "bare"])
def test_a_worktree_whose_repository_was_moved_is_told_how_to_mend_it(name, source, tmp_path):
    """It would get a store of its own otherwise, and lose it with the worktree."""
    layout = LAYOUTS[name](tmp_path / "place", source)
    repository = tmp_path / "place" / ("bare.git" if name == "bare" else "main")
    repository.rename(tmp_path / "place" / "moved")
    tree = tmp_path / "place" / "tree"
    with pytest.raises(TrackingError, match="git worktree repair") as caught:
        main_checkout(layout.project)
    assert str(tree) in str(caught.value)
    git(tmp_path / "place" / "moved", "worktree", "repair", str(tree))
    expected = str(layout.home).replace(f"{repository}", str(tmp_path / "place" / "moved"))
    assert main_checkout(layout.project) == Path(expected)


def test_an_experiment_whose_checkout_is_gone_says_so(source, tmp_path):
    mark_experiment(tmp_path / "trial", source)
    shutil.rmtree(source)
    with pytest.raises(TrackingError, match="is not there") as caught:
        main_checkout(tmp_path / "trial")
    assert str(Paths(tmp_path / "trial").started_from) in str(caught.value)
