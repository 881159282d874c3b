import contextlib
from dataclasses import replace

import pytest
import torch
from params_files import changed
from repository import ROOT

from danceflow.capability import FIXED_STARTS
from danceflow.errors import ConfigError
from danceflow.fields import (
    LOGIT_NORMAL,
    OBJECTIVES,
    Condition,
    CountingField,
    ForwardNoised,
    Ode,
    OnPolicy,
    Sde,
    StateRequest,
    shifted_grid,
    velocity_mse,
)
from danceflow.method import METHODS, Method, method_of, resolve_method
from danceflow.params.read import parse_params
from danceflow.params.sections import MethodParts
from danceflow.params.yaml12 import read_yaml

GRID = shifted_grid(4, 3.0)
TEACHERS = {
    "a": lambda z, s, c: torch.full_like(z, 1.0),
    "b": lambda z, s, c: torch.full_like(z, 3.0),
}
TRAINABLE = sorted(name for name, method in METHODS.items() if method.trains)


def request(num_samples=6, field=None, first=0):
    seeds = list(range(first, first + num_samples))
    return StateRequest(
        student=field or (lambda z, s, c: 0.5 * z),
        condition=Condition({"row": torch.tensor(seeds)[:, None]}),
        grid=GRID,
        shape=(1, 2, 2),
        seeds=seeds,
        clean=lambda kind: (
            torch.tensor(seeds, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        ),
    )


def test_the_table_is_the_one_of_the_description():
    assert sorted(METHODS) == [
        "danceopd", "danceopd_clean", "diffusionopd", "diffusionopd_uniform", "flowopd",
        "flowopd_detached", "joint", "merge", "offpolicy", "offpolicy_random_latent", "soft",
    ]  # fmt: skip
    assert all(name == method.name for name, method in METHODS.items())


def test_danceopd_is_one_low_noise_query_on_the_students_ode_with_plain_mse():
    assert METHODS["danceopd"] == Method(
        "danceopd",
        states=OnPolicy(Ode()),
        query="low",
        num_queries=1,
        objective=OBJECTIVES["mse"],
        routing="hard",
        target="teacher",
        group_size=1,
    )


def test_the_clean_variant_regresses_the_clean_image_on_uniform_queries():
    clean = METHODS["danceopd_clean"]
    assert (
        replace(clean, name="danceopd", query="low", objective=OBJECTIVES["mse"])
        == (METHODS["danceopd"])
    )
    queries = clean.collect(request(num_samples=64))
    assert set(queries.sigma.tolist()) <= set(GRID.tolist())
    assert len(set(queries.sigma.tolist())) == len(GRID) - 1
    target = queries.z - 1.0
    _, rows = clean.objective(queries.z, target, queries)
    images = (queries.z - queries.sigma[:, None, None, None] * v for v in (queries.z, target))
    torch.testing.assert_close(rows, velocity_mse(*images))


def test_dense_methods_ask_at_every_state():
    for name in ("diffusionopd", "diffusionopd_uniform", "flowopd", "flowopd_detached"):
        queries = METHODS[name].collect(request())
        assert queries.index.reshape(6, 4).tolist() == [[0, 1, 2, 3]] * 6
        assert METHODS[name].objective == OBJECTIVES[name]


def test_flowopd_follows_the_sde_in_groups_and_keeps_its_successors():
    method = METHODS["flowopd"]
    assert method.states == OnPolicy(Sde(0.7))
    assert method.group_size == 16
    assert method.collect(request()).z_next is not None


def test_a_method_that_does_not_score_transitions_pays_for_no_successor():
    counting = CountingField(lambda z, s, c: z)
    queries = METHODS["danceopd"].collect(request(32, counting))
    assert counting.num_evaluations == queries.index.sum()
    assert queries.z_next is None


def test_a_noising_method_never_evaluates_the_student():
    for name in ("offpolicy", "offpolicy_random_latent", "joint"):
        counting = CountingField(lambda z, s, c: z)
        METHODS[name].collect(request(8, counting))
        assert counting.num_calls == 0


def test_clean_states_of_the_noising_methods():
    assert METHODS["offpolicy"].states == ForwardNoised("teacher")
    assert METHODS["offpolicy_random_latent"].states == ForwardNoised("random_latent")
    assert METHODS["joint"].states == ForwardNoised("data")
    assert METHODS["joint"].query == LOGIT_NORMAL


def test_hard_routing_asks_the_capabilitys_own_teacher():
    queries = METHODS["danceopd"].collect(request())
    for name, value in (("a", 1.0), ("b", 3.0)):
        target = METHODS["danceopd"].target_velocity(queries, TEACHERS, name)
        assert torch.equal(target, torch.full_like(queries.z, value))
    with pytest.raises(ValueError, match="unknown teacher 'c'"):
        METHODS["danceopd"].target_velocity(queries, TEACHERS, "c")


def test_soft_routing_has_the_gradient_of_the_mse_to_every_teacher():
    """The mean over teachers of the MSE to each has the gradient of the MSE to their mean."""
    method = METHODS["soft"]
    queries = method.collect(request())
    velocity = queries.z.clone().requires_grad_()
    target = method.target_velocity(queries, TEACHERS, "a")
    assert torch.equal(target, torch.full_like(target, 2.0))
    (soft,) = torch.autograd.grad(method.objective(velocity, target, queries)[0], velocity)
    each = [
        method.objective(velocity, teacher(queries.z, queries.sigma, queries.condition), queries)[0]
        for teacher in TEACHERS.values()
    ]
    (mean,) = torch.autograd.grad(sum(each) / len(each), velocity)
    assert torch.allclose(soft, mean)


def test_joint_regresses_to_noise_minus_data():
    queries = METHODS["joint"].collect(request())
    target = METHODS["joint"].target_velocity(queries, {}, "a")
    sigma = queries.sigma[:, None, None, None]
    clean = queries.z - sigma * target
    rows = torch.arange(6.0).reshape(-1, 1, 1, 1).expand_as(clean)
    assert torch.allclose(clean, rows, atol=1e-5)


@pytest.mark.parametrize("name", TRAINABLE)
def test_states_and_targets_carry_no_gradient(name):
    weight = torch.ones((), requires_grad=True)
    method = METHODS[name]
    queries = method.collect(request(6, lambda z, s, c: weight * z))
    teachers = {key: lambda z, s, c: weight * z for key in TEACHERS}
    assert not queries.z.requires_grad
    assert not method.target_velocity(queries, teachers, "a").requires_grad


@pytest.mark.parametrize("name", TRAINABLE)
def test_what_a_sample_trains_on_does_not_depend_on_its_batch(name):
    """Batch size and number of processes alike only cut the list of seeds differently."""
    whole = METHODS[name].collect(request(6))
    k = whole.num_queries
    for first, size in ((0, 1), (1, 2), (3, 3)):
        part = METHODS[name].collect(request(size, first=first))
        rows = slice(first * k, (first + size) * k)
        assert torch.equal(part.z, whole.z[rows])
        assert torch.equal(part.index, whole.index[rows])
        assert torch.equal(part.sigma, whole.sigma[rows])
        if whole.z_next is not None:
            assert torch.equal(part.z_next, whole.z_next[rows])


def test_merge_does_not_train():
    assert set(FIXED_STARTS) == {name for name, method in METHODS.items() if not method.trains}
    with pytest.raises(ValueError, match="'merge' does not train"):
        METHODS["merge"].collect(request())


def test_resolve_without_overrides_is_the_table():
    for name, method in METHODS.items():
        assert resolve_method(name) == method


def test_resolve_replaces_what_is_given_and_nothing_else():
    method = resolve_method(
        "danceopd",
        query="high",
        num_queries=3,
        objective="snr",
        reduction="weighted",
        dynamics="sde",
        eta=0.3,
        routing="soft",
        group_size=4,
        warm_start=2,
        updates_per_rollout=2,
    )
    assert method.states == OnPolicy(Sde(0.3), warm_start=2)
    assert method.updates_per_rollout == 2
    assert (method.query, method.num_queries, method.routing) == ("high", 3, "soft")
    assert method.objective.row_loss == OBJECTIVES["snr"].row_loss
    assert method.objective.reduction == "weighted"
    assert method.group_size == 4
    assert method.target == "teacher"
    dense = resolve_method("diffusionopd", reduction="mean")
    assert dense.objective.row_loss == OBJECTIVES["diffusionopd"].row_loss
    assert dense.num_queries == "all"


# For every part that a params file can replace: one that the method of ``params.yaml`` has not.
REPLACED = {
    "query": ["query=high"],
    "objective": ["objective=snr"],
    "num_queries": ["num_queries=2"],
    "reduction": ["reduction=sum"],
    "dynamics": ["dynamics=sde"],
    "eta": ["dynamics=sde", "eta=0.3"],
    "routing": ["routing=soft"],
    "group_size": ["group_size=2"],
    "coupling": ["coupling=antithetic"],
    "warm_start": ["warm_start=1"],
    "updates_per_rollout": ["updates_per_rollout=2"],
}


@pytest.mark.parametrize("part", MethodParts.model_fields)
def test_every_part_that_a_file_replaces_reaches_the_method(part):
    data = changed(read_yaml(ROOT / "params.yaml"), "distill.batch_size=32", "distill.noised={}")
    *before, last = [f"distill.{assignment}" for assignment in REPLACED[part]]
    assert last.startswith(f"distill.{part}=")
    own = method_of(parse_params(changed(data, *before), "before").distill)
    assert method_of(parse_params(changed(data, *before, last), "after").distill) != own


def test_a_part_that_no_method_has_is_refused():
    with pytest.raises(TypeError, match="qury"):
        resolve_method("danceopd", qury="high")


@pytest.mark.parametrize(
    ("name", "overrides", "dynamics"),
    [
        ("danceopd", {"dynamics": "sde"}, Sde(0.7)),
        ("danceopd", {"dynamics": "ode"}, Ode()),
        ("flowopd", {"eta": 0.2}, Sde(0.2)),
        ("flowopd", {"objective": "kl", "dynamics": "ode"}, Ode()),
        ("flowopd", {"dynamics": "sde"}, Sde(0.7)),
    ],
)
def test_dynamics_and_eta_can_be_replaced(name, overrides, dynamics):
    assert resolve_method(name, **overrides).states == OnPolicy(dynamics)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("danceop", {}, "unknown method 'danceop': did you mean 'danceopd'"),
        ("danceopd", {"query": "hihg"}, "unknown query 'hihg': did you mean 'high'"),
        ("danceopd", {"query": LOGIT_NORMAL}, "leaves the grid"),
        ("danceopd", {"num_queries": 0}, "num_queries"),
        ("danceopd", {"num_queries": "every"}, "num_queries"),
        ("danceopd", {"objective": "msee"}, "unknown objective 'msee': did you mean 'mse'"),
        ("danceopd", {"reduction": "summ"}, "unknown reduction 'summ': did you mean 'sum'"),
        ("danceopd", {"dynamics": "sda"}, "unknown dynamics 'sda': did you mean 'sde'"),
        ("danceopd", {"routing": "sotf"}, "unknown routing 'sotf': did you mean 'soft'"),
        ("danceopd", {"eta": 0.3}, "'ode' has no noise"),
        ("danceopd", {"dynamics": "sde", "eta": -1.0}, "eta"),
        ("danceopd", {"objective": "flowopd"}, "dynamics 'sde'"),
        ("flowopd", {"dynamics": "ode"}, "dynamics 'sde'"),
        ("offpolicy", {"objective": "flowopd"}, "dynamics 'sde'"),
        ("offpolicy", {"dynamics": "sde"}, "apply only to rollouts"),
        ("danceopd", {"group_size": 0}, "group_size"),
        ("danceopd", {"coupling": "antithetik"}, "unknown coupling 'antithetik': did you mean"),
        ("danceopd", {"coupling": "antithetic", "num_queries": 2}, "num_queries is 2"),
        ("diffusionopd", {"coupling": "stratified"}, "num_queries is all"),
        ("joint", {"coupling": "stratified"}, "cannot be coupled"),
        ("danceopd", {"warm_start": -1}, "warm_start is -1"),
        ("joint", {"warm_start": 1}, "warm_start applies only to rollouts"),
        ("flowopd", {"warm_start": 1}, "which a warm start skips"),
        ("danceopd", {"updates_per_rollout": 0}, "updates_per_rollout 0 is below 1"),
        ("joint", {"updates_per_rollout": 2}, "it rolls nothing out"),
        ("flowopd", {"updates_per_rollout": 2}, "needs fresh transitions"),
    ],
)
def test_unknown_and_unfitting_parts_are_refused(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        resolve_method(name, **overrides)


@pytest.mark.parametrize(
    ("assignments", "reason"),
    [
        (["method=joint"], "asks no teacher"),
        (["method=merge"], "asks no teacher"),
        (["method=danceopd", "dynamics=sde"], "moves its states with noise"),
        (["method=offpolicy", "query=logit_normal"], "has states between the grid's"),
        (["method=soft"], "asks all teachers at once"),
    ],
)
def test_substeps_where_a_teacher_has_no_answer_over_a_step_are_refused(assignments, reason):
    data = read_yaml(ROOT / "params.yaml")
    given = ["substeps={t2i: 2}", "noised={}", *assignments]
    params = parse_params(changed(data, *(f"distill.{one}" for one in given)), "params.yaml")
    with pytest.raises(ConfigError, match=f"^distill.substeps: method '.*' {reason}"):
        method_of(params.distill)
    once = ["substeps={t2i: 1}", "noised={}", *assignments]
    plain = changed(data, *(f"distill.{a}" for a in once))
    method_of(parse_params(plain, "params.yaml").distill)


@pytest.mark.parametrize(
    ("assignments", "reason"),
    [
        (["method=danceopd", "dynamics=sde"], "moves its states with noise"),
        (["method=danceopd", "warm_start=2"], "begins at noised teacher samples"),
    ],
)
def test_noised_states_beside_another_rollout_are_refused(assignments, reason):
    data = read_yaml(ROOT / "params.yaml")
    for share, refused in ((0.5, True), (0.0, False)):
        given = [f"noised={{t2i: {share}}}", "substeps={}", *assignments]
        params = parse_params(changed(data, *(f"distill.{one}" for one in given)), "params.yaml")
        with (
            pytest.raises(ConfigError, match=f"^distill.noised: method '.*' {reason}")
            if refused
            else contextlib.nullcontext()
        ):
            method_of(params.distill)


def test_more_queries_than_steps_is_refused_by_name():
    method = resolve_method("danceopd", num_queries=5)
    with pytest.raises(ValueError, match="num_queries is 5, but a rollout of num_steps 4"):
        method.collect(request())
    assert method.queries_per_sample(5) == 5
    assert METHODS["diffusionopd"].queries_per_sample(28) == 28


def test_a_warm_start_behind_the_last_state_is_refused_by_name():
    method = resolve_method("danceopd", warm_start=4)
    with pytest.raises(ValueError, match="warm_start is 4, but a rollout of num_steps 4"):
        method.collect(request())
    assert method.queries_per_sample(5) == 1


def test_a_method_collects_in_its_own_coupling_and_rounds():
    method = resolve_method("danceopd", coupling="antithetic", query="uniform")
    index = method.collect(request()).index
    assert (index[::2] + index[1::2] == 3).all()
    rounds = resolve_method("danceopd", updates_per_rollout=3).collect(request())
    assert (rounds.num_queries, rounds.num_samples) == (3, 6)


def test_a_data_target_needs_noised_states():
    with pytest.raises(ValueError, match="forward-noised"):
        Method("odd", target="data")
