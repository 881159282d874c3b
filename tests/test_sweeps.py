"""Sweep files: strict, and which cells they stand for."""

from pathlib import Path

import pytest

from danceflow.config import dump_yaml, override, parse_params, read_yaml
from danceflow.errors import ConfigError
from danceflow.sweeps import Cell, SweepParams, cells_of, read_sweep

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "sweeps").glob("*.yaml"))


def sweep(**content) -> SweepParams:
    return SweepParams.model_validate_json(_json({"name": "s", "seeds": [0, 1], **content}))


def _json(content) -> str:
    import json

    return json.dumps(content)


def labels(**content) -> list[tuple[str, int]]:
    return [(cell.variant, cell.seed) for cell in cells_of(sweep(**content), "file")]


def test_variants_times_axes_times_seeds() -> None:
    cells = cells_of(
        sweep(
            set={"distill.num_updates": 9, "distill.num_steps": 16},
            variants={"a": {"distill.query": "low"}, "b": {"distill.query": "high", "seeds": [3]}},
            axes={
                "distill.num_steps": [4, None],
                "alpha": {"2": {"capabilities.t2i.guidance": 2.0}},
            },
        ),
        "file",
    )
    assert [(cell.variant, cell.seed) for cell in cells] == [
        ("a, num_steps=4, alpha=2", 0),
        ("a, num_steps=4, alpha=2", 1),
        ("a, num_steps=null, alpha=2", 0),
        ("a, num_steps=null, alpha=2", 1),
        ("b, num_steps=4, alpha=2", 3),
        ("b, num_steps=null, alpha=2", 3),
    ]
    assert cells[0] == Cell(
        "a, num_steps=4, alpha=2",
        0,
        {
            "distill.num_updates": 9,
            "distill.num_steps": 4,
            "distill.query": "low",
            "capabilities.t2i.guidance": 2.0,
            "distill.seed": 0,
        },
    )
    assert cells[0].slug == "a-num_steps-4-alpha-2-s0"


def test_axes_alone_and_nothing_but_seeds() -> None:
    assert labels(axes={"a.x": [1], "b.x": [2]}) == [("a.x=1, b.x=2", 0), ("a.x=1, b.x=2", 1)]
    assert labels() == [("default", 0), ("default", 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": {"a": {"x.y": 1}}, "axes": {"x.y": [2]}}, "file: a, y=2: x.y is set twice"),
        ({"set": {"distill.seed": 3}}, "distill.seed is what `seeds` sets"),
        ({"variants": {"a": {"seeds": 3}}}, "variants.a.seeds: should be a list of numbers"),
        ({"variants": {"a": {"seeds": [True]}}}, "variants.a.seeds: should be a list of numbers"),
        ({"variants": {"a": {"seeds": []}}}, "variants.a.seeds: should be a list of numbers"),
        ({"variants": {"a/b": {}, "a b": {}}}, "two cells are called 'a-b-s0'"),
    ],
)
def test_cells_that_cannot_be_told_apart_or_made(content, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells_of(sweep(**content), "file")


def test_every_problem_of_a_file_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        dump_yaml({"name": "A b", "seed": [1], "paralel": 2, "axes": {"x": 3}, "targets": []})
    )
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: 5 problems")
    assert "seed: unknown parameter 'seed': did you mean 'seeds'?" in text
    assert "paralel: unknown parameter 'paralel': did you mean 'parallel'?" in text
    assert "name: should match pattern" in text
    assert "axes.x: should be a list of values, or words that each hold overrides, found 3" in text
    assert "targets: should have at least 1 item" in text
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="should hold entries, found a list"):
        read_sweep(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_sweeps_that_come_along_can_be_run(file: Path) -> None:
    from danceflow.method import require_training

    found = read_sweep(file)
    assert found.name == file.stem
    text = file.read_text()
    assert f"danceflow sweep sweeps/{file.name}" in text
    assert "# Expected: about" in text
    base = read_yaml(ROOT / "params.yaml" if found.recipe is None else ROOT / found.recipe)
    cells = cells_of(found, file.name)
    assert {cell.seed for cell in cells} >= {0, 1, 2}
    for cell in cells:
        params = parse_params(override(base, cell.overrides), f"{file.name}: {cell.variant}")
        require_training(params, file.name)
        assert params.distill.seed == cell.seed
        assert set(params.capabilities) == set(base["capabilities"])
