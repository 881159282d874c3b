"""The recipes: whole, resolved to what the code knows, and headed by commands that exist."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
from dvc.utils.serialize import load_yaml, modify_yaml
from repository import ROOT

from danceflow import cli
from danceflow.capability import asked
from danceflow.fields import OBJECTIVES
from danceflow.method import method_of, require_training
from danceflow.models.family import FAMILIES
from danceflow.params.names import BROUGHT
from danceflow.params.read import load_params, override, parse_params
from danceflow.params.sections import InputParams, Params
from danceflow.params.sweep import read_sweep
from danceflow.params.yaml12 import read_yaml
from danceflow.plan.devices import device_of

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SMOKE = sorted((ROOT / "recipes" / "smoke").glob("*.yaml"))
PLANNED = (
    "sd35_lora",
    "sd35_edit",
    "zimage_edit",
    "flux2_klein",
    "qwen_image_edit",
    "qwen_image_edit_plus",
    "qwen_image_21",
    "four_steps",
    "paper_t2i_edit",
    "paper_local_global",
    "realism",
    "ten_capabilities",
    "cfg_absorption",
)
"""Recipes whose header says what they are for, what they need and what the plan expects."""
TABLE = ROOT / "docs" / "howto" / "recipes.md"
# Sections whose keys are names that a recipe chooses; what stands below a name is fixed.
NAMED = ("capabilities", "teachers", "data.buckets")
CHOSEN = (
    "data.input",
    "distill.noised",
    "distill.substeps",
    "evaluate.judge",
    "evaluate.num_steps",
    "gate.min_retention",
)
# All that a smoke recipe may change: where it computes, how much, and where it is recorded.
SIZES = re.compile(
    r"run\.(device|dtype|num_threads)|data\.image_size|data\.input\.(min_side|num_shards)"
    r"|data\.buckets\.\w+\.num_\w+|cache\.\w+|tracking\.(experiment|registered_model)"
    r"|distill\.(num_steps|lora_rank|num_updates|batch_size|warmup|\w+_every|evaluate_\w+)"
    r"|evaluate\.num_\w+"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def header_of(path: Path) -> list[str]:
    """The lines of the comment at the top, without their marks."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return lines


def commands_of(path: Path) -> list[list[str]]:
    """The commands of a header: indented lines (a backslash joins two), and what is quoted."""
    lines = header_of(path)
    text = "\n".join(line for line in lines if line.startswith("  "))
    joined = re.sub(r"\\\n\s*", "", text).splitlines()
    quoted = re.findall(r"`(danceflow [^`]+ [^`]+)`", "\n".join(lines))
    return [shlex.split(line, comments=True) for line in [*joined, *quoted]]


def keys_of(data: Any, path: str = "") -> list[str]:
    """Dotted keys in their order; a name that a recipe chooses is a star."""
    if not isinstance(data, dict) or path in CHOSEN or path.endswith(".category_weights"):
        return [path]
    found = []
    for key, value in data.items():
        part = "*" if path in NAMED else key
        found += keys_of(value, f"{path}.{part}" if path else part)
    return list(dict.fromkeys(found))


