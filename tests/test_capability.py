"""Who is asked: a params file is refused at once, or every stage and the plan agree and it starts.

Teachers: ``base`` and ``local`` are a capability's own, ``spare`` is nobody's.
"""

import copy
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import shake
from tiny_project import as_a_stage_runs, small_data, write_project

from danceflow.capability import MERGE, Capability, TeacherSpec, asked
from danceflow.config import override, parse_params
from danceflow.data import cache, prepare
from danceflow.errors import ConfigError
from danceflow.evaluate import evaluate
from danceflow.evaluate.records import START, STUDENT, TEACHER, read_evaluation
from danceflow.method import require_training
from danceflow.models.adapters import add_student_adapter, save_adapter
from danceflow.models.family import open_family
from danceflow.models.package import FROZEN_FOLDER, Teachers, write_manifest
from danceflow.paths import Paths
from danceflow.plan.training import training_of
from danceflow.schema import Params
from danceflow.train import distill

OWN = {"t2i": "base", "local_edit": "local"}
NAMES = ("base", "local", "spare")


def data_of(*, adapters: bool = False, **changes: Any) -> dict[str, Any]:
    """The content of a params file with three teachers, no guidance, and some changes."""
    data = small_data(tuple(OWN), capabilities__t2i__guidance=1.0, distill__num_updates=1)
    data["teachers"]["spare"] = copy.deepcopy(data["teachers"]["local"])
    if adapters:
        for name in NAMES[1:]:
            data["teachers"][name] |= {"init": "base", "adapter_rank": 2}
    return override(data, {name.replace("__", "."): value for name, value in changes.items()})


def accepted(data: dict[str, Any]) -> Params:
    """The parameters, as every command takes them before anything runs."""
    params = parse_params(data, "params.yaml")
    require_training(params, "params.yaml")
    return params


def weights(zero: str | None) -> dict[str, float]:
    return {f"capabilities__{name}__weight": float(name != zero) for name in OWN}


INITS = ("base", "local", "spare", "merge", "brought", "scratch", "bse")
MERGES = (
    None,
    {"base": 1.0, "local": 2.0},
    {"base": 1.0, "spare": 1.0},
    {"spare": 2.0},
    {"base": 0.0, "local": 1.0},
    {"base": 0.0},
    {"globe": 1.0},
    {"base": 1.0, "globe": 0.0},
)
METHODS = ("danceopd", "soft", "joint", "merge")
ZEROS = (None, *OWN)


def expected(init: str, merge: dict[str, float] | None, method: str, zero: str | None):
    """The parameter that is refused, or the start and the teachers that are loaded."""
    if init not in {*NAMES, MERGE}:
        return "distill.init"
    for name in merge or {}:
        if name not in NAMES:
            return f"distill.merge_weights.{name}"
    if merge is not None and not any(merge.values()):
        return "distill.merge_weights"
    own = [teacher for name, teacher in OWN.items() if name != zero]
    if MERGE in (method, init):
        start = dict.fromkeys(own, 1.0) if merge is None else merge
    else:
        start = {init: 1.0}
    start = {name: share for name, share in start.items() if share > 0}
    if len(own) == 1 and list(start) == own and method in {"danceopd", "soft"}:
        return "distill.init"  # it starts as all that it is to learn
    return start, {"base", "local", *start}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zero", ZEROS)
def test_every_combination_is_refused_by_name_or_all_agree(zero: str | None, method: str) -> None:
    for init, merge in itertools.product(INITS, MERGES):
        changes = {"distill__init": init, "distill__merge_weights": merge}
        data = data_of(distill__method=method, **changes, **weights(zero))
        right = expected(init, merge, method, zero)
        if isinstance(right, str):
            with pytest.raises(ConfigError) as caught:
                accepted(data)
            text = str(caught.value)
            assert text.startswith("params.yaml: ")
            assert f"{right}: " in text
            continue
        params = accepted(data)
        found = asked(params)
        assert (found.start, set(found.teachers)) == right
        assert [c.name for c in found.capabilities] == [name for name in OWN if name != zero]
        training = training_of(params, is_brought=False)
        assert (training.start, training.teachers) == (tuple(found.start), found.teachers)
        assert [skill.teacher for skill in training.skills] == [
            c.teacher.name for c in found.capabilities
        ]


@pytest.mark.parametrize("name", ["merge", "scratch", "brought"])
def test_no_teacher_is_called_as_a_start(name: str) -> None:
    data = data_of()
    data["teachers"][name] = data["teachers"]["spare"]
    with pytest.raises(ConfigError, match=rf"teachers\.{name}: no teacher can be called '{name}'"):
        parse_params(data, "params.yaml")


