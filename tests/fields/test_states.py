import math
from dataclasses import replace

import pytest
import torch

from danceflow.fields import (
    LOGIT_NORMAL,
    Condition,
    CountingField,
    ForwardNoised,
    GaussianField,
    Noised,
    Ode,
    OnPolicy,
    Queries,
    Sde,
    StateRequest,
    derive_seeds,
    draw_queries,
    normal,
    rollout,
    shifted_grid,
)

GRID = shifted_grid(8, 3.0)
SHAPE = (2, 3, 3)


def student(z, sigma, condition):
    return 0.5 * z + condition.tensors["shift"]


def request(num_samples=6, clean=None, field=student, first=0):
    seeds = list(range(first, first + num_samples))
    shift = torch.tensor(seeds, dtype=torch.float32)[:, None, None, None]
    return StateRequest(
        student=field,
        condition=Condition({"shift": shift}),
        grid=GRID,
        shape=SHAPE,
        seeds=seeds,
        clean=clean or (lambda kind: pytest.fail(f"asked for {kind} states")),
    )


def test_on_policy_states_are_the_students_rollout_at_the_drawn_indices():
    queries = OnPolicy().collect(request(), "uniform", 3)
    index = draw_queries("uniform", 6, 8, 3, list(range(6)))
    noise = normal(SHAPE, derive_seeds(range(6), "noise"))
    states = rollout(student, noise, request().condition, GRID, index)
    assert torch.equal(queries.z, states.z.flatten(0, 1))
    assert torch.equal(queries.index, index.flatten())
    assert torch.equal(queries.sigma, GRID[queries.index])
    assert torch.equal(queries.sigma_next, GRID[queries.index + 1])
    assert queries.condition.tensors["shift"].flatten().tolist() == [
        row for row in range(6) for _ in range(3)
    ]
    assert queries.num_samples == 6
    assert queries.z_next is None


def test_on_policy_evaluations_are_the_sum_of_the_drawn_depths():
    counting = CountingField(student)
    queries = OnPolicy().collect(request(64, field=counting), "low", 1)
    assert counting.num_evaluations == queries.index.sum()


def test_noised_samples_of_a_batch_are_noised_data_and_cost_no_evaluation():
    rows = torch.tensor([True, False, False, True, False, True])
    levels = shifted_grid(32, 3.0)[:-1]
    clean = torch.randn(3, *SHAPE)
    plain = OnPolicy().collect(request(), "high", 2)
    counting = CountingField(student)
    asked = replace(
        request(field=counting, clean=lambda kind: clean if kind == "data" else pytest.fail(kind)),
        noised=Noised(rows, levels),
    )
    found = OnPolicy().collect(asked, "high", 2)
    which = rows.repeat_interleave(2)
    assert counting.num_evaluations == plain.index.reshape(6, 2).amax(1)[~rows].sum()
    for name in ("z", "sigma", "sigma_next", "index"):
        assert torch.equal(getattr(found, name)[~which], getattr(plain, name)[~which])
    sigma = found.sigma[which]
    assert len(sigma.unique()) == 6
    noise = normal(SHAPE, derive_seeds([0, 3, 5], "noise")).repeat_interleave(2, dim=0)
    at = sigma[:, None, None, None]
    expected = (1 - at) * clean.repeat_interleave(2, dim=0) + at * noise
    torch.testing.assert_close(found.z[which], expected)
    index = found.index[which]
    assert (sigma <= GRID[index]).all()
    assert (sigma >= GRID[index + 1]).all()
    assert torch.equal(found.sigma_next[which], GRID[index + 1])


def test_noised_samples_at_steps_have_the_sigmas_of_the_rollout():
    num_samples = 4000
    at_steps = torch.arange(num_samples) % 2 == 0
    rows = torch.ones(num_samples, dtype=torch.bool)
    levels = shifted_grid(32, 3.0)[:-1]
    asked = request(num_samples, clean=lambda kind: torch.zeros(num_samples, *SHAPE))
    both = OnPolicy().collect(replace(asked, noised=Noised(rows, levels, at_steps)), "low", 1)
    between = OnPolicy().collect(replace(asked, noised=Noised(rows, levels)), "low", 1)
    assert torch.equal(both.sigma[at_steps], GRID[both.index[at_steps]])
    counts = both.index[at_steps].bincount() / at_steps.sum()
    assert counts.tolist() == pytest.approx([1 / (len(GRID) - 1)] * (len(GRID) - 1), abs=0.03)
    for name in ("z", "sigma", "sigma_next", "index"):
        assert torch.equal(getattr(both, name)[~at_steps], getattr(between, name)[~at_steps])


