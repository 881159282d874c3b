import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.utils.serialize import load_yaml

from danceflow.errors import StageError
from flows import dvc_stage
from flows.dvc_graph import (
    DvcError,
    StageNode,
    ancestry,
    changed_stages,
    checkout_sources,
    holders,
    stage_graph,
    write_parameters,
)
from flows.dvc_stage import (
    Outcome,
    StageFailedError,
    StageStoppedError,
    reproduce,
    reproduce_all,
    stage_environment,
)
from flows.processes import ProcessGroups, end_group


def repro(root: Path, stage: str, **options) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    with ProcessGroups() as processes:
        result = reproduce(root, stage, processes=processes, report=lines.append, **options)
    assert result.name == stage
    return result.outcome, lines


def set_command(root: Path, command: str) -> None:
    path = root / "dvc.yaml"
    path.write_text(path.read_text().replace("echo ${word} > a && echo first ran", command))


def test_the_graph_is_dvcs_own_in_an_order_that_can_be_run(repository):
    assert stage_graph(repository) == (
        StageNode("first", (), False),
        StageNode("fixed", ("first",), True),
        StageNode("both@1", ("first",), False),
        StageNode("both@2", ("first",), False),
        StageNode("last", ("both@1", "both@2", "fixed"), False),
    )


def test_ancestry_keeps_what_a_stage_needs(repository):
    nodes = stage_graph(repository)
    assert [node.name for node in ancestry(nodes, "both@2")] == ["first", "both@2"]
    with pytest.raises(DvcError, match=r"unknown stage 'lost': did you mean 'last'\?"):
        ancestry(nodes, "lost")


def test_a_folder_without_dvc_and_a_broken_graph_are_named(tmp_path, repository):
    with pytest.raises(DvcError, match="not inside of a DVC repository"):
        stage_graph(tmp_path)
    (repository / "dvc.yaml").write_text("stages:\n  a:\n    command: echo\n")
    with pytest.raises(DvcError, match="dvc.yaml"):
        stage_graph(repository)
    with pytest.raises(StageError):
        changed_stages(repository)


def test_a_stage_runs_once_and_is_restored_from_the_run_cache(repository):
    assert changed_stages(repository) >= {"first", "both@1", "both@2", "last"}
    outcome, lines = repro(repository, "first")
    assert outcome is Outcome.RAN
    assert "first ran" in lines
    assert not any("dvc push" in line or "git add" in line for line in lines)
    assert repro(repository, "fixed")[0] is Outcome.FROZEN
    assert changed_stages(repository) == {"both@1", "both@2", "last"}
    assert repro(repository, "first")[0] is Outcome.UNCHANGED

    write_parameters(repository / "params.yaml", {"word": "two"})
    assert repro(repository, "first")[0] is Outcome.RAN
    write_parameters(repository / "params.yaml", {"word": "one"})
    outcome, lines = repro(repository, "first")
    assert outcome is Outcome.RESTORED
    assert "first ran" not in lines
    assert (repository / "a").read_text() == "one\n"


def test_while_another_command_holds_the_repository_everything_counts_as_changed(
    repository, monkeypatch
):
    from dvc.lock import LockError
    from dvc.repo import Repo

    def refuse(self):
        raise LockError("held")

    monkeypatch.setattr(Repo, "status", refuse)
    assert "fixed" in changed_stages(repository)


def test_a_frozen_stage_runs_where_it_is_thawed_and_the_graph_stays(repository):
    repro(repository, "first")
    outcome, _ = repro(repository, "fixed")
    assert outcome in {Outcome.FROZEN, Outcome.UNCHANGED}
    assert (repository / "f").read_text() == "committed\n"
    before = (repository / "dvc.yaml").read_bytes()
    assert not any(node.frozen for node in stage_graph(repository, "fixed"))
    assert "fixed" not in changed_stages(repository, "fixed")
    assert repro(repository, "fixed", thaw=True)[0] is Outcome.UNCHANGED
    assert repro(repository, "fixed", thaw=True, force=True)[0] is Outcome.RAN
    assert (repository / "f").read_text() == "changed\n"

    write_parameters(repository / "params.yaml", {"word": "two"})
    repro(repository, "first")
    assert "fixed" not in changed_stages(repository)
    assert "fixed" in changed_stages(repository, "fixed")
    assert repro(repository, "fixed")[0] is Outcome.UNCHANGED
    assert repro(repository, "fixed", thaw=True)[0] is Outcome.RAN
    assert "fixed" not in changed_stages(repository, "fixed")
    assert (repository / "dvc.yaml").read_bytes() == before
    with pytest.raises(DvcError, match="unknown stage 'fixd': did you mean 'fixed'"):
        stage_graph(repository, "fixd")


