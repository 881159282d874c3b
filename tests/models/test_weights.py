"""Weights on their way to disk: the library's own files, without a second network beside them."""

import copy
from pathlib import Path

import pytest
import torch
from allocated import Allocated
from safetensors.torch import load_file, save_file
from tiny_models import awake, small_sd3, stock_pipeline
from tiny_stock import zimage_pipeline
from torch import nn

from danceflow.errors import WeightsError
from danceflow.models.weights import cast_copy, read_state, read_tensors, save_half


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    stock, language = stock_pipeline(), zimage_pipeline().text_encoder
    return {
        "pixels": awake(small_sd3()),
        "bfloat16": awake(small_sd3()).to(torch.bfloat16),
        "transformer": stock.transformer,
        "clip": stock.text_encoder,
        "t5": stock.text_encoder_3,  # with a tensor that it shares with itself
        "language": language,
    }


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


NAMES = ["pixels", "bfloat16", "transformer", "clip", "t5", "language"]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_a_network_that_was_cast_whole(networks, name, tmp_path: Path) -> None:
    copy.deepcopy(networks[name]).half().save_pretrained(tmp_path / "whole")
    save_half(networks[name], tmp_path / "half")
    files = files_of(tmp_path / "whole")
    assert any(file.endswith(".safetensors") for file in files)
    assert files_of(tmp_path / "half") == files


@pytest.mark.parametrize("name", NAMES)
def test_saving_needs_no_second_network(networks, name, tmp_path: Path) -> None:
    network = networks[name]
    before = {key: (value.dtype, value.clone()) for key, value in network.state_dict().items()}
    with Allocated(network) as allocated:
        save_half(network, tmp_path)
    half = allocated.num_bytes(torch.float16)
    assert half > 0
    # A table of frequencies beside the tensors of a module is copied as it is.
    assert allocated.num_bytes(torch.float32) + allocated.num_bytes(torch.bfloat16) < half / 100
    for key, value in network.state_dict().items():
        assert value.dtype == before[key][0]
        assert torch.equal(value, before[key][1])


def test_a_copy_is_in_main_memory_and_its_own() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).to(torch.bfloat16)
    network[1].weight = network[0].bias
    network[0].weight.requires_grad_(False)
    found = cast_copy(network, torch.float32)
    assert found[1].weight is found[0].bias
    assert [p.requires_grad for p in found.parameters()] == [False, True, True]
    assert found[1].num_batches_tracked.dtype == torch.long
    for key, value in found.state_dict().items():
        own = network.state_dict()[key]
        assert torch.equal(value, own.to(value.dtype))
        assert value.data_ptr() != own.data_ptr()
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    meta = copy.deepcopy(network).to("meta")
    with pytest.raises(NotImplementedError, match="meta"):  # each tensor is moved, none stays
        cast_copy(meta, torch.float32)


def test_a_copy_that_is_read_alone_shares_what_needs_no_cast() -> None:
    network = nn.Sequential(nn.Linear(2, 3).half(), nn.Linear(3, 2))
    found = cast_copy(network, torch.float16, share=True)
    assert found[0].weight.data_ptr() == network[0].weight.data_ptr()
    assert found[1].weight.dtype == torch.float16
    assert network[1].weight.dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2]
)
def test_a_tensor_that_is_not_finite_is_named_in_every_dtype(tmp_path: Path, dtype) -> None:
    path = tmp_path / "x.safetensors"
    whole = {"a": torch.ones(3).to(dtype), "count": torch.tensor(3)}
    save_file(whole, path)
    assert read_tensors(path).keys() == whole.keys()
    save_file({**whole, "b.c": torch.tensor([1.0, float("inf"), float("nan")]).to(dtype)}, path)
    with pytest.raises(WeightsError, match=r"x.safetensors: b.c holds NaN or infinity \(2 of 3 "):
        read_tensors(path)


def test_every_shard_is_looked_at(tmp_path: Path) -> None:
    network = awake(small_sd3())
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*-of-*.safetensors"))
    assert len(shards) > 2
    assert read_state(tmp_path).keys() == network.state_dict().keys()
    tensors = load_file(shards[-1])
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, shards[-1])
    with pytest.raises(WeightsError, match=f"{shards[-1].name}: {name} holds NaN or infinity"):
        read_state(tmp_path)