def test_sigmas_of_noised_samples_are_uniform_in_the_number_of_the_level():
    levels = shifted_grid(32, 3.0)[:-1]
    num_samples = 4000
    asked = replace(
        request(num_samples, clean=lambda kind: torch.zeros(num_samples, *SHAPE)),
        noised=Noised(torch.ones(num_samples, dtype=torch.bool), levels),
    )
    sigma = OnPolicy().collect(asked, "low", 1).sigma
    assert levels[-1] <= sigma.min() < levels[-2]
    shares = [(sigma > level).float().mean().item() for level in levels[[8, 16, 24]]]
    assert shares == pytest.approx([8 / 31, 16 / 31, 24 / 31], abs=0.03)


@pytest.mark.parametrize("source", [OnPolicy(), OnPolicy(Sde(0.7))])
def test_successors_are_the_next_states_of_the_same_path(source):
    every = source.collect(request(), "uniform", 8, successors=True)
    z, z_next = (part.reshape(6, 8, *SHAPE) for part in (every.z, every.z_next))
    assert torch.equal(z[:, 1:], z_next[:, :-1])
    few = source.collect(request(), "low", 2, successors=True)
    rows = torch.arange(6).repeat_interleave(2)
    assert torch.equal(few.z, z[rows, few.index])
    assert torch.equal(few.z_next, z_next[rows, few.index])


def test_noised_states_lie_on_the_line_between_clean_and_noise():
    clean = normal(SHAPE, range(50, 56))
    queries = ForwardNoised("data").collect(request(clean={"data": clean}.get), "low", 2)
    x = clean.repeat_interleave(2, dim=0)
    eps = normal(SHAPE, derive_seeds(range(6), "noise")).repeat_interleave(2, dim=0)
    sigma = queries.sigma[:, None, None, None]
    assert torch.equal(queries.z, (1.0 - sigma) * x + sigma * eps)
    assert torch.equal(queries.data_velocity, eps - x)
    assert torch.equal(queries.sigma, GRID[queries.index])
    index = draw_queries("low", 6, 8, 2, list(range(6)))
    assert torch.equal(queries.index, index.flatten())


def test_each_clean_kind_asks_for_its_own_states():
    asked = []

    def clean(kind):
        asked.append(kind)
        return torch.zeros(6, *SHAPE)

    for kind in ("teacher", "data", "random_latent"):
        ForwardNoised(kind).collect(request(clean=clean), "low", 1)
    assert asked == ["teacher", "data"]


def test_random_latents_are_standard_normal_and_not_the_noise():
    queries = ForwardNoised("random_latent").collect(request(500), "low", 1)
    eps = normal(SHAPE, derive_seeds(range(500), "noise"))
    x = (eps - queries.data_velocity).double()
    assert abs(x.std() - 1.0) < 0.03
    assert abs((x * eps).mean()) < 4.0 / math.sqrt(x.numel())


def test_logit_normal_sigmas_follow_their_distribution_and_know_their_interval():
    queries = ForwardNoised("random_latent").collect(request(2000), LOGIT_NORMAL, 1)
    logits = queries.sigma.double().logit()
    assert abs(logits.mean()) < 4.0 / math.sqrt(2000)
    assert abs(logits.std() - 1.0) < 0.08
    assert (queries.sigma <= GRID[queries.index]).all()
    assert (queries.sigma > GRID[queries.index + 1]).all()
    assert torch.equal(queries.sigma_next, GRID[queries.index + 1])


@pytest.mark.parametrize("query", ["low", LOGIT_NORMAL])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_noised_states_of_a_sample_do_not_depend_on_its_batch(query, num_queries):
    source = ForwardNoised("random_latent")
    whole = source.collect(request(6), query, num_queries)
    part = source.collect(request(2, first=3), query, num_queries)
    rows = slice(3 * num_queries, 5 * num_queries)
    assert torch.equal(part.z, whole.z[rows])
    assert torch.equal(part.sigma, whole.sigma[rows])


def test_what_cannot_be_collected_is_refused():
    with pytest.raises(ValueError, match="no successors"):
        ForwardNoised("random_latent").collect(request(), "low", 1, successors=True)
    with pytest.raises(ValueError, match="'data' have shape"):
        ForwardNoised("data").collect(request(clean=lambda kind: torch.zeros(1)), "low", 1)
    with pytest.raises(ValueError, match="unknown query"):
        OnPolicy().collect(request(), LOGIT_NORMAL, 1)


