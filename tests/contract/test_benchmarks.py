"""What the benchmarks decide before and after they measure."""

import importlib
import json
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from repository import ROOT

from danceflow.models.memory import compile_blocks
from danceflow.params.read import load_params
from danceflow.plan.architecture import published_architecture
from danceflow.plan.devices import device_of


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def names(groups: list[list]) -> list[list[str]]:
    return [[row.name for row in group] for group in groups]


def test_every_model_has_every_variant_at_every_size_and_compiled_ones_come_last(
    gpu: ModuleType,
) -> None:
    groups = gpu.rows_of((512, 1024))
    rows = [row for group in groups for row in group]
    kinds = {(row.model, row.variant, row.size) for row in rows if row.model != gpu.EMBEDDED}
    assert kinds == {
        (model, variant, size)
        for model in ("sd3.5-medium", "flux2-klein-4b")
        for variant in ("bf16", "nf4", "int8", "compiled")
        for size in (512, 1024)
    }
    assert len(rows) == len(kinds) + 1
    assert [group[0].variant for group in groups][-3:] == [gpu.EMBEDDED, "compiled", "compiled"]
    for group in groups:
        assert len({(row.model, row.variant) for row in group}) == 1


def test_rows_that_are_named_and_not_done_are_left(gpu: ModuleType) -> None:
    groups = gpu.rows_of((512, 1024), ["klein", "embedded"])
    done = {"name": "flux2-klein-4b 512 bf16", "status": "done"}
    failed = {"name": "flux2-klein-4b 1024 bf16", "status": "failed"}
    left = names(gpu.left(groups, {"rows": [done, failed]}))
    assert left[0] == ["flux2-klein-4b 1024 bf16"]
    assert ["embedded default"] in left
    assert not any("sd3.5" in name for group in left for name in group)


def test_no_process_begins_that_cannot_end(gpu: ModuleType) -> None:
    for group in gpu.rows_of((512,)):
        least, most = gpu.LEAST_SECONDS[group[0].variant], gpu.MOST_SECONDS[group[0].variant]
        assert gpu.seconds_for(group, least - 1) is None
        assert gpu.seconds_for(group, least) == least
        assert gpu.seconds_for(group, 1e6) == most


@pytest.mark.parametrize(("measured", "within"), [(1.25, True), (1.26, False), (0.74, False)])
def test_a_figure_is_told_beside_the_plans(gpu: ModuleType, measured: float, within: bool) -> None:
    assert gpu.compared(measured, 1.0)["within"] is within


@pytest.mark.parametrize("small", [False, True])
def test_a_row_is_trained_as_its_recipe_says(gpu: ModuleType, small: bool) -> None:
    for group in gpu.rows_of((512,)):
        for row in group:
            if row.model == gpu.EMBEDDED:
                continue
            params = gpu.recipe(row, "cuda", small=small)
            network = gpu.architecture(row, params, small=small)
            assert (params.data.image_size, params.run.dtype) == (512, "bfloat16")
            assert params.run.base == (row.variant if row.variant in ("nf4", "int8") else "float")
            assert params.run.compile is (row.variant == "compiled")
            usual = load_params(ROOT / "recipes" / f"{gpu.MODELS[row.model]}.yaml").distill
            published = published_architecture(row.model, edits=network.edits)
            assert (params.distill == usual) is not small
            assert (network == published) is not small


