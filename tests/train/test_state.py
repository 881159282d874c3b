"""Checkpoints that are whole or not there, and the moving average in closed form."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from danceflow.errors import WeightsError
from danceflow.train.state import Ema, load_checkpoint, save_checkpoint

CONTENT = {"step": 3, "seconds": 1.5, "recent": [0.5], "weights": {"a": torch.arange(4.0)}}


def test_a_checkpoint_comes_back(tmp_path) -> None:
    path = tmp_path / "work" / "checkpoint.safetensors"
    save_checkpoint(path, CONTENT)
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert torch.equal(loaded["weights"]["a"], CONTENT["weights"]["a"])
    assert {k: v for k, v in loaded.items() if k != "weights"} == {
        k: v for k, v in CONTENT.items() if k != "weights"
    }
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.parametrize("length", range(0, 64, 8))
def test_tensors_begin_where_torch_lets_its_own_begin(tmp_path, length: int) -> None:
    """However long the plain data is: rounding in products of matrices depends on it."""
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"text": "x" * length, "a": torch.ones(3), "b": torch.ones(5)})
    loaded = load_checkpoint(path)
    assert loaded is not None
    for name in ("a", "b"):
        assert loaded[name].data_ptr() % 64 == 0


def test_no_checkpoint_is_no_error(tmp_path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.safetensors") is None


def test_a_write_that_fails_leaves_the_former_checkpoint(tmp_path, monkeypatch) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, CONTENT)
    before = path.read_bytes()

    def failing(_tensors, file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(safetensors.torch, "save_file", failing)
    with pytest.raises(RuntimeError, match="killed"):
        save_checkpoint(path, {"step": 4})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda _: b"",
        lambda _: b"x" * 99,
        lambda b: b + b"x",
        lambda b: flipped(b, len(b) - 1),  # within a tensor
        lambda b: flipped(b, b.index(b"seconds")),
        lambda b: flipped(b, 3),
    ],
)
def test_a_damaged_checkpoint_is_put_aside_and_told(tmp_path, damage, caplog) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, CONTENT)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert load_checkpoint(path) is None
    assert f"{path}: the checkpoint is damaged" in caplog.text
    assert (tmp_path / "checkpoint.safetensors.damaged").read_bytes() == damaged
    assert not path.exists()
    save_checkpoint(path, CONTENT)
    assert load_checkpoint(path) is not None


def test_everything_comes_back_as_it_was(tmp_path) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    tensors = [one, one, one.T, one[0], torch.tensor(3), torch.ones(0, 2), one.bfloat16(), one > 2]
    content = {
        "tensors": tensors,
        "by number": {0: {"step": torch.tensor(1.0)}, 1: {}},
        "plain": [None, True, 0.1, 1e-320, float("inf"), 2**70, "\u00fc", (1, [2], ())],
    }
    save_checkpoint(tmp_path / "c", content)
    found = load_checkpoint(tmp_path / "c")
    assert found is not None
    assert found["plain"] == content["plain"]
    assert found["by number"].keys() == {0, 1}
    for before, after in zip(tensors, found["tensors"], strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "d", {"a": object()})
    assert b"pickle" not in (tmp_path / "c").read_bytes()


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