def test_a_warm_start_at_the_noise_is_the_plain_rollout():
    plain = OnPolicy().collect(request(), "uniform", 3)
    warm = OnPolicy(warm_start=0).collect(request(), "uniform", 3)
    assert torch.equal(plain.z, warm.z)
    assert (OnPolicy().clean_kind, OnPolicy(warm_start=2).clean_kind) == (None, "teacher")


@pytest.mark.parametrize("dynamics", [Ode(), Sde(0.5)])
def test_a_warm_start_noises_teacher_samples_and_rolls_out_from_there(dynamics):
    clean = normal(SHAPE, range(50, 56))
    counting = CountingField(student)
    asked = request(clean={"teacher": clean}.get, field=counting)
    queries = OnPolicy(dynamics, warm_start=3).collect(asked, "uniform", 8)
    z = queries.z.reshape(6, 8, *SHAPE)
    noise = normal(SHAPE, derive_seeds(range(6), "noise"))
    for index in range(4):
        assert torch.equal(z[:, index], (1.0 - GRID[index]) * clean + GRID[index] * noise)
    keep = torch.arange(5).repeat(6, 1)
    rolled = rollout(
        student,
        z[:, 3],
        asked.condition,
        GRID[3:],
        keep,
        dynamics=dynamics,
        sample_seeds=asked.seeds,
    )
    assert torch.equal(z[:, 3:], rolled.z)
    assert torch.equal(queries.sigma.reshape(6, 8), GRID[:8].expand(6, 8))
    assert counting.num_evaluations == 6 * 4


def test_a_warm_start_from_exact_samples_has_the_states_of_the_exact_rollout():
    """Noised samples of a Gaussian teacher and its rollout's states agree in mean and spread."""
    teacher = GaussianField(torch.tensor(0.8), 0.5)
    seeds = list(range(4000))
    clean = teacher.exact(normal((1, 1, 1), derive_seeds(seeds, "clean")), 0.0)
    asked = StateRequest(
        student=teacher,
        condition=Condition({"row": torch.zeros(4000, 1)}),
        grid=shifted_grid(64, 3.0),
        shape=(1, 1, 1),
        seeds=seeds,
        clean=lambda kind: clean,
    )
    cold, warm = (
        OnPolicy(warm_start=start).collect(asked, "median", 1).z.double() for start in (0, 24)
    )
    assert abs(cold.mean() - warm.mean()) < 0.05
    assert abs(cold.std() / warm.std() - 1.0) < 0.05


def rounds_of(num_rounds, **changes):
    return OnPolicy().collect(replace(request(64, **changes), num_rounds=num_rounds), "low", 2)


def test_rounds_are_further_draws_on_one_rollout():
    counting = CountingField(student)
    queries = rounds_of(3, field=counting)
    assert queries.num_queries == 6
    rounds = queries.rounds(3)
    assert torch.equal(rounds[0].z, rounds_of(1).z)
    index = torch.stack([part.index.reshape(64, 2) for part in rounds])
    assert counting.num_evaluations == index.amax(dim=(0, 2)).sum()
    for part in rounds:
        assert part.num_queries == 2
        assert part.num_samples == 64
        assert torch.equal(part.sigma, GRID[part.index])
        shift = torch.arange(64.0).repeat_interleave(2)
        assert torch.equal(part.condition.tensors["shift"].flatten(), shift)
    assert len({tuple(part.index.tolist()) for part in rounds}) == 3
    path = rollout(student, request(64).noise(), request(64).condition, GRID, index[2])
    assert torch.equal(rounds[2].z, path.z.flatten(0, 1))
    assert queries.rounds(1) == [queries]
    with pytest.raises(ValueError, match="do not make 4 equal rounds"):
        queries.rounds(4)


def test_joined_states_are_the_whole_again():
    queries = OnPolicy(Sde(0.5)).collect(request(), "uniform", 2, successors=True)
    joined = Queries.cat(queries.parts([1, 3, 2]))
    for name in ("z", "sigma", "sigma_next", "index", "z_next"):
        assert torch.equal(getattr(joined, name), getattr(queries, name))
    assert torch.equal(joined.condition.tensors["shift"], queries.condition.tensors["shift"])
    assert joined.data_velocity is None
    with pytest.raises(ValueError, match="one K"):
        Queries.cat([queries, OnPolicy().collect(request(), "uniform", 2)])


def test_parts_are_consecutive_samples_with_all_their_rows():
    queries = OnPolicy().collect(request(), "uniform", 2)
    parts = queries.parts([1, 3, 2])
    assert [part.num_samples for part in parts] == [1, 3, 2]
    for name in ("z", "sigma", "sigma_next", "index"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(queries, name))
    with pytest.raises(ValueError, match="do not sum to 6"):
        queries.parts([1, 3])
