"""The command line: light, and one clear line for every foreseen error."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer.main
from commands import Danceflow, in_this_process
from doc_commands import PAGES, REACHES, Command, blocks, executed_by
from PIL import Image
from repository import ROOT

from danceflow import check, cli, stages
from danceflow.errors import DanceflowError, TrackingError
from danceflow.ops import runtime


@pytest.fixture(autouse=True)
def calm_surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave this process's environment and logging as they are."""
    monkeypatch.setattr(runtime, "start", lambda verbose: None)
    monkeypatch.setattr(runtime, "use_code_of", lambda root: None)
    yield
    logging.getLogger("danceflow").setLevel(logging.NOTSET)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def danceflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Danceflow:
    """Call the command in this process: exit code, standard output, standard error."""
    return in_this_process(monkeypatch, capsys)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Flows that note how they were called."""
    noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Done(str):
        summary = stages = standing = None

    def note(name: str) -> Callable[..., str]:
        def called(*args: Any, **kwargs: Any) -> Any:
            noted.append((name, args, kwargs))
            return Done(f"{name} done")

        return called

    for module, names in {
        "flows.pipeline": ("run_pipeline", "run_teachers"),
        "flows.schedule": ("serve", "deploy"),
        "flows.promote": ("promote", "rollback"),
        "flows.pages": ("serve_pages",),
        "flows.sweep": ("run_sweep", "cells_table"),
        "flows.settled": (),
    }.items():
        fake = ModuleType(module)
        for name in names:
            setattr(fake, name, note(name))
        monkeypatch.setitem(sys.modules, module, fake)
    home = ModuleType("flows.home")
    home.at_home = lambda root: contextlib.nullcontext()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flows.home", home)
    sys.modules["flows.settled"].settled = lambda root: None  # type: ignore[attr-defined]
    table = ModuleType("flows.result")
    table.result_table = lambda *args: "a table"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flows.result", table)
    return noted


def _python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("danceflow pla", ["plan"]),
        ("danceflow explain distill.num_s", ["distill.num_steps"]),
        ("danceflow run --dry", ["--dry-run"]),
    ],
)
def test_a_shell_completes_what_is_typed(typed: str, offered: list[str]) -> None:
    shell = {
        "_DANCEFLOW_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(typed.count(" ")),
    }
    done = subprocess.run(
        [str(Path(sys.executable).with_name("danceflow"))],
        env={**os.environ, **shell},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == offered, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["generate", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """What makes help slow is imports; the clock of a shared machine would say nothing."""
    heavy = [
        "asyncio",
        "datasets",
        "diffusers",
        "dvc",
        "mlflow",
        "numpy",
        "peft",
        "PIL",
        "prefect",
        "rich",
        "torch",
        "torchmetrics",
        "transformers",
        "yaml",
    ]
    code = (
        "import json, sys\n"
        f"sys.argv = ['danceflow', *{arguments!r}]\n"
        "from danceflow import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    assert _python(code) == []


def test_help_tells_every_command_in_a_whole_sentence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "danceflow.cli", "--help"],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = done.stdout.partition("Commands:\n")[2].splitlines()
    assert len(told) == len(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert [line for line in told if not line.endswith(".") or line.endswith("...")] == []


def options(group: Any, before: str = "") -> Iterator[tuple[str, list[str]]]:
    """The options of every command, those of groups by both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from options(command, f"{before}{name} ")
        else:
            yield before + name, sorted(word for param in command.params for word in param.opts)


