"""A network whose blocks hold fewer bits: as near as is said, smaller, and never trained."""

from pathlib import Path

import pytest
import torch
from tiny_models import PROMPTS, awake, small_sd3
from torch import nn

from danceflow.errors import WeightsError
from danceflow.fields import normal
from danceflow.models import quantised as room
from danceflow.models.memory import Memory
from danceflow.models.quantised import Base, is_quantised, quantised

ROUGH: dict[Base, float] = {"int8": 0.01, "nf4": 0.1}
"""Of a velocity of random weights, relative to its length."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    family = small_sd3("velocity")
    family.save_backbone(awake(family), folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("base", ROUGH)
def test_velocities_are_those_of_the_base(saved: Path, base: Base, dtype: str) -> None:
    family = small_sd3("velocity")
    z, sigma = normal(family.latent_shape, [1, 2]), torch.tensor([0.3, 0.8])
    condition = family.condition(PROMPTS, normal(family.latent_shape, [3, 4]))
    exact = family.field(Memory().load(family, saved))(z, sigma, condition)
    network = Memory(dtype=dtype, base=base).load(family, saved, shared=True)
    found = family.field(network)(z, sigma, condition)
    assert 0 < (found - exact).norm() < ROUGH[base] * exact.norm()
    assert is_quantised(network)
    assert not any(param.requires_grad for param in network.parameters())


@pytest.mark.parametrize("base", ROUGH)
def test_a_network_in_memory_gives_what_its_file_gives(saved: Path, base: Base) -> None:
    family = small_sd3("velocity")
    z, sigma, condition = normal(family.latent_shape, [1]), torch.ones(1), family.condition(["a"])
    memory = Memory(base=base)
    of_file = memory.load(family, saved, shared=True)
    of_memory = memory.base_of(family, family.load_backbone(saved))
    found = [family.field(network)(z, sigma, condition) for network in (of_file, of_memory)]
    assert torch.equal(*found)


def test_only_what_adapters_stand_on_has_fewer_bits(saved: Path) -> None:
    family = small_sd3("velocity")
    assert not is_quantised(Memory(base="int8").load(family, saved))
    network = Memory(base="nf4").load(family, saved, shared=True)
    kinds = {name: type(m).__name__ for name, m in network.named_modules()}
    assert kinds["transformer_blocks.1.ff.net.2"] == "Linear4bit"
    assert kinds["proj_out"] == kinds["context_embedder"] == "Linear"


def test_a_missing_package_is_told_with_what_brings_it(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(room.PACKAGES, "nf4", "no_such_package")
    with pytest.raises(
        WeightsError, match=r"run\.base: nf4 needs no_such_package.*danceflow\[quant"
    ):
        Memory(base="nf4").load(small_sd3("velocity"), saved, shared=True)


def test_a_network_without_blocks_and_weights_of_another_are_refused() -> None:
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(WeightsError, match="has no repeated blocks"):
        quantised(plain, plain.state_dict(), "int8", torch.float32, "cpu", "here")
    with pytest.raises(WeightsError, match=r"here: 2 tensors do not match.*0\.bias"):
        quantised(plain, {}, "int8", torch.float32, "cpu", "here")