def test_a_start_is_all_there_is_to_learn_only_without_guidance() -> None:
    alone = {"distill__init": "base", **weights("local_edit")}
    with pytest.raises(ConfigError, match=r"distill\.init: the student would start as 'base'"):
        accepted(data_of(**alone))
    guided = asked(accepted(data_of(**alone, capabilities__t2i__guidance=2.0)))
    assert guided.differing == {"t2i"}
    # An adapter of a lower rank than its teacher's does not hold all of it.
    edits = {"distill__init": "local", "distill__student": "lora", **weights("t2i")}
    assert asked(accepted(data_of(adapters=True, **edits))).start == {"local": 1.0}
    with pytest.raises(ConfigError, match="there is nothing to learn"):
        accepted(data_of(**edits))


def test_a_capability_is_trained_by_a_share() -> None:
    with pytest.raises(ValueError, match="'t2i': weight 0"):
        Capability("t2i", "a", TeacherSpec("base"), weight=0)


# ---------------------------------------------------------------------------------------------
# Real trainings


@pytest.fixture(scope="module", autouse=True)
def _as_a_stage_runs() -> Iterator[None]:
    with as_a_stage_runs():
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Paths]:
    """Projects that only need their training, by how ``local`` and ``spare`` are kept."""
    paths = Paths(tmp_path_factory.mktemp("whole"))
    params = write_project(paths.root, data_of())
    prepare.run(params, paths)
    for name, teacher in OWN.items():
        cache.run(params, paths, name)
        index = json.loads((paths.cache(name) / "index.json").read_text())
        assert index["teacher"] == teacher
    shared = Paths(tmp_path_factory.mktemp("adapters") / "project")
    shutil.copytree(paths.root, shared.root)
    family = open_family("sd3", shared.teachers / FROZEN_FOLDER)
    for seed, name in enumerate(NAMES[1:]):
        network = family.load_backbone(shared.teacher("base"))
        shake(add_student_adapter(family, network, rank=2, alpha=4, seed=seed))
        shutil.rmtree(shared.teacher(name))
        save_adapter(network, shared.teacher(name))
    write_manifest(shared.teachers, {"family": "sd3", "teachers": list(NAMES), "base": "base"})
    return {"whole": paths, "adapters": shared}


STARTS: list[dict[str, Any]] = [
    {"distill__init": "base"},
    {"distill__init": "spare"},
    {"distill__init": "merge"},
    {"distill__init": "merge", "distill__merge_weights": {"base": 1.0, "spare": 1.0}},
    {"distill__init": "merge", "distill__merge_weights": {"spare": 2.0}},
    {"distill__init": "merge", "distill__merge_weights": {"base": 0.0, "local": 1.0}},
    {"distill__method": "merge", "distill__init": "spare"},
    {"distill__method": "merge", "distill__merge_weights": {"local": 1.0, "spare": 1.0}},
    {"distill__init": "spare", **weights("t2i")},
    {"distill__init": "local", "distill__method": "joint", **weights("t2i")},
]
CASES = [
    *((changes, "whole", "full") for changes in STARTS),
    *((changes, "adapters", "lora") for changes in STARTS),
    (STARTS[3], "whole", "lora"),
    (STARTS[3], "adapters", "full"),
]


@pytest.mark.parametrize(("changes", "kept", "student"), CASES, ids=str)
def test_what_is_accepted_starts_and_is_scored(
    made: dict[str, Paths], monkeypatch: pytest.MonkeyPatch, changes, kept: str, student: str
) -> None:
    loaded: list[tuple[str, ...]] = []

    class Recorded(Teachers):
        def __init__(self, folder: Path, family: str, names, memory) -> None:
            loaded.append(tuple(names))
            super().__init__(folder, family, names, memory)

    monkeypatch.setattr(distill, "Teachers", Recorded)
    monkeypatch.setattr(evaluate, "Teachers", Recorded)
    paths = made[kept]
    data = data_of(adapters=kept == "adapters", distill__student=student, **changes)
    params = accepted(data)
    distill.run(params, paths)
    evaluate.run(params, paths, "t2i")
    planned = training_of(params, is_brought=False).teachers
    assert loaded == [planned, planned]
    fields = read_evaluation(paths.evaluation("t2i"), "t2i").fields
    assert set(fields) == {STUDENT, START, f"{TEACHER}base", f"{TEACHER}local"}
    if params.distill.method == "merge":  # nothing is trained: the student is its start
        assert fields[STUDENT].score == pytest.approx(fields[START].score, abs=0.02)