def test_the_commands_are_frozen() -> None:
    """A name that users type changes on purpose only."""
    group = typer.main.get_command(cli.app)
    found = dict(options(group))
    student = ["--device", "--from", "--guidance", "--num-steps", "--out", "--seed"]
    assert found == {
        "run": [
            *("--dry-run", "--name", "--parallel", "--pull", "--push"),
            *("--recipe", "--set", "--wait-for-approval", "--with-teachers", "-S"),
        ],
        "sweep": ["--parallel", "file"],
        "experiments": [],
        "sync": [],
        "table": ["--against", "--from", "--out", "sweep"],
        "stage": ["--capability", "name"],
        "check": [],
        "clean": ["--older-than"],
        "doctor": ["--json"],
        "teachers": ["--recipe"],
        "bring-teachers": ["--edits", "--family", "--licence", "--teacher", "pipeline"],
        "plan": [
            "--gpu",
            "--json",
            "--model",
            "--set",
            "--table",
            "--utilisation",
            "-S",
            "recipe",
        ],
        "recipes": [],
        "explain": ["name"],
        "schema": ["--out"],
        "digits": [],
        "generate": [*student, "--size", "prompts"],
        "edit": [*student, "given"],
        "evaluate": ["--capability", "--from", "--out"],
        "export": ["--format", "--from", "--public", "--push-to", "out"],
        "promote": ["--reason", "--wait-for-approval", "version"],
        "rollback": ["--reason"],
        "history": ["--json"],
        "diff": ["--json", "--out", "first", "second"],
        "serve": ["--cron", "--prefect-port"],
        "serve-model": [
            "--device",
            "--drain",
            "--from",
            "--host",
            "--max-body",
            "--max-pixels",
            "--max-prompts",
            "--max-queue",
            "--max-steps",
            "--poll",
            "--port",
            "--sample-folder",
            "--sample-pictures",
            "--sample-rate",
            "--threads",
            "--together",
            "--window",
        ],
        "studio": ["--device", "--folder", "--from", "--host", "--port", "--student", "--url"],
        "deploy": [],
        "watch": ["--days", "--from", "--samples"],
        "ui": ["--mlflow-port", "--prefect-port"],
        "team up": ["--model", "--port", "--watch"],
        "team down": [],
        "team status": [],
        "team exec": ["command"],
    }


def test_run_hands_recipe_and_values_to_the_flow(
    checkout: Path, danceflow: Danceflow, calls: list[Any]
) -> None:
    recipe = str(ROOT / "recipes" / "smoke.yaml")
    assert danceflow("run")[0] == 0
    values = ("-S", "run.seed=3", "--set", "cache.num_steps=2")
    more = ("--name", "trial", "--parallel", "2", "--with-teachers")
    assert danceflow("run", "--recipe", recipe, *values, *more)[:2] == (0, "a table\n")
    plain = {"root": checkout, "recipe": None, "overrides": {}, "name": None, "max_parallel": 1}
    plain |= {"with_teachers": False, "wait_for_approval": False}
    plain |= {"pull": False, "push": False}
    changed = {
        **plain,
        "recipe": Path(recipe),
        "overrides": {"run.seed": 3, "cache.num_steps": 2},
        "name": "trial",
        "max_parallel": 2,
        "with_teachers": True,
    }
    assert calls == [("run_pipeline", (), plain), ("run_pipeline", (), changed)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "run.sed=3"], "error: run.sed: unknown parameter 'sed': did you mean 'seed'?"),
        (["-S", "distill.query=logit_normal"], "params.yaml with --set: distill: method 'danceopd"),
        (["-S", "distill.init=spare"], "params.yaml with --set: distill.init: unknown start 'spa"),
        (["-S", "distill.num_queries=99"], "distill.num_queries: 99 queries do not fit"),
        (["-S", "run.seed"], "error: 'run.seed': write it as section.name=value"),
        (["--recipe", "none.yaml"], "error: none.yaml: no such file"),
    ],
)
def test_run_tells_bad_input_before_anything_starts(
    checkout: Path, danceflow: Danceflow, calls: list[Any], arguments: list[str], message: str
) -> None:
    code, _, err = danceflow("run", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert calls == []


def test_teachers_of_a_recipe_are_added_to_those_that_are_there(
    checkout: Path, danceflow: Danceflow, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], Path]] = []
    added = ["realism"]
    fake = ModuleType("danceflow.train.teachers.stage")
    fake.add = lambda params, paths: asked.append(([*params.teachers], paths.root)) or added  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "danceflow.train.teachers.stage", fake)
    recipe = str(ROOT / "recipes" / "realism.yaml")
    assert danceflow("teachers", "--recipe", recipe)[:2] == (
        0,
        "added to models/teachers: realism\n",
    )
    added.clear()
    assert "nothing, all are there" in danceflow("teachers", "--recipe", recipe)[1]
    assert asked == [(["base", "local", "global", "realism"], checkout)] * 2
    assert calls == []


