"""What the command prints, and that docs/scale.md says the same."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from commands import in_this_process
from repository import ROOT

from danceflow.ops import runtime
from danceflow.plan.architecture import published_architecture
from danceflow.plan.cost import plan_training
from danceflow.plan.devices import CPU, device_of, table
from danceflow.plan.measure import _network_of
from danceflow.plan.show import REFERENCE, as_table, as_text, reference

DOCS = ROOT / "docs" / "scale.md"


@pytest.fixture
def danceflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call the command in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(runtime, "start", lambda verbose: None)
    return in_this_process(monkeypatch, capsys)


def test_a_plan_of_the_embedded_default(danceflow) -> None:
    code, out, _ = danceflow("plan", str(ROOT / "params.yaml"))
    assert code == 0
    for text in ("Parameters", "Memory", "Field evaluations", "Time on two x86-64 cores"):
        assert text in out
    code, out, _ = danceflow("plan", str(ROOT / "params.yaml"), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["time"]["gpu"] == CPU
    assert found["time"]["measured"]
    assert found["device_bytes"] == pytest.approx(
        sum(part["bytes"] for part in found["memory_bytes"] if part["place"] == "device"), abs=20
    )
    evaluated = sum(part["bytes"] for part in found["evaluate_bytes"] if part["place"] == "device")
    most = max(found["device_bytes"], evaluated)
    assert found["peak_device_bytes"] == pytest.approx(most, abs=20)
    moment = max(part["bytes"] for part in found["moment_bytes"])
    assert found["peak_main_bytes"] == pytest.approx(found["main_bytes"] + moment, abs=20)
    on_disk = [part for part in found["memory_bytes"] if part["place"] == "disk"]
    assert [part["part"] for part in on_disk] == ["condition caches"]
    assert found["disk_bytes"] == on_disk[0]["bytes"] > 0
    evaluations = found["field_evaluations"]
    assert evaluations["per_update_total"] == pytest.approx(sum(evaluations["per_update"].values()))


def test_recipe_and_options_change_the_plan(danceflow) -> None:
    def plan(*options: str) -> dict:
        code, out, err = danceflow("plan", str(ROOT / "params.yaml"), "--json", *options)
        assert code == 0, err
        return json.loads(out)

    base = plan()
    dense = plan("-S", "distill.method=diffusionopd")
    assert (
        dense["field_evaluations"]["training_total"] > base["field_evaluations"]["training_total"]
    )
    h100, a100 = plan("--gpu", "h100"), plan("--gpu", "a100")
    assert a100["time"]["hours"] > h100["time"]["hours"]
    assert not h100["time"]["measured"]
    half = plan("--gpu", "h100", "--utilisation", "0.17")["time"]
    took, waited = sum(half["seconds_per_update"].values()), half["call_seconds_per_update"]
    whole = sum(h100["time"]["seconds_per_update"].values())
    assert waited == h100["time"]["call_seconds_per_update"] > 0
    assert took - waited == pytest.approx(2 * (whole - waited))
    assert base["time"]["call_seconds_per_update"] == 0
    photos = plan("--model", "sd3.5-medium", "-S", "data.image_size=512")
    assert photos["model"]["parameters"] > 2e9
    assert photos["time"]["gpu"] == "h100"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes/smoky.yaml"], "unknown recipe 'smoky.yaml': did you mean 'smoke.yaml'"),
        (["params.yaml", "--gpu", "h10"], "unknown GPU 'h10': did you mean 'h100'"),
        (["params.yaml", "--model", "sd3.5-medum"], "did you mean 'sd3.5-medium'"),
        (["params.yaml", "-S", "distill.metod=danceopd"], "did you mean 'method'"),
        (["params.yaml", "-S", "data.image_size=36", "--model", "sd3.5-medium"], "multiples of 16"),
        ([], "takes a recipe and its options, or --model alone"),
        (["params.yaml", "--table"], "takes a recipe and its options"),
        (["--table", "--json"], "takes a recipe and its options"),
        (["--model", "z-image", "-S", "run.seed=1"], "takes a recipe and its options"),
        (["--model", "z-imag"], "did you mean 'z-image'"),
    ],
)
def test_bad_input_is_one_clear_line(danceflow, monkeypatch, arguments, message: str) -> None:
    monkeypatch.chdir(ROOT)
    code, out, err = danceflow("plan", *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert message in err


def test_a_recipe_can_be_planned_outside_of_a_checkout(danceflow, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = danceflow("plan", str(ROOT / "recipes" / "smoke.yaml"))
    assert code == 0, err


def test_the_plans_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['danceflow', 'plan', '--help']\n"
        "from danceflow import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'diffusers', 'numpy', 'yaml') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_does_not_fit_is_said() -> None:
    architecture = published_architecture("qwen-image-edit", edits=True)
    small = plan_training(REFERENCE, architecture, device_of("rtx-4090"))
    assert "does not fit" in as_text(small)
    assert "estimated: 34% of the vendor's peaks and 0.08 ms per call" in as_text(small)
    one = replace(reference(edits=False), size=(256, 256))
    fits = plan_training(
        one, published_architecture("sd3.5-medium", edits=False), device_of("h200")
    )
    assert "leaves" in as_text(fits)


def test_every_device_has_a_source() -> None:
    for name in table():
        device = device_of(name)
        assert device.source
        assert device.speed(2) >= device.speed(4) > 0
        assert (device.call_seconds > 0) is (device.quantised_call_seconds > 0) is (name != CPU)


def test_every_network_is_built_and_counted_once() -> None:
    """Both sizes of the table, and a table for another GPU, ask for the same networks."""
    _network_of.cache_clear()
    as_table()
    as_table("a100")
    found = _network_of.cache_info()
    assert (found.misses, found.hits) == (8, 3 * 8)


@pytest.mark.parametrize("recipe", ["params.yaml", "recipes/qwen_image_edit.yaml"])
def test_a_plan_imports_what_makes_a_network_and_nothing_that_trains_or_scores(recipe: str) -> None:
    """Imports are nearly all that a plan costs; diffusers' own are the bulk of them."""
    needless = (
        "datasets",
        "mlflow",
        "torchmetrics",
        "danceflow.data.cache",
        "danceflow.data.cached_rows",
        "danceflow.data.intake",
        "danceflow.evaluate",
        "danceflow.registry",
        "danceflow.train.distill.stage",
        "danceflow.train.distill.trainer",
        "diffusers.pipelines",
    )
    code = (
        "import json, sys\n"
        f"sys.argv = ['danceflow', 'plan', {recipe!r}]\n"
        "from danceflow import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        f"print(json.dumps([name for name in {needless!r} if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


# ---------------------------------------------------------------------------------------------
# docs/scale.md


def blocks() -> list[tuple[str, str]]:
    """Every command of the page with what stands below it."""
    pattern = r"^`(danceflow plan [^`]*)`:\n\n(?:```\n(.*?)\n```|((?:\|[^\n]*\n+)+))"
    found = re.findall(pattern, DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [(command, (fenced or table).strip()) for command, fenced, table in found]


def test_the_page_shows_what_the_commands_print(danceflow, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = blocks()
    assert len(shown) >= 2
    for command, text in shown:
        code, out, err = danceflow(*shlex.split(command)[1:])
        assert code == 0, err
        assert out.strip() == text, command


def test_the_tables_have_every_model_at_both_sizes() -> None:
    networks, states, trainings = (part.splitlines() for part in as_table().split("\n\n"))
    assert [len(part) for part in (networks, states, trainings)] == [2 + 8, 2 + 2 * 8, 2 + 2 * 8]
    for part in (networks, states, trainings):
        assert {row.count("|") for row in part} == {part[0].count("|")}
    slower = as_table("a100").split("\n\n")[-1].splitlines()
    for fast, slow in zip(trainings[2:], slower[2:], strict=True):
        assert float(fast.split("|")[-2]) < float(slow.split("|")[-2])
