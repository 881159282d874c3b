import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from layouts import LAYOUTS, Layout
from params_files import dump_yaml
from repository import ROOT

from danceflow.errors import ConfigError, DataError, UsageError
from danceflow.ops.tracking import main_checkout
from danceflow.params.read import load_params
from danceflow.paths import Paths
from flows.dvc_graph import DvcError
from flows.experiment import (
    Proposal,
    check_raw,
    experiment,
    kept_experiments,
    kept_file,
    plan,
    require_no_login,
)


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def dvc(root: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def checkout(repository: Path) -> Path:
    """The repository with a params file that danceflow knows."""
    (repository / "params.yaml").write_text((ROOT / "params.yaml").read_text() + "\n")
    path = repository / "dvc.yaml"
    path.write_text(path.read_text().replace("${word}", "w").replace("[word]", "[distill]"))
    git(repository, "commit", "-qam", "params")
    return repository


def any_plan(name: str = "trial", **overrides: object) -> Proposal:
    return Proposal(name, None, overrides, load_params(ROOT / "params.yaml"))


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".git", ".danceflow", "tmp"} & set(path.relative_to(root).parts)
    }


# ---------------------------------------------------------------------------------- planning


def test_a_plan_has_the_same_name_for_the_same_parameters(checkout):
    first = plan(checkout, None, {"distill.num_steps": 8}, None)
    again = plan(checkout, None, {"distill.num_steps": 8}, None)
    other = plan(checkout, None, {"distill.num_steps": 4}, None)
    assert first.params.distill.num_steps == 8
    assert first.name == again.name != other.name
    assert first.name.startswith("run-")
    recipe = plan(checkout, ROOT / "recipes" / "smoke.yaml", None, None)
    assert recipe.name.startswith("smoke-")
    assert recipe.params == load_params(ROOT / "recipes" / "smoke.yaml")
    assert plan(checkout, None, {}, "mine").name == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"distill.num_stepz": 8}, "did you mean 'num_steps'"),
        ({"distill.num_steps": "many"}, "distill.num_steps"),
        ({"distill.method": "dance"}, "unknown method 'dance'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_made(checkout, overrides, message):
    with pytest.raises(ConfigError, match=message):
        plan(checkout, None, overrides, None)
    assert not (checkout / ".danceflow").exists()


def test_a_missing_recipe_and_a_bad_name_are_refused(checkout):
    with pytest.raises(ConfigError, match="no such file"):
        plan(checkout, checkout / "recipes" / "none.yaml", None, None)
    with pytest.raises(UsageError, match="'a/b': use letters"):
        plan(checkout, None, None, "a/b")


def test_an_experiment_needs_a_commit_to_start_from(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git(tmp_path, "init", "-q")
    with pytest.raises(UsageError, match="there is none yet"):
        plan(tmp_path, None, None, None)


# ---------------------------------------------------------------------------------- worktrees


def test_the_worktree_has_the_parameters_and_the_checkout_stays(checkout):
    before = files(checkout)
    checked = plan(checkout, None, {"distill.num_steps": 8}, "trial")
    with experiment(checkout, checked) as place:
        assert load_params(Paths(place.root).params) == checked.params
        assert "# " in Paths(place.root).params.read_text()
        assert (place.root / "raw").read_text() == "raw"
        assert place.environment["DVC_EXP_NAME"] == "trial"
        (place.root / "a").write_text("made here")
        assert files(checkout) == before
        assert git(checkout, "status", "--porcelain") == ""
    assert files(checkout) == before
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert list((checkout / ".danceflow" / "worktrees").iterdir()) == []


def test_a_recipe_takes_the_place_of_the_parameters(checkout):
    recipe = ROOT / "recipes" / "smoke.yaml"
    with experiment(checkout, plan(checkout, recipe, {"run.seed": 7}, None)) as place:
        assert load_params(Paths(place.root).params).run.seed == 7
        assert Paths(place.root).params.read_text().startswith(recipe.read_text()[:200])


def test_changes_go_along_and_new_files_are_named(checkout, caplog):
    (checkout / "f").write_text("changed, not committed")
    (checkout / "added").write_text("known to git")
    git(checkout, "add", "added")
    (checkout / "new").write_text("unknown to git")
    (checkout / "raw.dvc").rename(checkout / "gone.dvc")
    (checkout / "a").write_text("ignored")
    status = git(checkout, "status", "--porcelain")
    with experiment(checkout, any_plan()) as place:
        assert (place.root / "f").read_text() == "changed, not committed"
        assert (place.root / "added").read_text() == "known to git"
        assert not (place.root / "raw.dvc").exists()
        assert not (place.root / "new").exists()
        assert not (place.root / "a").exists()
    assert "git does not know them: gone.dvc, new" in caplog.text
    assert git(checkout, "status", "--porcelain") == status


def test_raw_data_goes_along_as_files_that_dvc_can_hash(checkout):
    raw = Paths(checkout).raw
    (raw / "pets" / "images").mkdir(parents=True)
    (raw / "pets" / "images" / "1.png").write_text("a picture")
    (raw / "table.csv").write_text("rows")
    (checkout / ".git" / "info" / "exclude").write_text("/data/raw/*\n")
    with experiment(checkout, any_plan()) as place:
        inside = Paths(place.root).raw
        assert files(inside) == files(raw)
        assert not any(path.is_symlink() for path in inside.rglob("*"))
        assert (inside / "table.csv").samefile(raw / "table.csv")
    assert (raw / "pets" / "images" / "1.png").read_text() == "a picture"


@pytest.fixture
def raw(checkout: Path) -> Path:
    """The checkout's raw data, which git does not know."""
    folder = Paths(checkout).raw
    folder.mkdir(parents=True)
    (checkout / ".git" / "info" / "exclude").write_text(
        "/data/raw/*\n!/data/raw/*.dvc\n!/data/raw/.gitignore\n"
    )
    return folder


def tree(folder: Path) -> dict[str, str]:
    """What lies in a folder, links as links: those within it without the folder's own place."""
    top = str(folder.resolve())
    return {
        str(path.relative_to(folder)): f"-> {path.readlink()}".replace(top, "<raw>")
        if path.is_symlink()
        else path.read_text()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_links_in_the_raw_data_stay_links_that_lead_where_they_did(checkout, raw, tmp_path, caplog):
    disk = tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    (disk / "deep" / "1.png").write_text("a picture")
    (raw / "pets" / "images").mkdir(parents=True)
    (raw / "pets" / "images" / "2.png").write_text("another picture")
    (raw / "absolute").symlink_to(disk)
    (raw / "pets" / "relative").symlink_to("../../../../disk/deep")
    (raw / "pets" / "file.png").symlink_to("../../../../disk/deep/1.png")
    (raw / "inside").symlink_to("pets/images")
    (raw / "inside-absolute.png").symlink_to(raw / "pets" / "images" / "2.png")
    (raw / "chain").symlink_to("absolute")
    with experiment(checkout, any_plan()) as place:
        inside = Paths(place.root).raw
        assert tree(inside) == {
            "pets/images/2.png": "another picture",
            "absolute": f"-> {disk}",
            "pets/relative": f"-> {disk}/deep",
            "pets/file.png": f"-> {disk}/deep/1.png",
            "inside": "-> <raw>/pets/images",
            "inside-absolute.png": "-> <raw>/pets/images/2.png",
            "chain": f"-> {disk}",
        }
        assert (inside / "pets" / "file.png").read_text() == "a picture"
        assert (inside / "chain" / "deep" / "1.png").samefile(disk / "deep" / "1.png")
        assert (inside / "inside").resolve().is_relative_to(inside.resolve())
    assert (disk / "deep" / "1.png").read_text() == "a picture"
    assert "a link to a folder. DVC does not look behind it" in caplog.text


@pytest.mark.parametrize("linked", ["nothing", "a folder", "everything"])
def test_raw_data_has_the_same_hash_in_the_worktree(checkout, raw, tmp_path, linked):
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "1.png").write_text("a picture")
    (raw / "table.csv").write_text("rows")
    (raw / "one.png").symlink_to(disk / "1.png")
    if linked == "a folder":
        (raw / "pets").symlink_to(disk)
    if linked == "everything":
        raw.rename(tmp_path / "raw")
        raw.symlink_to(tmp_path / "raw")
    graph = checkout / "dvc.yaml"
    graph.write_text(graph.read_text().replace("deps: [raw]", "deps: [data/raw]"))
    dvc(checkout, "repro", "-q", "first")
    git(checkout, "add", "dvc.lock")
    git(checkout, "commit", "-qam", "graph")
    with experiment(checkout, any_plan()) as place:
        assert "Stage 'first' is cached" in dvc(place.root, "repro", "first")
    (raw / "table.csv").write_text("other rows")
    with experiment(checkout, any_plan()) as place:
        assert "Running stage 'first'" in dvc(place.root, "repro", "first")


def test_a_folder_that_git_knows_in_part_comes_along_whole(checkout, raw):
    (raw / "pets").mkdir()
    (raw / "pets" / "README.md").write_text("where they come from")
    git(checkout, "add", "-f", "data/raw/pets/README.md")
    git(checkout, "commit", "-qm", "readme")
    (raw / "pets" / "1.png").write_text("a picture")
    (raw / "kept").mkdir()
    (raw / "kept" / "1.png").write_text("kept")
    dvc(checkout, "add", "-q", "data/raw/kept")
    git(checkout, "add", "data/raw/kept.dvc")
    git(checkout, "commit", "-qm", "kept")
    (raw / "kept" / "2.png").write_text("not kept")
    with experiment(checkout, any_plan()) as place:
        inside = Paths(place.root).raw
        assert (inside / "pets" / "1.png").read_text() == "a picture"
        assert [path.name for path in (inside / "kept").iterdir()] == ["1.png"]


@pytest.mark.parametrize("place", ["data/raw", "data/raw/dead", "data/raw/pets/dead", "loop"])
def test_a_link_that_leads_nowhere_is_one_error(checkout, raw, place):
    (raw / "pets").mkdir()
    if place == "data/raw":
        raw.rename(checkout.parent / "elsewhere")
    link = raw / "loop" if place == "loop" else checkout / place
    link.symlink_to("loop" if place == "loop" else "nowhere")
    with pytest.raises(DataError, match=rf"{link} \(to .*\): a link that leads nowhere") as caught:
        check_raw(checkout)
    assert caught.value.exit_code == 2
    with pytest.raises(DataError), experiment(checkout, any_plan()):
        pass
    assert not (checkout / ".danceflow").exists()


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_what_can_be_read_for_ever_is_one_error(checkout, raw, kind):
    """DVC reads whatever lies below a stage's folder: it would wait for a pipe without a word."""
    (raw / "pets").mkdir()
    odd = raw / "pets" / "odd"
    if kind == "device":
        odd.symlink_to("/dev/zero")
    elif kind == "link to a pipe":
        os.mkfifo(checkout.parent / "pipe")
        odd.symlink_to(checkout.parent / "pipe")
    else:
        os.mkfifo(odd)
    with pytest.raises(DataError, match=f"^{odd}: neither a file nor a folder") as caught:
        check_raw(checkout)
    assert caught.value.exit_code == 2
    with pytest.raises(DataError), experiment(checkout, any_plan()):
        pass


def test_a_failure_removes_the_worktree(checkout):
    with pytest.raises(RuntimeError), experiment(checkout, any_plan()) as place:
        raise RuntimeError
    assert not place.root.exists()
    with pytest.raises(KeyError), experiment(checkout, any_plan(**{"no.such": 1})):
        pass
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_what_a_killed_run_left_is_removed(checkout):
    """Whatever process has its number by now, such as the same one of a restarted container."""
    places = checkout / ".danceflow" / "worktrees"
    left = places / f"old.{os.getpid()}"
    git(checkout, "worktree", "add", "-q", "--detach", str(left))
    (places / "gone.1234.lock").touch()
    with experiment(checkout, any_plan()) as first, experiment(checkout, any_plan()) as second:
        assert not left.exists()
        assert first.root.exists()
        assert second.root.exists()
        assert len(list(places.glob("*.lock"))) == 2
    assert list(places.iterdir()) == []
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_checkpoints_are_shared_with_the_checkout_and_outlive_the_worktree(checkout):
    with experiment(checkout, any_plan()) as place:
        work = Paths(place.root).work("0123")
        work.mkdir()
        (work / "state.pt").write_text("step 7")
    assert (Paths(checkout).work("0123") / "state.pt").read_text() == "step 7"


def test_an_experiment_is_saved_without_a_git_identity_and_seen_by_the_checkout(
    checkout, monkeypatch, tmp_path
):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{role}_NAME")
        monkeypatch.delenv(f"GIT_{role}_EMAIL")
    monkeypatch.setenv("HOME", str(tmp_path))
    (checkout / "f").write_text("changed, not committed\n")
    with experiment(checkout, plan(checkout, None, {"distill.num_steps": 8}, "trial")) as place:
        dvc(place.root, "repro", "-q")
        place.save()
        lock = (place.root / "dvc.lock").read_text()
    assert git(checkout, "status", "--porcelain").split() == ["M", "f"]
    assert not (checkout / "a").exists()
    (ref,) = git(checkout, "for-each-ref", "--format=%(refname)", "refs/exps/*/*/trial").split()
    assert git(checkout, "show", f"{ref}:dvc.lock") == lock.strip()
    assert "num_steps: 8" in git(checkout, "show", f"{ref}:params.yaml")
    assert git(checkout, "show", f"{ref}:f") == "changed, not committed"
    assert git(checkout, "rev-parse", f"{ref}^") == git(checkout, "rev-parse", "HEAD")
    assert "trial" in dvc(checkout, "exp", "show", "--csv")


# ------------------------------------------------------------------------------------ layouts


@pytest.fixture
def source(checkout: Path, tmp_path: Path) -> Path:
    """The files of the repository, without git's."""
    folder = tmp_path / "source-of-the-project"
    left_out = shutil.ignore_patterns(".git", "tmp", "cache")
    shutil.copytree(checkout, folder, symlinks=True, ignore=left_out)
    (folder / "raw").unlink()
    return folder


# DVC itself works in no git worktree of a submodule; without git there are no experiments.
WORKING = [name for name in LAYOUTS if name not in ("no_git", "linked_to_a_submodule")]


@pytest.fixture(params=WORKING)
def layout(request: pytest.FixtureRequest, tmp_path: Path, source: Path, checkout: Path) -> Layout:
    """A project in a checkout; what ``dvc pull`` would bring is there."""
    made = LAYOUTS[request.param](tmp_path / "place", source)
    shutil.copytree(checkout / ".dvc" / "cache", made.project / ".dvc" / "cache")
    (made.project / "raw").write_bytes((checkout / "raw").read_bytes())
    return made


@pytest.mark.pipeline
def test_an_experiment_works_in_every_layout_of_git(layout):
    """It is kept, seen by the checkout, and its tracking store is the checkout's."""
    root = layout.project
    (root / "f").write_text("changed, not committed\n")
    status = git(root, "status", "--porcelain")
    before = files(root)
    trees = git(root, "worktree", "list")
    checked = plan(root, None, {"distill.num_steps": 8}, "trial")
    with experiment(root, checked) as place:
        assert place.root.relative_to(Paths(root).worktrees)
        assert main_checkout(place.root) == layout.home
        assert load_params(Paths(place.root).params) == checked.params
        assert (place.root / "f").read_text() == "changed, not committed\n"
        dvc(place.root, "repro", "-q", **place.environment)
        (place.root / "notes").mkdir()
        (place.root / "notes" / "new").write_text("made here")
        place.save(untracked=[place.root / "notes" / "new"])
        lock = (place.root / "dvc.lock").read_text()
    assert git(root, "status", "--porcelain") == status
    assert files(root).items() >= before.items()
    assert git(root, "worktree", "list") == trees
    (kept,) = kept_experiments(root)
    assert kept.name == "trial"
    assert kept.baseline == git(root, "rev-parse", "HEAD")
    assert kept_file(root, kept, "dvc.lock") == lock.strip()
    assert kept_file(root, kept, "notes/new") == "made here"
    assert kept_file(root, kept, "f") == "changed, not committed"
    assert "trial" in dvc(root, "exp", "show", "--csv")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_git", UsageError, "an experiment starts from a commit"),
        ("linked_to_a_submodule", DvcError, "is outside of git repository"),
    ],
)
def test_where_an_experiment_cannot_work_it_says_so_and_leaves_nothing(
    name, error, message, source, tmp_path
):
    root = LAYOUTS[name](tmp_path / "place", source).project
    with pytest.raises(error, match=message) as caught:  # noqa: SIM117
        with experiment(root, plan(root, None, None, "trial")):
            pass
    assert str(root) in str(caught.value)
    assert list(Paths(root).worktrees.glob("*")) == []


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["top", "monorepo"])
@pytest.mark.parametrize("dvc_at_the_top", [True, False])
def test_a_temporary_experiment_of_dvc_keeps_its_store(name, dvc_at_the_top, tmp_path, checkout):
    source = tmp_path / "tiny"
    source.mkdir()
    code = "from danceflow.ops.tracking import main_checkout as m; import pathlib; "
    code += "pathlib.Path(chr(112)).write_text(str(m(pathlib.Path.cwd())))"
    command = f"{sys.executable} -c '{code}'"
    stage = {"cmd": command, "params": ["word"], "outs": [{"p": {"cache": False}}]}
    (source / "dvc.yaml").write_text(dump_yaml({"stages": {"place": stage}}))
    (source / "params.yaml").write_text("word: one\n")
    root = LAYOUTS[name](tmp_path / "place", source).project
    top = tmp_path / "place" / "main"
    at = top if dvc_at_the_top else root
    dvc(at, "init", "-q", *(["--subdir"] if at != top else []))
    git(top, "add", "-A")
    git(top, "commit", "-qm", "dvc")
    dvc(
        root,
        "exp",
        "run",
        "--temp",
        "-n",
        "trial",
        "-S",
        "word=two",
        "dvc.yaml:place",
        PYTHONPATH=str(ROOT / "src"),
    )
    (kept,) = kept_experiments(root)
    assert kept_file(root, kept, "p") == str(root)


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"])
def test_what_git_sets_for_its_hooks_leads_nowhere_else(checkout, monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, str(tmp_path / "another"))
    with experiment(checkout, plan(checkout, None, {}, "trial")) as place:
        assert name not in place.environment
        assert (place.root / "raw").read_text() == "raw"


@pytest.mark.parametrize("unknown", [["params.yaml"], ["dvc.yaml", "params.yaml"]])
def test_a_project_that_git_does_not_know_is_refused(checkout, unknown):
    git(checkout, "rm", "-q", "--cached", *unknown)
    with pytest.raises(UsageError, match=f"git does not know {' and '.join(unknown)}"):
        plan(checkout, None, None, "trial")


@pytest.mark.parametrize(
    "data",
    [
        {"tracking": {"uri": "http://ann:secret@host"}},
        {"tracking.uri": "postgresql://ann:secret@host/x"},
        {"evaluate": {"judge": {"url": "https://host/v1?api_key=secret"}}},
    ],
)
def test_an_experiment_keeps_no_login(data) -> None:
    require_no_login({"tracking": {"uri": "http://host:5000", "enabled": True}}, "params.yaml")
    with pytest.raises(UsageError, match="params.yaml: .*: holds a login or a token") as caught:
        require_no_login(data, "params.yaml")
    assert "secret" not in str(caught.value)