@pytest.mark.parametrize(
    ("command", "stage_code", "exit_code"), [("exit 2", 2, 2), ("echo oh no; exit 7", 7, 1)]
)
def test_a_failure_says_what_the_stage_exited_with(repository, command, stage_code, exit_code):
    set_command(repository, command)
    with pytest.raises(StageFailedError, match=f"'first' failed .exit code {stage_code}") as caught:
        repro(repository, "first")
    assert caught.value.command_exit_code == stage_code
    assert caught.value.exit_code == exit_code
    assert ("oh no" in str(caught.value)) == (stage_code == 7)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.stage, copy.exit_code) == (str(caught.value), "first", exit_code)


LONG = "error: three problems:\n" + "\n".join(f"- row {row}: is bad" for row in range(60))
RAISED = "the shapes differ:\n  a has 3\n  b has 4"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (f"print({LONG!r}); sys.exit(2)", LONG),
        (f"raise ValueError({RAISED!r})", f"ValueError: {RAISED}"),
        ("print('oh no'); sys.exit(1)", "oh no"),
    ],
)
def test_the_error_of_a_stage_is_told_with_all_its_lines(repository, code, told):
    (repository / "script.py").write_text(f"import sys\nprint('loading')\n{code}\n")
    set_command(repository, f"{sys.executable} script.py")
    with pytest.raises(StageFailedError) as caught:
        repro(repository, "first")
    assert str(caught.value).endswith(f"): {told}")


def test_a_failure_of_dvc_itself_is_told_from_one_of_the_stage(repository):
    with pytest.raises(StageFailedError, match="dvc failed .*'nothing' not found") as caught:
        repro(repository, "nothing")
    assert caught.value.command_exit_code is None
    assert caught.value.exit_code == 1


def test_output_comes_while_the_stage_runs(repository):
    set_command(repository, "echo begun; while [ ! -e go ]; do sleep 0.05; done; echo one > a")
    seen = threading.Event()

    def report(line: str) -> None:
        if line == "begun":
            seen.set()
            (repository / "go").touch()

    with ProcessGroups() as processes:
        reproduce(repository, "first", processes=processes, report=report, timeout_s=60)
    assert seen.is_set()


def sleeper(repository: Path) -> None:
    set_command(repository, "sleep 300 & echo begun; sleep 300")