def leaves_of(data: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(data, dict) or not data:
        return {path: data}
    return {
        name: leaf
        for key, value in data.items()
        for name, leaf in leaves_of(value, f"{path}.{key}" if path else key).items()
    }


@pytest.fixture(params=RECIPES, ids=name_of)
def recipe(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_a_recipe_resolves(recipe: Path) -> None:
    params = load_params(recipe)
    assert method_of(params.distill).name == params.distill.method
    assert params.family.name in FAMILIES
    assert list(params.capabilities) == list(params.gate.min_retention)
    assert {c.bucket for c in params.capabilities.values()} <= set(params.data.buckets)
    assert set(asked(params).teachers) <= set(params.teachers)
    require_training(params, recipe.name)
    assert params.tracking.registered_model.startswith("danceflow")


def test_the_student_s_number_of_steps_stands_once(recipe: Path) -> None:
    """``num_steps`` of the training is the rollout's, whose grid decides the weights."""
    found = [key for key in keys_of(read_yaml(recipe)) if key.endswith("steps")]
    assert found == [
        "cache.num_steps",
        "distill.num_steps",
        "distill.substeps",
        "evaluate.num_steps",
        "evaluate.num_teacher_steps",
        "evaluate.further_steps",
    ]


def test_a_recipe_is_complete_and_in_the_order_of_params_yaml(recipe: Path) -> None:
    data, expected = read_yaml(recipe), read_yaml(ROOT / "params.yaml")
    assert keys_of(data) == keys_of(expected)
    if data["data"]["input"] is not None:
        assert list(data["data"]["input"]) == list(InputParams.model_fields)


def test_a_header_names_the_recipe_and_commands_that_exist(recipe: Path) -> None:
    header, name = header_of(recipe), name_of(recipe)
    assert len(header[0]) > 20
    assert any(name in part for command in commands_of(recipe) for part in command)
    group = typer.main.get_command(cli.app)
    for program, *arguments in commands_of(recipe):
        if program == "danceflow":
            command = group.get_command(None, arguments[0])
            assert command is not None, arguments
            command.make_context(arguments[0], arguments[1:])  # raises for what it does not know
        elif program in {"cp", "git"}:
            for part in arguments:
                assert not part.startswith("recipes/") or (ROOT / part).is_file()
        else:
            assert program in {"dvc", "hf"}
    for path in re.findall(r"\b(?:recipes|sweeps|docs|tests)/[\w./-]+\w", "\n".join(header)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if read_yaml(p)["run"]["device"] == "cuda"], ids=name_of
)
def test_a_recipe_for_a_gpu_says_what_it_needs(path: Path) -> None:
    text = "\n".join(header_of(path))
    for part in ("Purpose: ", "Data: ", "Hardware: ", f"`danceflow plan {name_of(path)}`"):
        assert part in text
    params = load_params(path)
    assert params.run.dtype == "bfloat16"
    assert params.distill.student == "lora"
    assert params.distill.activation_checkpointing
    brought = [name for name, teacher in params.teachers.items() if teacher.init == BROUGHT]
    assert brought == ["base"]
    [bring] = [c for c in commands_of(path) if c[:2] == ["danceflow", "bring-teachers"]]
    assert bring[bring.index("--family") + 1] == params.family.name
    given = [bring[i + 1].partition("=")[0] for i, part in enumerate(bring) if part == "--teacher"]
    assert ["base", *given] == list(params.teachers)
    assert ("--edits" in bring) == any(c.needs_source for c in params.capabilities.values())


def test_every_recipe_can_be_planned(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = load_params(recipe)
    command = typer.main.get_command(cli.app).get_command(None, "plan")
    with command.make_context("plan", [str(recipe)]) as context:
        command.invoke(context)
    out = capsys.readouterr().out
    size = params.data.image_size
    assert f"({params.family.name}), {size} x {size} pixels" in out
    if (budget := params.distill.max_field_evaluations) is None:
        told = f"{params.distill.num_updates:,} updates of {params.distill.batch_size} samples"
    else:
        told = f"updates of {params.distill.batch_size} samples, at most {budget:,} evaluations"
    assert told in out


def rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 1 else f"{value:.1g}"


@pytest.mark.parametrize("name", PLANNED)
def test_a_header_expects_what_the_plan_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    lines = [line.partition(": ")[0] for line in header_of(path)]
    place = f"Expected, `danceflow plan {name_of(path)}`"
    for part in ("Purpose", "Data", "Hardware"):
        assert lines.count(part) == 1, part
    assert sum(line.startswith(place) for line in lines) == 1
    command = typer.main.get_command(cli.app).get_command(None, "plan")
    header = " ".join(header_of(path))
    [gpu] = re.findall(r"hours of updates on ([\w-]+) ", header)
    with command.make_context("plan", [str(path), "--gpu", gpu, "--json"]) as context:
        command.invoke(context)
    plan = json.loads(capsys.readouterr().out)
    sizes = (plan[f"{name}_bytes"] / 1e9 for name in ("peak_device", "peak_main", "disk"))
    device, main, disk = sizes
    memory = device_of(gpu).memory_gb
    assert device <= memory if memory is not None else load_params(path).run.device == "cpu"
    expected = (
        f"{rounded(device)} GB on the device, {rounded(main)} GB of main memory, "
        f"{rounded(disk)} GB of caches on disk, "
        f"{plan['time']['hours']:.1f} hours of updates on {gpu}"
    )
    assert expected in header


@pytest.mark.parametrize("path", SMOKE, ids=name_of)
def test_a_smoke_recipe_differs_from_its_recipe_in_sizes_alone(path: Path) -> None:
    small, full = leaves_of(read_yaml(path)), leaves_of(read_yaml(path.parents[1] / path.name))
    assert small.keys() == full.keys()
    changed = {name for name in small if small[name] != full[name]}
    assert {name for name in changed if not SIZES.fullmatch(name)} == set()
    assert small["run.device"] == "cpu"
    assert small["distill.num_updates"] == 2


def test_scene_recipes_fit_the_committed_teachers() -> None:
    expected = read_yaml(ROOT / "params.yaml")
    for path in RECIPES:
        data = read_yaml(path)
        if data["data"]["world"] == "scenes":
            assert data["family"] == expected["family"], path
            assert "base" in data["teachers"], path
            for name, teacher in data["teachers"].items():
                for key in ("init", "adapter_rank"):
                    told = expected["teachers"].get(name, teacher)
                    assert teacher[key] == told[key], path


@pytest.mark.parametrize("name", ["paper_t2i_edit", "paper_local_global"])
def test_the_papers_settings(name: str) -> None:
    params = load_params(ROOT / "recipes" / f"{name}.yaml")
    distill, method = params.distill, method_of(params.distill)
    assert (method.name, method.query, method.num_queries) == ("danceopd", "low", 1)
    assert (method.routing, method.objective) == ("hard", OBJECTIVES["mse"])
    assert (distill.num_steps, distill.num_updates, distill.batch_size) == (16, 3000, 4)
    assert (distill.student, distill.lora_rank) == ("lora", 128)
    assert (distill.optimizer, distill.learning_rate) == ("adamw", 2e-4)
    assert (distill.weight_decay, distill.clip_norm) == (0, 1)
    assert (distill.warmup, distill.schedule, distill.ema_decay) == (0, "constant", 0)
    assert distill.capabilities_per_update == "one"
    assert (params.run.dtype, params.data.image_size) == ("bfloat16", 1024)
    assert {c.guidance for c in params.capabilities.values()} == {1}
    assert len({c.weight for c in params.capabilities.values()}) == 1


def test_guidance_is_absorbed_with_a_scale_per_teacher() -> None:
    path = ROOT / "recipes" / "cfg_absorption.yaml"
    params = load_params(path)
    alphas = [c.guidance for c in params.capabilities.values()]
    assert len(set(alphas)) == len(alphas)
    assert min(alphas) > 1 == params.evaluate.guidance
    same = override(
        read_yaml(path),
        {
            **{
                f"capabilities.{n}.guidance": c.guidance for n, c in _default().capabilities.items()
            },
            "tracking.registered_model": _default().tracking.registered_model,
        },
    )
    assert parse_params(same, "test") == _default()
    assert "evaluate.guidance" in str(read_sweep(ROOT / "sweeps" / "guidance.yaml").axes)


def _default() -> Params:
    return load_params(ROOT / "params.yaml")


def test_the_table_names_every_recipe_with_its_family() -> None:
    rows = re.findall(
        r"^\| \[(\S+)\]\(\.\./\.\./(\S+)\) \|.*\| `(\w+)` \|$", TABLE.read_text(), re.M
    )
    found = {path: family for _, path, family in rows}
    assert found == {name_of(p): load_params(p).family.name for p in RECIPES}
    assert all(path == f"recipes/{name}" for name, path, _ in rows)


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_can_be_changed_by_dvc(path: Path, tmp_path: Path) -> None:
    """DVC writes the file anew for ``dvc exp run -S``, without quotes."""
    copy = tmp_path / "params.yaml"
    copy.write_text(path.read_text())
    with modify_yaml(copy) as document:
        document["run"]["seed"] = 7
    assert load_yaml(copy) == override(read_yaml(path), {"run.seed": 7})
