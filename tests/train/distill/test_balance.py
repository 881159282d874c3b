"""Loss normalisation: equal sizes, a product of 1, off unless asked for."""

import math

import pytest
import torch

from danceflow.train.distill.balance import LossBalance

LOSSES = {"t2i": 8.0, "local": 0.5, "global": 2.0}


def fed(balance, updates=1, losses=LOSSES):
    for _ in range(updates):
        for name, loss in losses.items():
            balance.add(name, torch.tensor([0.5 * loss, 1.5 * loss]))
        balance.close_update(balance.sums())
    return balance


def test_weighted_losses_have_one_size_and_the_weights_product_is_one():
    balance = fed(LossBalance([*LOSSES], 0.9), updates=3)
    weights = {name: balance.weight(name) for name in LOSSES}
    assert math.prod(weights.values()) == pytest.approx(1.0)
    assert {n: weights[n] * LOSSES[n] for n in LOSSES} == pytest.approx(dict.fromkeys(LOSSES, 2.0))


def test_a_single_capability_is_never_reweighted():
    assert fed(LossBalance(["t2i"], 0.9), losses={"t2i": 8.0}).weight("t2i") == 1.0


def test_weights_are_one_until_every_capability_was_seen():
    balance = fed(LossBalance([*LOSSES], 0.9), losses={"t2i": 8.0, "local": 0.5})
    assert [balance.weight(name) for name in LOSSES] == [1.0] * 3
    balance.add("global", torch.tensor([2.0]))
    assert balance.weight("t2i") == 1.0, "weights change between updates, never within one"
    balance.close_update(balance.sums())
    assert balance.weight("t2i") == pytest.approx(0.25)


def test_the_mean_runs_and_counts_every_row_alike():
    balance = LossBalance(["a", "b"], 0.75)
    balance.add("a", torch.tensor([1.0]))
    balance.add("a", torch.tensor([4.0, 4.0]))
    balance.add("b", torch.tensor([1.0]))
    balance.close_update(balance.sums())
    assert balance.state_dict() == pytest.approx({"a": 3.0, "b": 1.0})
    balance.add("a", torch.tensor([7.0]))
    balance.close_update(balance.sums())
    assert balance.state_dict() == pytest.approx({"a": 4.0, "b": 1.0})


def test_it_is_off_without_a_decay():
    balance = fed(LossBalance([*LOSSES], None), updates=2)
    assert [balance.weight(name) for name in LOSSES] == [1.0] * 3
    assert balance.state_dict() == {}


def test_it_goes_on_where_it_was():
    one, other = fed(LossBalance([*LOSSES], 0.9)), LossBalance([*LOSSES], 0.9)
    other.load_state_dict(one.state_dict())
    later = {name: loss * loss for name, loss in LOSSES.items()}
    assert fed(one, losses=later).state_dict() == fed(other, losses=later).state_dict()