def num_sleepers(root: Path) -> int:
    count = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cwd").readlink() == root:
                count += (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
    return count


def test_a_whole_graph_in_one_command(repository):
    lines: list[str] = []

    def repro_all(*targets: str) -> dict[str, Outcome]:
        with ProcessGroups() as processes:
            found = reproduce_all(repository, targets, processes=processes, report=lines.append)
        assert all(result.seconds >= 0 for result in found)
        return {result.name: result.outcome for result in found}

    assert repro_all("both") == {"first": Outcome.RAN, "both@1": Outcome.RAN, "both@2": Outcome.RAN}
    assert "first ran" in lines
    everything = repro_all()
    assert everything["last"] is Outcome.RAN
    assert everything["fixed"] is Outcome.FROZEN
    (repository / "b@1").unlink()
    assert repro_all("last")["first"] is Outcome.UNCHANGED
    (repository / "dvc.lock").unlink()
    assert repro_all("both@2") == {"first": Outcome.RESTORED, "both@2": Outcome.RESTORED}
    set_command(repository, "echo sorry; exit 3")
    with pytest.raises(StageFailedError, match=r"'first' failed .exit code 3.: sorry") as caught:
        repro_all("last")
    assert (caught.value.stage, caught.value.command_exit_code) == ("first", 3)


def test_time_that_is_up_ends_the_whole_group(repository):
    sleeper(repository)
    with pytest.raises(StageStoppedError, match="ended after 3 s"):
        repro(repository, "first", timeout_s=3)
    assert num_sleepers(repository) == 0


def test_stopping_ends_the_whole_group_and_the_stage_works_afterwards(repository):
    sleeper(repository)
    with ProcessGroups() as processes:

        def report(line: str) -> None:
            if line == "begun":
                threading.Thread(target=processes.stop).start()

        begin = time.monotonic()
        with pytest.raises(StageStoppedError, match="the flow was cancelled"):
            reproduce(repository, "first", processes=processes, report=report)
        assert time.monotonic() - begin < 60
        assert num_sleepers(repository) == 0
        with pytest.raises(StageStoppedError, match="was not started"):
            reproduce(repository, "first", processes=processes, report=report)
    path = repository / "dvc.yaml"
    path.write_text(path.read_text().replace("sleep 300 & echo begun; sleep 300", "echo 1 > a"))
    assert repro(repository, "first")[0] is Outcome.RAN


def test_a_mistake_in_the_log_leaves_no_process(repository):
    sleeper(repository)

    def report(line: str) -> None:
        if line == "begun":
            raise RuntimeError("the log is full")

    with pytest.raises(RuntimeError), ProcessGroups() as processes:
        reproduce(repository, "first", processes=processes, report=report)
    assert num_sleepers(repository) == 0


def test_a_stage_finds_this_interpreter_first():
    folder = str(Path(sys.executable).parent)
    changed = stage_environment({"PATH": "/bin", "A": "b"})
    assert changed["PATH"] == f"{folder}:/bin"
    assert changed["A"] == "b"
    assert stage_environment({"PATH": f"{folder}:/bin"})["PATH"] == f"{folder}:/bin"
    assert folder in stage_environment({})["PATH"]


def test_parameters_are_set_in_place(repository):
    path = repository / "params.yaml"
    write_parameters(path, {"word": "two", "nested.depth": 1e-05})
    assert path.read_text() == "# the word\nword: two  # said first\nnested:\n  depth: 1e-05\n"


def test_setting_a_parameter_keeps_the_quotes_that_a_list_needs(repository):
    path = repository / "params.yaml"
    path.write_text('word: one\nframes: ["1:1", "3:2"]\nnested: [[a, "b: c"]]\n')
    write_parameters(path, {"word": "two"})
    expected = {"word": "two", "frames": ["1:1", "3:2"], "nested": [["a", "b: c"]]}
    assert load_yaml(path) == expected


def test_sources_come_from_the_cache(repository):
    (repository / "raw").unlink()
    checkout_sources(repository)
    assert (repository / "raw").read_text() == "raw"


# ------------------------------------------------------------------------- beside other commands

WAITING = "touch began; while [ ! -e go ]; do sleep 0.05; done; echo one > a"


@pytest.fixture
def other(repository) -> Iterator[subprocess.Popen[bytes]]:
    """A ``dvc repro`` of somebody else, at the first stage until the file ``go`` is there."""
    set_command(repository, WAITING)
    command = [sys.executable, "-m", "dvc", "repro", "both"]
    process = subprocess.Popen(
        command, cwd=repository, stdout=subprocess.DEVNULL, start_new_session=True
    )
    until((repository / "began").exists)
    yield process
    (repository / "go").touch()
    end_group(process, 10)
    process.wait()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("whole", [False, True], ids=["one stage", "a whole graph"])
def test_another_command_on_the_same_files_is_waited_for(repository, other, whole):
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if " waits for " in line:
            (repository / "go").touch()

    with ProcessGroups() as processes:
        if whole:
            found = reproduce_all(repository, ["last"], processes=processes, report=report)
        else:
            found = (reproduce(repository, "first", processes=processes, report=report),)
    (waits,) = [line for line in lines if " waits for " in line]
    assert f"process {other.pid} (" in waits
    assert "dvc" in waits
    assert "repro both), which works on " in waits
    assert {result.name: result.outcome for result in found}["first"] is Outcome.UNCHANGED
    assert (repository / "a").read_text() == "one\n"


def test_what_ran_before_the_wait_is_told_as_what_ran(repository):
    """The other command holds the second of two stages."""
    path = repository / "dvc.yaml"
    apart = WAITING.replace("> a", "> apart")
    path.write_text(path.read_text() + f"  apart:\n    cmd: {apart}\n    outs: [apart]\n")
    command = [sys.executable, "-m", "dvc", "repro", "apart"]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL)
    until((repository / "began").exists)
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if " waits for " in line:
            (repository / "go").touch()

    with ProcessGroups() as processes:
        targets = ["both@1", "apart"]
        found = reproduce_all(repository, targets, processes=processes, report=report)
    assert process.wait() == 0
    assert lines.index("first ran") < next(i for i, line in enumerate(lines) if " waits " in line)
    assert {result.name: result.outcome for result in found} == {
        "first": Outcome.RAN,
        "both@1": Outcome.RAN,
        "apart": Outcome.UNCHANGED,
    }


def test_who_waits_can_be_stopped(repository, other):
    with ProcessGroups() as processes:

        def report(line: str) -> None:
            if " waits for " in line:
                processes.stop()

        with pytest.raises(StageStoppedError, match="'first' was not started: the flow ends"):
            reproduce(repository, "first", processes=processes, report=report)
    assert other.poll() is None


def test_patience_ends_with_an_error_that_names_who_is_waited_for(repository, other, monkeypatch):
    monkeypatch.setattr(dvc_stage, "BUSY_PATIENCE_S", 0.0)
    with pytest.raises(StageStoppedError, match=rf"waited 0 hours for process {other.pid} .*repro"):
        repro(repository, "first")


def test_a_command_that_was_killed_is_not_waited_for(repository, other):
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()
    assert str(other.pid) in (repository / ".dvc" / "tmp" / "rwlock").read_text()
    (repository / "go").touch()
    assert repro(repository, "first")[0] is Outcome.RAN


def test_a_process_that_has_a_dead_commands_number_is_not_waited_for(repository, other):
    """As after a restart of a container, where the numbers are the same again."""
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()
    stranger = subprocess.Popen(["sleep", "300"])
    rwlock = repository / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(rwlock.read_text().replace(f": {other.pid},", f": {stranger.pid},"))
    (repository / "go").touch()
    try:
        assert repro(repository, "first")[0] is Outcome.RAN
        assert holders(repository) == ()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