def test_teachers_are_brought_into_the_checkout(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from danceflow.models import bring

    noted: list[Any] = []
    monkeypatch.setattr(bring, "bring_teachers", lambda *a, **k: noted.append((a, k)))
    given = ["bring-teachers", "stock", "--family", "zimage", "--edits"]
    pictures = checkout / "reports" / "teachers"
    pictures.mkdir(parents=True)
    (pictures / "t2i.png").write_bytes(b"of other teachers")
    code, out, _ = danceflow(*given, "--teacher", "local=a.safetensors", "--teacher", "far=b=c")
    assert code == 0
    assert list(pictures.iterdir()) == []
    place = checkout / "models" / "teachers"
    assert out.strip() == str(place)
    named = {"local": Path("a.safetensors"), "far": Path("b=c")}
    options = {"edits": True, "origin": None, "licences": {}}
    assert noted == [(("zimage", Path("stock"), named, place), options)]
    assert json.loads((checkout / "reports" / "teachers.json").read_text()) == {"teachers": {}}
    code, _, err = danceflow(*given, "--teacher", "local")
    assert code == 2
    assert "'local': write it as NAME=PATH" in err
    assert len(noted) == 1


def test_the_other_flows_get_the_checkout(
    checkout: Path, danceflow: Danceflow, calls: list[Any]
) -> None:
    below = checkout / "data"
    below.mkdir()
    assert danceflow("teachers")[0] == 0
    assert danceflow("serve", "--cron", "0 2 * * *")[0] == 0
    assert danceflow("promote", "3")[:2] == (0, "promote done\n")
    assert danceflow("promote")[0] == 0
    assert danceflow("rollback", "--reason", "worse")[:2] == (0, "rollback done\n")
    assert danceflow("ui", "--mlflow-port", "5001")[0] == 0
    assert "prefect worker start --pool danceflow" in danceflow("deploy")[1]
    names = ["run_teachers", "serve", "promote", "promote", "rollback", "serve_pages", "deploy"]
    assert [name for name, _, _ in calls] == names
    assert all(args[0] == checkout for _, args, _ in calls)
    assert [args[1:] for _, args, _ in calls[:5]] == [
        (),
        ("0 2 * * *", None),
        (3, ""),
        (None, ""),
        ("worse",),
    ]
    assert calls[5][1][1].tracking.experiment == "danceflow"
    assert calls[5][1][2:] == (5001, 4200)


def test_sweep_checks_the_file_and_calls_the_flow(
    checkout: Path, danceflow: Danceflow, calls: list[Any]
) -> None:
    file = checkout / "s.yaml"
    file.write_text("name: s\nseeds: [0]\nparalel: 2\n")
    code, _, err = danceflow("sweep", "s.yaml")
    assert code == 2
    assert "s.yaml: paralel: unknown parameter 'paralel': did you mean 'parallel'?" in err
    file.write_text("name: s\nseeds: [0]\nset: {distill.seed: 1}\n")
    assert danceflow("sweep", "s.yaml")[0] == 2
    assert calls == []
    file.write_text("name: s\nseeds: [0]\n")
    code, out, _ = danceflow("sweep", "s.yaml", "--parallel", "3")
    assert (code, out) == (0, "cells_table done\n")
    assert calls[0] == ("run_sweep", (), {"file": file, "root": checkout, "parallel": 3})


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "a red circle", "--out"),
        ("edit", "picture.png", "turn it", "--out"),
        ("table", "s.yaml", "--out"),
    ],
)
@pytest.mark.parametrize("place", ["taken", "taken/below", "loop", "a" * 300])
def test_an_output_that_cannot_be_written_is_one_error_before_the_work(
    checkout: Path, danceflow: Danceflow, command: tuple[str, ...], place: str
) -> None:
    (checkout / "taken").write_text("a file")
    (checkout / "loop").symlink_to("loop")
    (checkout / "s.yaml").write_text("name: s\nseeds: [0]\n")
    Image.new("RGB", (8, 8)).save(checkout / "picture.png")
    code, _, err = danceflow(*command, place)
    assert code == 2
    assert "Traceback" not in err
    assert ": cannot be written to: " in err
    assert (checkout / "taken").read_text() == "a file"


