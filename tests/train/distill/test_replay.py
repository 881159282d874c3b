"""Replay: every state once, none too old, many rollouts in a batch, nothing lost on resume."""

import io
from dataclasses import replace

import pytest
import torch

from danceflow.fields import Condition, Ode, Queries, StateRequest, seed_for, shifted_grid
from danceflow.method import resolve_method
from danceflow.train.distill.replay import Replay, Visits

GRID = shifted_grid(8, 3.0)
CPU = torch.device("cpu")


def rolled_out(step, num_rounds, sizes):
    """Parts whose condition tells (step, sample) of every state."""
    count = sum(sizes.values())
    label = torch.tensor([[step, sample] for sample in range(count)])
    queries = resolve_method("danceopd", updates_per_rollout=num_rounds).collect(
        StateRequest(
            student=lambda z, s, c: 0.5 * z,
            condition=Condition({"label": label}),
            grid=GRID,
            shape=(1, 2, 2),
            seeds=[seed_for(0, "test", step, sample) for sample in range(count)],
            clean=lambda kind: pytest.fail("no clean state is needed"),
        )
    )
    share = 1.0 / len(sizes)
    return [
        Visits(name, share, part)
        for name, part in zip(sizes, queries.parts(list(sizes.values())), strict=True)
    ]


def labels(part):
    return [tuple(row) for row in part.queries.condition.tensors["label"].tolist()]


def test_without_replay_an_update_trains_on_its_own_rollout():
    replay = Replay(1, CPU, Ode())
    for step in range(3):
        fresh = rolled_out(step, 1, {"a": 3, "b": 2})
        parts = replay.exchange(fresh)
        assert [part.queries for part in parts] == [part.queries for part in fresh]
        assert [part.share for part in parts] == [0.5, 0.5]
        assert replay.state_dict() == []


@pytest.mark.parametrize("num_rounds", [2, 4])
def test_every_state_is_trained_on_once_and_in_time(num_rounds):
    replay = Replay(num_rounds, CPU, Ode())
    seen, due = [], []
    for step in range(10):
        fresh = rolled_out(step, num_rounds, {"a": 3, "b": 2})
        for part in fresh:
            rounds = part.queries.rounds(num_rounds)
            due += [z for later, q in enumerate(rounds) for z in q.z if step + later < 10]
        parts = replay.exchange(fresh)
        ages = [step - label[0] for part in parts for label in labels(part)]
        rollouts = min(step + 1, num_rounds)
        assert sorted(set(ages)) == list(range(rollouts))
        assert len(ages) == 5 * rollouts
        assert sum(part.share for part in parts) == pytest.approx(1.0)
        assert [part.capability for part in parts] == ["a", "b"]
        seen += [z for part in parts for z in part.queries.z]
    one, other = (sorted(tuple(z.flatten().tolist()) for z in zs) for zs in (seen, due))
    assert one == other


def test_rollouts_of_different_capabilities_have_the_same_weight():
    replay = Replay(3, CPU, Ode())
    for step, name in enumerate("aba"):
        parts = replay.exchange(rolled_out(step, 3, {name: 4}))
    assert {part.capability: part.share for part in parts} == pytest.approx(
        {"a": 2 / 3, "b": 1 / 3}
    )
    assert {part.capability: part.queries.num_samples for part in parts} == {"a": 8, "b": 4}


def test_what_waits_survives_a_checkpoint_and_takes_no_more_room_than_it_needs():
    replay, other = Replay(3, CPU, Ode()), Replay(3, CPU, Ode())
    sizes = {"a": 3, "b": 2}
    for step in range(4):
        replay.exchange(rolled_out(step, 3, sizes))
    file = io.BytesIO()
    torch.save(replay.state_dict(), file)
    # 3 waiting rounds (1 + 2) of 5 states with 4 + 3 numbers and a label each, not whole rollouts.
    assert file.tell() < 40_000
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for step in range(4, 8):
        fresh = rolled_out(step, 3, sizes)
        one, two = replay.exchange(fresh), other.exchange(fresh)
        for first, second in zip(one, two, strict=True):
            assert replace(first, queries=None) == replace(second, queries=None)
            assert labels(first) == labels(second)
            for name in ("z", "sigma", "sigma_next", "index"):
                assert torch.equal(getattr(first.queries, name), getattr(second.queries, name))
            assert first.queries.num_queries == second.queries.num_queries == 1
            assert isinstance(first.queries, Queries)
