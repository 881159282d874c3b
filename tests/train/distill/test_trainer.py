"""The trainer: exact resume, frozen teachers, every method through one loop, early errors."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_project import small_params
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from training_record import read_metrics

from danceflow.capability import asked
from danceflow.data.cached_rows import CachedRows, ConditionCache
from danceflow.data.shards import MappedTable
from danceflow.errors import TrainingError, WeightsError
from danceflow.fields import Condition, CountingField, VelocityField, shifted_grid
from danceflow.method import METHODS, method_of
from danceflow.models import memory
from danceflow.models.adapters.lora import load_adapter, merge_adapter
from danceflow.models.memory import WaitingField
from danceflow.models.package import load_package, read_manifest
from danceflow.models.start import start_backbone
from danceflow.models.teachers import Teachers
from danceflow.ops.tracking.tracker import NoTracker
from danceflow.paths import Paths
from danceflow.train.distill import stage as distill
from danceflow.train.distill import trainer as training
from danceflow.train.distill.trainer import Trainer
from danceflow.train.state import load_checkpoint

CAPABILITIES = ("t2i", "local_edit")

pytestmark = pytest.mark.usefixtures("as_a_stage")


class Blind:
    """Looks at the student without a picture of it."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def observe(self, student, step: int, *, score: bool, draw: bool) -> dict[str, float]:
        self.steps.append(step)
        return {"t2i": 0.5} if score else {}


class Stopping(Trainer):
    """Stops before an update, as a power cut would."""

    stop_at = -1

    def _update(self, progress: float) -> float:
        if self.step == self.stop_at:
            raise KeyboardInterrupt
        return super()._update(progress)


def params_with(capabilities=CAPABILITIES, **changes):
    return small_params(capabilities, **{f"distill__{k}": v for k, v in changes.items()})


def trainer(made: Paths, teachers: Teachers, work: Path, kind=Trainer, observer=None, **changes):
    params = params_with(changes.pop("capabilities", CAPABILITIES), **changes)
    caches = {name: ConditionCache(made.cache(name)) for name in params.capabilities}
    work.mkdir(parents=True, exist_ok=True)
    method = method_of(params.distill)
    return kind(params, method, teachers, caches, work, NoTracker(), observer or Blind())


def trained(*arguments, **changes) -> Trainer:
    made = trainer(*arguments, **changes)
    made.train()
    return made


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.backbone.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# ---------------------------------------------------------------------------------------------
# Resume


