"""Params files: strict, complete, and every problem told at once with its place."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from danceflow import config
from danceflow.errors import ConfigError
from danceflow.fields import COUPLINGS, LOGIT_NORMAL, OBJECTIVES, QUERIES
from danceflow.fields.objective import REDUCTIONS
from danceflow.method import DYNAMICS, METHODS, ROUTINGS
from danceflow.schema import DistillParams
from danceflow.train.router import PER_UPDATE

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return config.read_yaml(ROOT / "params.yaml")


def _error(data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config.parse_params(data, "params.yaml")
    assert caught.value.exit_code == 2
    return str(caught.value)


def _changed(data: dict[str, Any], *assignments: str) -> dict[str, Any]:
    return config.override(data, config.read_assignments(assignments))


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda p: p.name
)
def test_every_params_file_of_the_repository_loads(path: Path) -> None:
    params = config.load_params(path)
    assert list(params.capabilities) == list(params.gate.min_retention)


def test_names_are_those_of_the_tables_they_repeat() -> None:
    assert set(config.METHOD_NAMES) == set(METHODS)
    assert set(config.QUERY_NAMES) == {*QUERIES, LOGIT_NORMAL}
    assert set(config.OBJECTIVE_NAMES) == set(OBJECTIVES)
    assert set(config.REDUCTION_NAMES) == set(REDUCTIONS)
    assert set(config.DYNAMICS_NAMES) == set(DYNAMICS)
    assert set(config.ROUTING_NAMES) == set(ROUTINGS)
    assert set(config.COUPLING_NAMES) == set(COUPLINGS)
    per_update = DistillParams.model_fields["capabilities_per_update"].annotation
    assert set(per_update.__args__) == set(PER_UPDATE)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("distill.method=danceop", "distill.method: unknown method 'danceop': did you mean 'danc"),
        ("distill.query=lo", "distill.query: unknown query 'lo': did you mean 'low'?"),
        ("distill.objective=msq", "distill.objective: unknown objective 'msq': did you mean 'mse'"),
        ("family.name=sd4", "family.name: unknown family 'sd4': did you mean 'sd3'?"),
        ("data.source=scens", "data.source: unknown data source 'scens': did you mean 'scenes'?"),
        (
            "capabilities.t2i.teacher=bse",
            "capabilities.t2i.teacher: unknown teacher 'bse': did you mean 'base'?",
        ),
        (
            "capabilities.t2i.bucket=t2",
            "capabilities.t2i.bucket: unknown bucket 't2': did you mean 't2i'?",
        ),
        ("teachers.local.bucket=nowhere", "teachers.local.bucket: unknown bucket 'nowhere'"),
        ("teachers.local.init=bas", "teachers.local.init: unknown teacher 'bas': did you mean"),
        ("teachers.base.init=base", "teachers.base.init: starts from itself: base < base"),
        ("teachers.base.adapter_rank=4", "teachers.base.init: an adapter stands on a teacher with"),
        ("teachers.local.adapter_rank=0", "teachers.local.adapter_rank: should be greater"),
        ("distill.coupling=antithetik", "distill.coupling: unknown coupling 'antithetik': did you"),
        ("distill.warm_start=-1", "distill.warm_start: should be greater than or equal to 0"),
        ("distill.updates_per_rollout=0", "distill.updates_per_rollout: should be greater"),
        ("distill.loss_normalisation=1.0", "distill.loss_normalisation: should be less than 1"),
        ("distill.init=merg", "distill.init: unknown start 'merg': did you mean 'merge'?"),
        (
            "distill.merge_weights={bass: 1}",
            "distill.merge_weights.bass: unknown teacher 'bass': did you mean 'base'?",
        ),
        ("distill.merge_weights={base: 0}", "distill.merge_weights: at least one weight"),
        (
            "distill.num_queries=17",
            "distill.num_queries: 17 queries do not fit into num_steps = 8",
        ),
        ("distill.num_queries=0", "distill.num_queries: should be a number from 1, 'all' or null"),
        ("distill.num_queries=true", "distill.num_queries: should be a number from 1"),
        ("distill.student=adapter", "distill.student: unknown value 'adapter'"),
        ("run.seed=1.5", "run.seed: should be a valid integer, found 1.5"),
        ("run.seed='1'", 'run.seed: should be a valid integer, found "1"'),
        ("run.seed=-1", "run.seed: should be greater than or equal to 0, found -1"),
        ("run.device=gpu", "run.device: should match pattern"),
        ("run.dtype=float", "run.dtype: unknown value 'float': did you mean 'float32'?"),
        ("distill.learning_rate=.inf", 'distill.learning_rate: should be a valid number, found ".'),
        ("distill.ema_decay=1.0", "distill.ema_decay: should be less than 1, found 1.0"),
        ("gate.min_retention={t2i: 1}", "gate.min_retention.local_edit: is missing"),
        (
            "gate.min_retention={t2i: 1, local_edit: 1, global_edt: 1}",
            "gate.min_retention.global_edt: unknown capability 'global_edt'",
        ),
        ("family.transformer.patch_size=5", "patch_size: 5 does not divide sample_size = 32"),
        ("evaluate.seeds=[]", "evaluate.seeds: should have at least 1 item"),
        ("capabilities={}", "capabilities: needs at least one entry"),
        ("run=[1]", "run: should be a mapping, found a list"),
        ("run=null", "run: should be a mapping, found nothing"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(
    data: dict[str, Any], assignment: str, message: str
) -> None:
    text = _error(_changed(data, assignment))
    assert text.startswith("params.yaml: ")
    assert message in text


def _rename(section: str, old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place = data
        for part in filter(None, section.split(".")):
            place = place[part]
        place[new] = place.pop(old)

    return change


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("", "gate", "gat"),
        ("distill", "num_steps", "num_step"),
        ("family.transformer", "num_layers", "num_layer"),
        ("teachers.base", "init", "initt"),
        ("data.buckets.t2i", "num_train", "num_trains"),
    ],
)
def test_a_mistyped_key_is_one_problem_that_names_the_nearest(
    data: dict[str, Any], section: str, old: str, new: str
) -> None:
    changed = copy.deepcopy(data)
    _rename(section, old, new)(changed)
    text = _error(changed)
    dotted = ".".join(filter(None, [section, new]))
    assert text.startswith(
        f"params.yaml: {dotted}: unknown parameter {new!r}: did you mean {old!r}"
    )
    assert "\n" not in text


def test_a_missing_key_and_a_missing_section_are_told(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    del changed["run"]
    del changed["cache"]["num_steps"]
    text = _error(changed)
    assert "run: this section is missing" in text
    assert "cache.num_steps: is missing" in text


def test_all_problems_are_told_together(data: dict[str, Any]) -> None:
    text = _error(
        _changed(data, "run.seed=x", "distill.num_queries=99", "capabilities.t2i.teacher=no")
    )
    assert text.startswith("params.yaml: 3 problems\n")
    assert all(place in text for place in ("run.seed", "distill.num_queries", "t2i.teacher"))


def test_teachers_that_start_from_each_other_are_refused(data: dict[str, Any]) -> None:
    text = _error(_changed(data, "teachers.local.init=global", "teachers.global.init=local"))
    assert "teachers.local.init: starts from itself: local < global < local" in text


def test_adapters_stand_on_one_teacher_of_its_own_weights(data: dict[str, Any]) -> None:
    one = _changed(data, "teachers.local.adapter_rank=4", "teachers.global.adapter_rank=4")
    assert config.parse_params(one, "params.yaml").teachers["local"].adapter_rank == 4
    stacked = _error(_changed(one, "teachers.global.init=local"))
    assert "teachers.global.init: an adapter stands on a teacher with weights of its own" in stacked
    one["teachers"]["other"] = one["teachers"]["base"]
    text = _error(_changed(one, "teachers.global.init=other"))
    assert "teachers.global.init: all adapters stand on one teacher, here 'other'" in text


def test_scenes_know_their_buckets(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["data"]["buckets"]["t3i"] = changed["data"]["buckets"]["t2i"]
    assert "data.buckets.t3i: unknown bucket of the scenes 't3i': did you mean 't2i'" in _error(
        changed
    )


def test_a_name_that_would_be_a_bad_path_is_refused(data: dict[str, Any]) -> None:
    changed = copy.deepcopy(data)
    changed["capabilities"]["../x"] = changed["capabilities"]["t2i"]
    assert "capabilities.../x: should match pattern" in _error(changed)


@pytest.mark.parametrize("value", [None, 3, ["run"]])
def test_a_file_without_sections_is_refused(value: Any) -> None:
    assert "should hold sections" in _error(value)


def test_parameters_cannot_be_changed_later(data: dict[str, Any]) -> None:
    params = config.parse_params(data, "params.yaml")
    with pytest.raises(ValidationError):
        params.run.seed = 1  # type: ignore[misc]


def test_numbers_and_words_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-3\nb: no\nc: 010\nd: 2024-01-01\ne: .5\nf: ~\ng:\nh: true\ni: -2\n")
    assert config.read_yaml(path) == {
        "a": 0.001,
        "b": "no",
        "c": 10,
        "d": "2024-01-01",
        "e": 0.5,
        "f": None,
        "g": None,
        "h": True,
        "i": -2,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' stands here twice"),
        ("1: a\n", "key 1 should be a word"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config.read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load_params(tmp_path / "params.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load_params(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load_params(tmp_path / "binary")


def test_dumped_data_reads_back(data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(config.dump_yaml(data))
    assert config.read_yaml(path) == data


def test_assignments_are_typed() -> None:
    values = config.read_assignments(["a.b=1e-4", "c=null", "d=[1, x]", "e=a=b"])
    assert values == {"a.b": 1e-4, "c": None, "d": [1, "x"], "e": "a=b"}


@pytest.mark.parametrize("texts", [["a"], ["=1"], ["a=[1"], ["a=1", "a=2"]])
def test_unreadable_assignments_are_refused(texts: list[str]) -> None:
    with pytest.raises(ConfigError):
        config.read_assignments(texts)


def test_override_leaves_the_data_alone(data: dict[str, Any]) -> None:
    before = copy.deepcopy(data)
    changed = _changed(data, "distill.num_steps=8")
    assert changed["distill"]["num_steps"] == 8
    assert data == before


@pytest.mark.parametrize(
    ("assignment", "place"),
    [
        ("distil.num_steps=1", "distil: unknown parameter 'distil': did you mean 'distill'"),
        ("distill.num_step=1", "distill.num_step: unknown parameter"),
        ("run.seed.low=1", "run.seed.low: unknown parameter 'low'"),
    ],
)
def test_override_of_an_unknown_name_is_refused(
    data: dict[str, Any], assignment: str, place: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        _changed(data, assignment)
    assert place in str(caught.value)


def test_select_gives_sections_and_values(data: dict[str, Any]) -> None:
    params = config.parse_params(data, "params.yaml")
    selected = params.select(("cache", "capabilities.t2i.teacher"))
    assert selected == {"cache": data["cache"], "capabilities.t2i.teacher": "base"}
    with pytest.raises(KeyError):
        params.select(("cache.no",))