@pytest.mark.parametrize("command", [["run"], ["sweep", "s.yaml"]])
def test_sigterm_leaves_as_an_exit_does(checkout: Path, command: list[str]) -> None:
    """What waits for the exit, such as the end of Prefect's temporary server, still happens."""
    (checkout / "s.yaml").write_text("name: s\nseeds: [0]\n")
    code = (
        "import atexit, os, signal, sys, types\n"
        "from danceflow import cli\n"
        "def flow(**_): os.kill(os.getpid(), signal.SIGTERM)\n"
        "import contextlib\n"
        "homes = ('flows.home', 'flows.pipeline', 'flows.sweep', 'flows.result', 'flows.settled')\n"
        "for name in homes:\n"
        "    fake = sys.modules[name] = types.ModuleType(name)\n"
        "    fake.at_home = lambda root: contextlib.nullcontext()\n"
        "    fake.settled = lambda root: None\n"
        "    fake.run_pipeline = fake.run_sweep = fake.cells_table = fake.result_table = flow\n"
        "atexit.register(print, 'the server is ended')\n"
        f"sys.argv = ['danceflow', *{command!r}]\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "the server is ended\n")


def test_table_prints_and_writes(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from danceflow.report.tables.cells import CellRecord
    from danceflow.report.tables.table import make_table

    scores = {"scale/t2i": 1.0, "trained/t2i": 1.0, "student/t2i/overall/overall": 0.25}
    record = CellRecord(
        sweep="s", cell="c", variant="v", seed=0, targets="", code="", finished=1.0, scores=scores
    )
    asked: list[tuple[Any, ...]] = []

    def sweep_table(*arguments: Any) -> Any:
        asked.append(arguments)
        return make_table("s", [record]), ("lost",)

    fake = ModuleType("flows.cells")
    fake.sweep_table = sweep_table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flows.cells", fake)
    code, out, _ = danceflow("table", "s", "--from", "mlflow", "--out", "results")
    assert code == 0
    assert asked == [(checkout, "s", "mlflow")]
    assert "| v | 1 | 0.250 |" in out
    assert "Not finished: lost." in out
    assert {path.name for path in (checkout / "results").iterdir()} == {"s.md", "s.csv", "s.png"}
    assert danceflow("table", "s", "--from", "csv")[0] == 2


def test_stage_runs_the_stage(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Any] = []
    monkeypatch.setattr(stages, "run_stage", lambda *args: noted.append(args))
    assert danceflow("stage", "cache", "--capability", "t2i")[0] == 0
    assert noted == [("cache", "t2i", checkout)]


def test_a_failure_is_one_line_and_exit_code_1(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TrackingError("the store is away")

    monkeypatch.setattr(stages, "run_stage", fail)
    assert danceflow("stage", "report") == (1, "", "error: the store is away\n")


def test_an_error_does_not_share_the_line_of_a_progress_bar(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqdm import tqdm

    bars = []

    def fail(*_: object) -> None:
        bars.append(tqdm(total=3, desc="distill"))
        raise TrackingError("the store is away")

    monkeypatch.setattr(stages, "run_stage", fail)
    code, _, err = danceflow("stage", "report")
    assert code == 1
    assert "distill:   0%" in err
    assert err.endswith("\nerror: the store is away\n")


def test_an_unforeseen_error_ends_with_its_own_last_line(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flow quotes a stage's last line, which must not be that of a progress bar."""
    from tqdm import tqdm

    bars = []

    def fail(*_: object) -> None:
        bars.append(tqdm(total=3, desc="distill"))
        raise AttributeError("no attribute")

    monkeypatch.setattr(stages, "run_stage", fail)
    with pytest.raises(AttributeError, match="no attribute"):
        danceflow("stage", "report")
    (bar,) = bars
    assert bar.disable  # tqdm's mark of a bar that was closed


def test_bad_input_is_one_line_and_exit_code_2(checkout: Path, danceflow: Danceflow) -> None:
    code, out, err = danceflow("stage", "destill")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown stage 'destill': did you mean 'distill'?")


def test_an_unknown_command_exits_with_2(danceflow: Danceflow) -> None:
    code, _, err = danceflow("runn")
    assert code == 2
    assert "No such command 'runn'" in err


def test_outside_a_checkout_is_told(
    tmp_path: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = danceflow("check")
    assert code == 2
    assert "holds dvc.yaml and params.yaml" in err


def test_check_lists_problems(
    checkout: Path, danceflow: Danceflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "find_problems", lambda root, commands: ["one thing", "another"])
    assert danceflow("check") == (1, "one thing\nanother\n", "error: 2 problems\n")
    monkeypatch.setattr(check, "find_problems", lambda root, commands: [])
    assert danceflow("check") == (0, "dvc.yaml, stages, command line and flow agree\n", "")


@pytest.fixture
def student(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A student that notes what it is asked for and returns images of one colour."""
    from danceflow.registry import open as package

    noted = SimpleNamespace(opened=None, asked=None)

    def answer(*asked: Any) -> list[Image.Image]:
        noted.asked = asked
        prompts = asked[1] if isinstance(asked[1], list) else asked[0]
        return [Image.new("RGB", (4, 4), "red") for _ in prompts]

    def open_student(*args: Any, **kwargs: Any) -> SimpleNamespace:
        noted.opened = (args, kwargs)
        return SimpleNamespace(generate=answer, edit=answer)

    monkeypatch.setattr(package, "open_student", open_student)
    return noted


def test_generate_writes_a_png_per_prompt(
    tmp_path: Path, danceflow: Danceflow, student: SimpleNamespace
) -> None:
    """A student in a folder needs no checkout."""
    out = tmp_path / "images"
    code, text, _ = danceflow(
        "generate",
        "a red circle",
        "two squares",
        "--from",
        str(tmp_path),
        "--out",
        str(out),
        "--seed",
        "5",
        "--num-steps",
        "4",
        "--size",
        "48x32",
    )
    assert code == 0
    assert text.split() == [str(out / "000.png"), str(out / "001.png")]
    with Image.open(out / "001.png") as image:
        assert (image.format, image.getpixel((0, 0))) == ("PNG", (255, 0, 0))
    assert student.asked == (["a red circle", "two squares"], 5, 4, 1.0, (32, 48))
    assert student.opened == ((str(tmp_path),), {"device": "cpu"})


def test_edit_gives_every_instruction_the_image(
    checkout: Path, danceflow: Danceflow, student: SimpleNamespace
) -> None:
    Image.new("RGBA", (8, 8), "blue").save(checkout / "in.png")
    code, text, _ = danceflow("edit", "in.png", "make it green", "make it night")
    assert code == 0
    assert text.split() == ["edited/000.png", "edited/001.png"]
    pictures, *rest = student.asked
    assert [[(p.mode, p.size) for p in row] for row in pictures] == [[("RGBA", (8, 8))]] * 2
    assert rest == [["make it green", "make it night"], 0, None, 1.0]
    (source, settings, device), _ = student.opened
    assert (source, settings.root, device) == ("champion", checkout, "cpu")


def test_edit_takes_several_images_before_the_instructions(
    checkout: Path, danceflow: Danceflow, student: SimpleNamespace
) -> None:
    for name, colour in (("a.png", "blue"), ("b.png", "red"), ("notes", "green")):
        Image.new("RGB", (8, 8), colour).save(checkout / name, format="PNG")
    assert danceflow("edit", "a.png", "b.png", "notes", "put a.png onto b.png")[0] == 0
    [row], prompts, *_ = student.asked
    assert [picture.getpixel((0, 0)) for picture in row] == [(0, 0, 255), (255, 0, 0), (0, 128, 0)]
    assert prompts == ["put a.png onto b.png"]
    for given, message in (
        (["a.png", "b.png"], "'b.png': write an instruction behind the images"),
        (["make it green"], "'make it green': write an image before the instructions"),
        (["a.png", "c.png", "turn it"], "c.png: "),
    ):
        code, _, err = danceflow("edit", *given)
        assert code == 2
        assert err.startswith(f"error: {message}")


@pytest.mark.parametrize("size", ["48", "48x", "0x32", "48X32", "-4x4", "big"])
def test_a_size_that_is_none_is_told_before_weights_load(
    danceflow: Danceflow, student: SimpleNamespace, size: str
) -> None:
    code, _, err = danceflow("generate", "a red circle", f"--size={size}")
    assert (code, student.opened) == (2, None)
    assert err == f"error: {size!r}: write a size as WIDTHxHEIGHT, such as 768x512\n"


@pytest.mark.parametrize("command", [["generate"], ["edit", "in.png"]])
@pytest.mark.parametrize("device", ["cuda:97", "tpu", "cuda:x", ""])
def test_a_device_that_is_not_there_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    danceflow: Danceflow,
    command: list[str],
    device: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("in.png")
    code, _, err = danceflow(*command, "a red circle", "--from", ".", f"--device={device}")
    assert (code, err) == (2, f"error: there is no device {device!r} on this machine\n")


@pytest.mark.parametrize("source", ["models/student", "challenger2", "/nowhere"])
def test_a_folder_that_is_missing_is_told_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, danceflow: Danceflow, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = danceflow("generate", "a red circle", "--from", source)
    assert code == 2
    assert err.startswith(f"error: {source}: there is no student here")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", [None, b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_an_unreadable_image_is_told_before_weights_load(
    checkout: Path, danceflow: Danceflow, student: SimpleNamespace, content: bytes | None
) -> None:
    if content is not None:
        (checkout / "in.png").write_bytes(content)
    code, _, err = danceflow("edit", "in.png", "make it green")
    assert code == 2
    assert err.startswith("error: in.png: ")
    assert len(err.splitlines()) == 1
    assert student.opened is None
    assert not (checkout / "edited").exists()


BEHIND = {
    "bring-teachers": "danceflow.ops.hub.fetch",
    "export": "danceflow.registry.export.export_student",
    "run": "flows.pipeline.run_pipeline",
    "serve-model": "danceflow.service.serve.serve_model",
    "studio": "danceflow.studio.serve.serve_studio",
    "sweep": "flows.sweep.run_sweep",
    "table": "flows.cells.sweep_table",
    "team": "flows.team.run.call",
    "watch": "flows.watch.run_watch",
}
"""What does the work of a command; it has tests of its own."""


class ReachedError(Exception):
    """The work would begin."""


@pytest.mark.parametrize(
    "command",
    [c for page in PAGES for c in blocks(page) if executed_by(c) == REACHES and not c.needs],
    ids=str,
)
def test_what_a_page_shows_reaches_the_code_behind_it(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """Word by word, in a checkout with the files that it names; all before the work is real."""
    from danceflow.ops import hub
    from flows import home, settled

    def reached(*_: object, **__: object) -> None:
        raise ReachedError

    monkeypatch.setattr(home, "at_home", lambda root: contextlib.nullcontext())
    monkeypatch.setattr(settled, "settled", lambda root: None)
    monkeypatch.setattr(hub, "require_repository", lambda name: None)  # it asks the hub
    monkeypatch.setattr(BEHIND[command.words[1]], reached)
    (checkout / "my.yaml").write_bytes((checkout / "params.yaml").read_bytes())
    (checkout / "sweeps").mkdir()
    shutil.copy(ROOT / "sweeps" / "variants-a.yaml", checkout / "sweeps" / "steps.yaml")
    for name in ("student", "old"):
        (checkout / "models" / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", list(command.words))
    with pytest.raises(ReachedError):
        cli.main()


def test_the_installed_command_is_this_one() -> None:
    program = Path(sys.executable).with_name("danceflow")
    done = subprocess.run([program, "stage"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "danceflow stage" in done.stderr


def test_every_foreseen_error_is_a_danceflow_error() -> None:
    from danceflow import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    foreseen = [kind for kind in kinds if issubclass(kind, Exception)]
    assert foreseen
    assert all(issubclass(kind, DanceflowError) for kind in foreseen)