def test_a_process_that_says_nothing_of_a_row_failed(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "half.py"
    script.write_text(
        "import sys, json\n"
        "open(sys.argv[3], 'w').write(json.dumps({'name': 'a 1 bf16', 'status': 'done'}))\n"
        "sys.exit(3)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    rows = [gpu.Row("a", "bf16", 1), gpu.Row("a", "bf16", 2)]
    first, second = gpu.run_process(rows, tmp_path, 60, small=True)
    assert first["status"] == "done"
    assert (second["status"], second["error"]) == ("failed", "the process ended with code 3")


def test_a_process_is_stopped_at_its_limit(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "__file__", str(script))
    [told] = gpu.run_process([gpu.Row("a", "bf16", 1)], tmp_path, 0.2, small=True)
    assert told["status"] == "failed"
    assert "its time limit" in told["error"]


def test_a_wheel_keeps_the_library_of_one_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    trim = importlib.import_module("gpu_wheels").trim
    libraries = [f"bitsandbytes/libbitsandbytes_{n}.so" for n in ("cpu", "cuda128", "cuda130")]
    wheel, record = tmp_path / "bitsandbytes-1-py3-none-any.whl", "bitsandbytes-1.dist-info/RECORD"
    with zipfile.ZipFile(wheel, "w") as file:
        for name in libraries:
            file.writestr(name, name)
        file.writestr(record, "".join(f"{name},,\n" for name in [*libraries, record]))
    with pytest.raises(SystemExit, match="no library of CUDA 99"):
        trim(wheel, "99")
    trim(wheel, "130")
    with zipfile.ZipFile(wheel) as file:
        assert set(file.namelist()) == {libraries[0], libraries[2], record}
        assert file.read(record).decode().count("\n") == 3


def test_blocks_are_compiled_by_a_torch_that_knows_no_limit(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch 2.11 on the GPU's machine: its limit is one of the process."""
    compiled = torch.compile

    def of_torch_2_11(model=None, *, backend="inductor", fullgraph=False, dynamic=None):
        return compiled(model, backend=backend, fullgraph=fullgraph, dynamic=dynamic)

    network = torch.nn.Module()
    network.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    given = torch.ones(1, 2)
    expected = network.blocks[0](given)
    monkeypatch.setattr(torch, "compile", of_torch_2_11)
    with torch._dynamo.config.patch(recompile_limit=1):
        with pytest.raises(TypeError, match="recompile_limit"):
            compile_blocks(network, backend="eager")
        gpu.accept_limits()
        compile_blocks(network, backend="eager")
        assert torch.equal(network.blocks[0](given), expected)
        assert torch._dynamo.config.recompile_limit > 1


def test_the_plans_time_is_what_a_gpu_took(gpu: ModuleType) -> None:
    """Within 25 % of every row, those included that the constants were not fitted on."""
    model = importlib.import_module("time_model")
    record = json.loads((ROOT / "docs" / "results" / "gpu.json").read_text())
    told = json.loads((ROOT / "docs" / "results" / "time-model.json").read_text())
    found = model.compared(record)
    assert found["fitted"] == pytest.approx(told["fitted"])
    assert len(told["rows"]) == 6
    for row, again in zip(told["rows"], found["rows"], strict=True):
        assert again == pytest.approx(row)
        assert row["planned_of_measured"] == pytest.approx(1, abs=gpu.NEAR)
        assert row["of_others_of_measured"] == pytest.approx(1, abs=gpu.NEAR)
    device = device_of("h200")
    used = {
        "utilisation": device.utilisation,
        "call_us": 1e6 * device.call_seconds,
        "quantised_call_us": 1e6 * device.quantised_call_seconds,
    }
    assert {name: float(f"{value:.2g}") for name, value in told["fitted"].items()} == used


SMALL_STOCK = {
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 4,
    "sample_size": 4,
    "dual_attention_layers": (0,),
}


def test_a_stock_pipeline_is_compared_with_common_practice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same student, samples and places of the rollout; the smallest sizes of all."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    practice = importlib.import_module("practice")
    changes = {
        **practice.STOCK,
        "run.num_threads": 1,
        "distill.lora_rank": 4,
        "distill.num_steps": 4,
        "distill.batch_size": 2,
    }
    found = practice.stock(
        tmp_path,
        1,
        size=32,
        fewer=2,
        changes=changes,
        transformer={**practice.TRANSFORMER, **SMALL_STOCK},
    )
    assert found["tokens"] == 2 * 2 + 77 + 256
    assert found["parameters"]["all"] == sum(
        count for part, count in found["parameters"].items() if part != "all"
    )
    spent = found["evaluations_per_update"]
    # Two samples: four steps each, two guided teacher passes, and forward and backward as three.
    assert spent["common practice"] == spent["with cached encodings"] == [2 * (4 + 2 + 3)]
    # Only a whole rollout costs more evaluations than ours: all ask at the same places.
    assert spent["and a rollout to the asked state"] == spent["danceflow in 4 steps"]
    assert spent["danceflow in 2 steps"][0] <= 2 * (1 + 2 + 3)
    for own in ("danceflow in 4 steps", "danceflow in 2 steps"):
        for other, ratio in found["times_as_fast_as"][own].items():
            rates = found["images_per_second"]
            assert ratio == pytest.approx(rates[own] / rates[other])
            assert found["by_evaluations_alone"][own][other] == spent[other][0] / spent[own][0]