@pytest.mark.parametrize(
    "changes",
    [
        {"student": "full"},
        {"student": "lora", "capabilities_per_update": "all"},
        {"student": "full", "optimizer": "muon", "query": "curriculum"},
        {"student": "lora", "objective": "dmd-ema"},
        {"student": "full", "method": "flowopd", "group_size": 2},
        {"student": "full", "updates_per_rollout": 4, "capabilities_per_update": "balanced"},
        {"student": "lora", "loss_normalisation": 0.5, "updates_per_rollout": 2},
    ],
    ids=["full", "lora", "muon", "average", "sde", "replay", "normalised"],
)
def test_a_training_resumed_twice_is_the_uninterrupted_one(
    made: Paths, teachers: Teachers, tmp_path: Path, changes
) -> None:
    options = {**changes, "num_updates": 7, "log_every": 3, "evaluate_every": 2}
    whole = trained(made, teachers, tmp_path / "whole", **options)
    for stop_at in (3, 6):
        part = trainer(made, teachers, tmp_path / "parts", Stopping, **options)
        part.stop_at = stop_at
        with pytest.raises(KeyboardInterrupt):
            part.train()
        checkpoint = load_checkpoint(tmp_path / "parts" / "checkpoint.safetensors")
        assert checkpoint is not None
        assert checkpoint["step"] == 2 * (stop_at // 2)
    parts = trained(made, teachers, tmp_path / "parts", **options)
    assert same(weights(whole), weights(parts))
    record = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert read_metrics(tmp_path / "parts" / "metrics.jsonl") == record
    assert {row["step"] for row in record if "loss" in row} == {3, 6, 7}
    assert [row["step"] for row in record if "scores" in row] == [0, 2, 4, 6, 7]


def test_a_finished_training_is_not_repeated(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    first = trained(made, teachers, tmp_path)
    record = (tmp_path / "metrics.jsonl").read_bytes()
    again = trainer(made, teachers, tmp_path, Stopping)
    again.stop_at = 6
    again.train()
    assert same(weights(first), weights(again))
    assert (tmp_path / "metrics.jsonl").read_bytes() == record


def test_looking_on_does_not_change_the_training(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    rarely, often = Blind(), Blind()
    one = trained(made, teachers, tmp_path / "rarely", observer=rarely)
    other = trained(
        made, teachers, tmp_path / "often", observer=often, evaluate_every=1, grid_every=2
    )
    assert (rarely.steps, often.steps) == ([0, 6], [0, 1, 2, 3, 4, 5, 6])
    assert same(weights(one), weights(other))


def test_teachers_that_wait_teach_the_same(
    made: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the stage, with teachers that have weights of their own."""
    from diffusers.hooks.group_offloading import ModuleGroup

    came: list[object] = []

    def noting(real):
        return lambda *given: (came.append(given[0]), real(*given))[1]

    for kind, name in ((WaitingField, "__call__"), (ModuleGroup, "onload_")):
        monkeypatch.setattr(kind, name, noting(getattr(kind, name)))
    students, kinds = {}, {}
    for offload in ("none", "teachers", "blocks"):
        paths = Paths(tmp_path / offload)
        shutil.copytree(made.root, paths.root)
        came.clear()
        changes = {"run__offload": offload, "distill__num_updates": 2}
        distill.run(small_params(CAPABILITIES, **changes), paths)
        files = read_manifest(paths.student)["files"]
        students[offload] = {n: digest for n, digest in files.items() if "transformer" in n}
        kinds[offload] = {type(item) for item in came}
    assert kinds == {"none": set(), "teachers": {WaitingField}, "blocks": {ModuleGroup}}
    assert students["none"]
    assert students["teachers"] == students["blocks"] == students["none"]


def test_a_compiled_training_is_the_uncompiled_one(
    made: Paths, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    eager = partial(memory.compile_blocks, backend=counter)
    monkeypatch.setattr(memory, "compile_blocks", eager)
    held = memory.memory_of(small_params(run__compile=True).run)
    compiled = Teachers(made.teachers, "sd3", ["base", "local"], held)
    options = {"student": "lora", "num_updates": 2, "objective": "dmd-ema"}
    plain = trained(made, teachers, tmp_path / "plain", **options)
    assert counter.frame_count == 0
    other = trained(made, compiled, tmp_path / "compiled", **options)
    assert counter.frame_count > 0
    torch._dynamo.reset()
    full = trainer(made, compiled, tmp_path / "full", **options | {"student": "full"})
    for run, expected in ((plain, False), (other, True), (full, True)):
        for network in (run.backbone, run.ema_backbone):
            blocks = network.transformer_blocks
            assert {block._compiled_call_impl is not None for block in blocks} == {expected}
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-4, atol=1e-5)
    for run in (plain, other):
        run.package(tmp_path / run.work.name / "student", {})


def test_a_damaged_checkpoint_is_told_and_trained_again(
    made: Paths, teachers: Teachers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = weights(trained(made, teachers, tmp_path, num_updates=2))
    lines = (tmp_path / "metrics.jsonl").read_text().count("\n")
    file = tmp_path / "checkpoint.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))
    assert same(weights(trained(made, teachers, tmp_path, num_updates=2)), whole)
    assert f"{file}: the checkpoint is damaged (its SHA-256 differs)" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == lines


# ---------------------------------------------------------------------------------------------
# What is trained, and by whom


@pytest.mark.parametrize("student", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_through_the_same_loop(
    made: Paths, teachers: Teachers, tmp_path: Path, method: str, student: str
) -> None:
    group_size = 2 if METHODS[method].group_size > 1 else None
    options = {"method": method, "student": student, "group_size": group_size, "num_updates": 2}
    found = trainer(made, teachers, tmp_path, **options)
    before = weights(found)
    found.train()
    after = weights(found)
    assert all(value.isfinite().all() for value in after.values())
    assert same(before, after) != METHODS[method].trains
    losses = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert len(losses) == (2 if METHODS[method].trains else 0)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trained_names = {name for name, _ in found.backbone.named_parameters() if name in changed}
    assert all(("lora" in name) == (student == "lora") for name in trained_names)


@pytest.mark.parametrize("objective", ["snr", "kl", "consistency", "dmd-ema"])
@pytest.mark.parametrize("student", ["full", "lora"])
def test_every_objective_trains(
    made: Paths, teachers: Teachers, tmp_path: Path, objective: str, student: str
) -> None:
    options = {"objective": objective, "student": student, "num_updates": 2, "num_queries": 2}
    found = trainer(made, teachers, tmp_path, **options)
    before = weights(found)
    found.train()
    assert not same(before, weights(found))


def test_teachers_stay_what_they_were(made: Paths, teachers: Teachers, tmp_path: Path) -> None:
    before = {
        name: {k: v.clone() for k, v in backbone.state_dict().items()}
        for name, backbone in teachers.backbones.items()
    }
    trained(made, teachers, tmp_path, capabilities_per_update="all", init="local")
    for name, backbone in teachers.backbones.items():
        assert same(before[name], backbone.state_dict())
        assert not any(param.requires_grad for param in backbone.parameters())
        assert all(param.grad is None for param in backbone.parameters())


def test_one_capability_an_update_asks_its_own_teacher_alone(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(made, teachers, tmp_path)
    counting = {name: CountingField(field) for name, field in found.teachers.items()}
    found.teachers = counting
    found.train()
    routed = [found.rows.router.route(step)[0][0].name for step in range(6)]
    assert set(routed) == set(CAPABILITIES)
    for name, field in counting.items():
        assert field.num_evaluations == 4 * routed.count(name)
    losses = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["capability"] for row in losses] == routed


def test_all_capabilities_an_update_share_the_batch(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(made, teachers, tmp_path, capabilities_per_update="all")
    counting = {name: CountingField(field) for name, field in found.teachers.items()}
    found.teachers = counting
    found.train()
    assert [field.num_evaluations for field in counting.values()] == [12, 12]
    losses = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["capability"] for row in losses] == [*CAPABILITIES] * 6
    for row in losses:
        assert set(row["sigma_bins"]) <= {"0.00-0.25", "0.25-0.50", "0.50-0.75", "0.75-1.00"}


def test_substeps_change_nothing_before_their_share_of_the_training(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    losses = {}
    for name, substeps in (("plain", {}), ("late", {"t2i": 2})):
        trained(
            made,
            teachers,
            tmp_path / name,
            capabilities_per_update="all",
            num_updates=6,
            log_every=1,
            substeps=substeps,
            substeps_from=0.5,
        )
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        losses[name] = {
            capability: [row["loss"] for row in rows if row.get("capability") == capability]
            for capability in CAPABILITIES
        }
    plain, late = losses["plain"], losses["late"]
    assert plain["t2i"][:3] == late["t2i"][:3]
    assert plain["t2i"][3] != late["t2i"][3]
    # The other capability's teacher takes none: its answers at the fourth update are the same.
    assert plain["local_edit"][:4] == late["local_edit"][:4]


def test_noised_states_stand_at_steps_while_the_teacher_takes_substeps(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(
        made,
        teachers,
        tmp_path,
        capabilities_per_update="all",
        noised=dict.fromkeys(CAPABILITIES, 1.0),
        substeps={"t2i": 2},
    )
    asked = {name: CountingField(field) for name, field in found.teachers.items()}
    visited: dict[str, set[float]] = {name: set() for name in CAPABILITIES}

    def noting(name: str, inner: CountingField) -> VelocityField:
        def field(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            visited[name] |= set(sigma.tolist())
            return inner(z, sigma, condition)

        return field

    found.teachers = {name: noting(name, inner) for name, inner in asked.items()}
    found.train()
    assert asked["t2i"].num_evaluations == 2 * asked["local_edit"].num_evaluations > 0
    fine = teachers.family.grid(2 * found.config.num_steps).tolist()
    assert visited["t2i"] <= set(fine)
    assert not visited["local_edit"] <= set(fine)


def test_states_that_wait_for_substeps_stand_where_they_begin(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trained(
        made,
        teachers,
        tmp_path,
        num_updates=8,
        updates_per_rollout=4,
        noised=dict.fromkeys(CAPABILITIES, 0.5),
        substeps=dict.fromkeys(CAPABILITIES, 2),
        substeps_from=0.5,
    )
    assert found.step == 8


@pytest.mark.parametrize("student", ["full", "lora"])
def test_a_student_has_the_shift_of_its_own_grid(
    made: Paths, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str
) -> None:
    found = trained(made, teachers, tmp_path / "work", shift=1.5, student=student, lora_rank=2)
    (grid,) = found.grids.values()
    assert torch.equal(grid, shifted_grid(found.config.num_steps, 1.5))
    package = tmp_path / "student"
    package.mkdir()
    found.package(package, {"num_steps": 4, "image_sizes": found.sizes, "teachers_digest": "1"})
    monkeypatch.setattr(teachers, "digest", "1")
    for beside in (None, teachers):
        loaded = load_package(package, "cpu", beside)
        assert torch.equal(loaded.family.grid(4), shifted_grid(4, 1.5))
    assert not torch.equal(teachers.family.grid(4), shifted_grid(4, 1.5))


def test_a_rollout_that_serves_several_updates_saves_evaluations(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    """Four updates share a rollout: as many states are trained on, far fewer are rolled out."""
    spent = {}
    for rounds in (1, 4):
        found = trainer(
            made, teachers, tmp_path / str(rounds), updates_per_rollout=rounds, num_updates=24
        )
        # The student's own field trains too: what is not trained on is the rollout.
        found.student = counting = CountingField(found.student)
        found.teachers = {n: CountingField(field) for n, field in found.teachers.items()}
        found.train()
        trained_on = sum(field.num_evaluations for field in found.teachers.values())
        assert trained_on == 24 * 4 - (6 if rounds == 4 else 0)
        spent[rounds] = counting.num_evaluations - trained_on
    assert spent[4] < 0.5 * spent[1]


def test_a_group_shares_its_row_and_not_its_noise(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(made, teachers, tmp_path, group_size=2)
    collected = []
    method = found.method

    def noting(request):
        collected.append((request, type(method).collect(method, request)))
        return collected[-1][1]

    object.__setattr__(method, "collect", noting)
    found.train()
    for request, queries in collected:
        for tensor in request.condition.tensors.values():
            assert torch.equal(tensor[::2], tensor[1::2])
        noise = request.noise()
        assert not torch.equal(noise[::2], noise[1::2])
        assert len(queries.sigma) == 4


def test_normalised_losses_pull_alike(made: Paths, teachers: Teachers, tmp_path: Path) -> None:
    options = {"loss_normalisation": 0.0, "capabilities_per_update": "all", "num_updates": 3}
    found = trained(made, teachers, tmp_path, **options)
    losses = {
        row["capability"]: row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")[-3:-1]
    }
    assert found.balance.means == pytest.approx(losses)
    pulls = [found.balance.weight(name) * loss for name, loss in losses.items()]
    assert pulls[0] == pytest.approx(pulls[1])
    plain = trained(made, teachers, tmp_path / "plain", **options | {"loss_normalisation": None})
    assert not same(weights(found), weights(plain))


def largest_row(found: Trainer) -> int:
    return max(int(drawn.rows.max()) for n in range(40) for drawn in found.rows.read(n))


def test_a_warm_start_draws_rows_with_teacher_samples_alone(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(made, teachers, tmp_path, warm_start=2)
    assert largest_row(found) == 5
    cold = trainer(made, teachers, tmp_path / "cold")
    assert largest_row(cold) == 11
    found.train()
    cold.train()
    assert 0 < found.ledger.spent["rollout"] < cold.ledger.spent["rollout"]


def test_the_size_of_a_backward_pass_does_not_change_the_update(
    made: Paths, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_updates": 1, "num_queries": 2, "capabilities_per_update": "all"}
    one = weights(trained(made, teachers, tmp_path / "one", **options))
    monkeypatch.setattr(training, "MAX_ROWS", 2)
    other = weights(trained(made, teachers, tmp_path / "other", **options))
    before = start_backbone(teachers, asked(params_with()).start).state_dict()
    assert not same(one, before)
    norms = [
        row["grad_norm"]
        for name in ("one", "other")
        for row in read_metrics(tmp_path / name / "metrics.jsonl")
        if "loss" in row
    ]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-4)
    moved = torch.cat([(one[n] - before[n]).flatten() for n in one])
    apart = torch.cat([(one[n] - other[n]).flatten() for n in one])
    assert float(apart.norm()) < 0.02 * float(moved.norm())


# ---------------------------------------------------------------------------------------------
# The package


@pytest.mark.parametrize("student", ["full", "lora"])
def test_the_package_holds_the_average(
    made: Paths, teachers: Teachers, tmp_path: Path, student: str
) -> None:
    found = trainer(made, teachers, tmp_path / "work", student=student, learning_rate=0.01)
    live = {}
    checkpoint = found._checkpoint

    def noting(seconds: float) -> None:
        live.update(weights(found))
        checkpoint(seconds)

    found._checkpoint = noting  # type: ignore[method-assign]
    found.train()
    assert same({n: found.backbone.state_dict()[n] for n in found.ema.values}, found.ema.values)
    assert not same({n: live[n] for n in found.ema.values}, found.ema.values)
    folder = tmp_path / "student"
    folder.mkdir()
    found.package(folder, {"image_sizes": [[32, 32]], "num_steps": 2})
    if student == "lora":
        base = teachers.family.load_backbone(folder / "base")
        load_adapter(base, folder / "adapter", "student")
        saved = merge_adapter(base, "student").state_dict()
        expected = merge_adapter(found.backbone).state_dict()
    else:
        saved = teachers.family.load_backbone(folder / "transformer").state_dict()
        expected = found.backbone.state_dict()
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value.float(), rtol=2e-3, atol=2e-3)
    assert (folder / "transformer").is_dir() == (student == "full")


# ---------------------------------------------------------------------------------------------
# What a training costs


def spent(made: Paths, teachers: Teachers, work: Path, **changes) -> dict[str, int]:
    found = trained(made, teachers, work, capabilities_per_update="all", **changes)
    last = json.loads((work / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["field_evaluations"] == found.ledger.total
    return found.ledger.spent


def test_every_evaluation_that_trains_is_counted(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    """4 rows x 6 updates, half of them of a teacher with guidance; N = 4."""
    states = 4 * 6
    dense = spent(made, teachers, tmp_path / "dense", method="diffusionopd")
    assert dense == {
        "rollout": states * 3,
        "teachers": states * 4 * 3 // 2,
        "training": states * 4 * 3,
        "average": 0,
    }
    one = spent(made, teachers, tmp_path / "one", objective="dmd-ema")
    assert (one["teachers"], one["training"], one["average"]) == (
        states * 3 // 2,
        states * 3,
        states,
    )
    assert 0 < one["rollout"] < states * 3
    soft = spent(made, teachers, tmp_path / "soft", method="soft")
    assert soft["teachers"] == states * 3
    joint = spent(made, teachers, tmp_path / "joint", method="joint")
    assert joint == {"rollout": 0, "teachers": 0, "training": states * 3, "average": 0}
    walk = spent(made, teachers, tmp_path / "walk", method="flowopd", group_size=2)
    assert walk["rollout"] == states * 4


def test_a_budget_ends_the_training_and_its_schedule(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    dense = {"method": "diffusionopd", "capabilities_per_update": "all", "num_updates": 50}
    per_update = 4 * (3 + 4 * 3 // 2 + 4 * 3)
    options = {**dense, "max_field_evaluations": 10 * per_update + per_update // 2, "warmup": 10}
    found = trained(made, teachers, tmp_path / "whole", **options)
    assert (found.step, found.ledger.total) == (10, 10 * per_update)
    record = [row for row in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "loss" in row]
    rates = [row["learning_rate"] for row in record if row["capability"] == "t2i"]
    assert len(rates) == 10
    # A fifth of the training is warm-up, and at its end the rate has gone down.
    assert max(rates) == rates[2] == found.config.learning_rate
    assert rates[0] == found.config.learning_rate / 10
    assert rates[-1] < 0.1 * found.config.learning_rate
    assert found.observer.steps == [0, 10]
    part = trainer(made, teachers, tmp_path / "part", Stopping, **options)
    part.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        part.train()
    again = trained(made, teachers, tmp_path / "part", **options)
    assert same(weights(found), weights(again))
    assert again.ledger.spent == found.ledger.spent
    assert read_metrics(tmp_path / "part" / "metrics.jsonl") == read_metrics(
        tmp_path / "whole" / "metrics.jsonl"
    )
    done = trainer(made, teachers, tmp_path / "part", Stopping, **options)
    done.stop_at = 10
    done.train()
    assert done.step == 10


def test_a_constant_rate_stays(made: Paths, teachers: Teachers, tmp_path: Path) -> None:
    found = trained(made, teachers, tmp_path, schedule="constant", warmup=2)
    record = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    rates = {row["step"]: row["learning_rate"] for row in record}
    full = found.config.learning_rate
    assert rates == {1: full / 2} | dict.fromkeys(range(2, found.step + 1), full)


def test_a_budget_that_is_not_spent_changes_nothing(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    free = trained(made, teachers, tmp_path / "free")
    rich = trained(made, teachers, tmp_path / "rich", max_field_evaluations=10**6)
    assert same(weights(free), weights(rich))
    with pytest.raises(TrainingError, match="max_field_evaluations: 5 do not suffice"):
        trained(made, teachers, tmp_path / "poor", max_field_evaluations=5)


def test_another_seed_is_another_training_on_the_same_ground(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    one, other = (trained(made, teachers, tmp_path / str(s), seed=s, init="base") for s in (0, 1))
    assert not same(weights(one), weights(other))
    start = start_backbone(teachers, {"base": 1.0}).state_dict()
    assert not same(weights(one), start)


# ---------------------------------------------------------------------------------------------
# What cannot be right


def test_a_student_that_is_its_teacher_is_told_at_the_first_update(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(made, teachers, tmp_path, capabilities=("local_edit",), init="local")
    with pytest.raises(TrainingError, match="student and teacher give the same velocity"):
        found.train()


def test_a_student_may_start_as_one_of_its_teachers(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trained(made, teachers, tmp_path, init="local", capabilities_per_update="all")
    assert found.step == found.config.num_updates
    assert not same(weights(found), teachers.backbones["local"].state_dict())
    one = trained(made, teachers, tmp_path / "one", init="local")
    assert one.step == one.config.num_updates


def test_a_gradient_of_zero_is_told(
    made: Paths, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "require_different", lambda *_: None)
    found = trainer(made, teachers, tmp_path, capabilities=("local_edit",), init="local")
    with pytest.raises(TrainingError, match="update 0: the student's gradient is zero"):
        found.train()


def test_a_number_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    found = trainer(made, teachers, tmp_path, Stopping)
    found.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        found.train()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    spoilt = trainer(made, teachers, tmp_path)
    for cached in spoilt.rows.caches.values():
        spoilt_rows = torch.full((100, *cached.texts["prompt_embeds"].row_shape), float("nan"))
        cached.texts["prompt_embeds"] = MappedTable([spoilt_rows])
    with pytest.raises(
        TrainingError, match="update 2, .* cached prompts or sources are not finite"
    ):
        spoilt.train()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    spoilt = trainer(made, teachers, tmp_path)
    with torch.no_grad():
        spoilt.trainable[-1].fill_(float("nan"))
    with pytest.raises(TrainingError, match="update 2, .*: the student's (rollout|velocities)"):
        spoilt.train()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    whole = trained(made, teachers, tmp_path / "whole")
    assert same(weights(trained(made, teachers, tmp_path)), weights(whole))


def test_a_teacher_whose_velocities_are_not_finite_is_named(made: Paths, tmp_path: Path) -> None:
    damaged = Teachers(made.teachers, "sd3", ["base", "local"], "cpu")
    with torch.no_grad():
        damaged.backbones["local"].proj_out.bias[0] = float("inf")
    found = trainer(made, damaged, tmp_path, init="base", capabilities_per_update="all")
    with pytest.raises(
        TrainingError,
        match="update 0, capability 'local_edit': teacher 'local' gives .* not the cause",
    ):
        found.train()


def test_a_teacher_that_could_be_trained_is_refused(
    made: Paths, teachers: Teachers, tmp_path: Path
) -> None:
    teachers.backbones["local"].requires_grad_(True)
    try:
        with pytest.raises(TrainingError, match="parameters are not frozen"):
            trainer(made, teachers, tmp_path)
    finally:
        teachers.backbones["local"].requires_grad_(False)


def test_teacher_samples_that_are_missing_are_told(
    made: Paths, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trainer(made, teachers, tmp_path, method="offpolicy")
    monkeypatch.setattr(CachedRows, "num_rows", lambda cached, kind: len(cached))
    with pytest.raises(WeightsError, match=r"raise cache\.num_samples"):
        found.train()
