"""Checkpoints that are whole or not there, and the moving average in closed form."""

import pytest
import torch
from torch import nn

from danceflow.errors import WeightsError
from danceflow.train.state import Ema, load_checkpoint, save_checkpoint

CONTENT = {"step": 3, "seconds": 1.5, "recent": [0.5], "weights": {"a": torch.arange(4.0)}}


def test_a_checkpoint_comes_back(tmp_path) -> None:
    path = tmp_path / "work" / "checkpoint.pt"
    save_checkpoint(path, CONTENT)
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert torch.equal(loaded["weights"]["a"], CONTENT["weights"]["a"])
    assert {k: v for k, v in loaded.items() if k != "weights"} == {
        k: v for k, v in CONTENT.items() if k != "weights"
    }
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_no_checkpoint_is_no_error(tmp_path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.pt") is None


def test_a_write_that_fails_leaves_the_former_checkpoint(tmp_path, monkeypatch) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, CONTENT)
    before = path.read_bytes()

    def failing(_content, file) -> None:
        file.write(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(RuntimeError, match="killed"):
        save_checkpoint(path, {"step": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda _: b"", lambda _: b"x" * 99])
def test_a_damaged_checkpoint_is_told_with_the_way_out(tmp_path, damage) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, CONTENT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"checkpoint.pt: .* delete it to start over"):
        load_checkpoint(path)


def moved(values: list[float], decay: float) -> Ema:
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(values[0])
    ema = Ema(module, decay)
    for value in values[1:]:
        with torch.no_grad():
            module.weight.fill_(value)
        ema.update(module)
    return ema


def test_the_average_is_the_weighted_sum_of_all_values() -> None:
    values, decay = [1.0, 2.0, -1.0, 4.0, 0.5], 0.3
    # The decay of update n is min(decay, (1 + n) / (10 + n)): 2/11, 3/12, 4/13, then 0.3 caps it.
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, len(values))]
    assert decays[:2] == [2 / 11, 0.25]
    assert decays[2:] == [0.3, 0.3]
    expected = values[0]
    for value, share in zip(values[1:], decays, strict=True):
        expected = share * expected + (1 - share) * value
    assert float(moved(values, decay).values["weight"]) == pytest.approx(expected, rel=1e-6)


def test_a_decay_of_zero_follows_exactly() -> None:
    assert float(moved([1.0, 2.0, -3.0], 0.0).values["weight"]) == -3.0


def test_the_average_is_copied_into_the_module_and_stays_apart() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, 0.9)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():
        for param in module.parameters():
            param += 1
    assert all(torch.equal(ema.values[name], value) for name, value in start.items())
    ema.copy_to(module)
    assert all(torch.equal(p, start[name]) for name, p in module.named_parameters())


def test_frozen_parameters_are_not_averaged() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    assert Ema(module, 0.9).values.keys() == {"weight"}


def test_an_average_goes_on_where_it_was_saved(tmp_path) -> None:
    ema = moved([1.0, 2.0], 0.9)
    save_checkpoint(tmp_path / "ema.pt", ema.state_dict())
    module = nn.Linear(1, 1, bias=False)
    resumed = Ema(module, 0.9)
    state = load_checkpoint(tmp_path / "ema.pt")
    assert state is not None
    resumed.load_state_dict(state)
    for one in (ema, resumed):
        one.update(module)
    assert torch.equal(ema.values["weight"], resumed.values["weight"])


def test_the_average_of_another_network_is_told() -> None:
    with pytest.raises(WeightsError, match="of another network: first bias"):
        Ema(nn.Linear(1, 1), 0.9).load_state_dict(moved([1.0], 0.9).state_dict())
