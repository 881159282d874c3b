"""Weights on disk: read whole or not at all, written as float16."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
"""Lies beside the weights of a whole network, and not beside an adapter's."""
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


def holds_network(folder: Path) -> bool:
    """Return whether a folder holds a whole network, in diffusers' layout."""
    return (folder / CONFIG_FILE).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise ``WeightsError`` if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds no settings")
    return content


def read_tensors(path: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Args:
        path: the file.
        wanted: whether a tensor of this name is read; ``None``: all are.

    Raises:
        WeightsError: if the file is missing, truncated or damaged, or a value is not finite.
    """
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with safe_open(path, "pt") as file:
            for name in filter(wanted or bool, file.keys()):
                tensors[name] = file.get_tensor(name)
                require_finite_tensor(tensors[name], name, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: weights are missing or truncated: {error}") from error
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the head of a safetensors file by name.

    Raises:
        WeightsError: if the file is missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: weights are missing or truncated: {error}") from error


def require_finite_tensor(value: Tensor, name: str, place: Path) -> None:
    """Raise ``WeightsError`` if a tensor that was read holds NaN or infinity."""
    if not value.is_floating_point() or not value.numel():
        return
    wide = value.float() if value.element_size() == 1 else value  # 8-bit floats cannot be asked
    ends = torch.stack(wide.aminmax())  # a tenth of the time that asking every value takes
    if not bool(ends.isfinite().all()):
        finite = wide.isfinite()
        raise WeightsError(
            f"{place}: {name} holds NaN or infinity ({int((~finite).sum())} of {value.numel()} "
            "values); these weights are damaged, or their training diverged"
        )


def read_state(folder: Path) -> dict[str, Tensor]:
    """Return the state dict saved in ``folder`` by diffusers, in one file or in shards.

    Raises:
        WeightsError: if a file is missing, truncated or damaged.
    """
    return {
        name: value
        for shard in weight_files(folder)
        for name, value in read_tensors(folder / shard).items()
    }


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files in which diffusers saved the weights in ``folder``.

    Raises:
        WeightsError: if the list of several files cannot be read.
    """
    if not (folder / INDEX_FILE).is_file():
        return [WEIGHTS_FILE]
    return sorted(set(read_json(folder / INDEX_FILE).get("weight_map", {}).values()))


def load_state(module: nn.Module, state: Mapping[str, Tensor], place: Path) -> None:
    """Copy ``state`` into ``module`` after every name and shape was found to agree.

    Args:
        module: the network, of any floating dtype.
        state: its tensors; they are cast to the network's dtype.
        place: where ``state`` came from, for the message.

    Raises:
        WeightsError: naming the first tensor that is missing, unknown or of another shape.
    """
    require_same_tensors(module.state_dict(), state, place)
    module.load_state_dict(dict(state))


def require_same_tensors(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], place: Path | str
) -> None:
    """Raise ``WeightsError`` that names the first tensor that is missing, unknown or odd in shape.

    Args:
        own: the network's tensors, which may be without values.
        state: those that were found.
        place: where they were found.
    """
    expected = {name: tuple(value.shape) for name, value in own.items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if expected != found:
        odd = sorted(n for n in expected | found if expected.get(n) != found.get(n))
        raise WeightsError(
            f"{place}: {len(odd)} tensors do not match the configured network; the first is "
            f"{odd[0]}: expected {expected.get(odd[0])}, found {found.get(odd[0])}"
        )


def load_pretrained(network_class: Any, folder: Path, **dtype: torch.dtype) -> nn.Module:
    """Return a ``diffusers`` or ``transformers`` network from its own folder.

    Their ``from_pretrained`` fills missing tensors with random numbers; here that is an error.

    Args:
        network_class: its class.
        folder: with ``config.json`` and the weights.
        dtype: how the library spells the dtype, ``dtype=...`` or ``torch_dtype=...``.

    Raises:
        WeightsError: if a tensor is missing, of another shape or not finite, or a file cannot be
            read.
    """
    if not holds_network(folder):
        raise WeightsError(f"{folder / 'config.json'}: this file of the model is missing")
    try:
        network, info = network_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **dtype
        )
    except Exception as error:
        raise WeightsError(f"{folder}: the weights cannot be read: {error}") from error
    for problem in ("missing", "mismatched"):
        if names := sorted(map(str, info[f"{problem}_keys"])):
            raise WeightsError(f"{folder}: {len(names)} tensors are {problem}, first {names[0]}")
    for name, value in network.state_dict().items():
        require_finite_tensor(value, name, folder)
    loaded: nn.Module = network
    return loaded


def cast_copy(
    module: nn.Module,
    dtype: torch.dtype,
    change: Callable[[Tensor], Tensor] = Tensor.detach,
    *,
    share: bool = False,
) -> nn.Module:
    """Return a copy of ``module`` in main memory, its floating tensors as ``dtype``.

    Tensors are cast and moved one by one: no second network is held in the dtype or on the device
    of ``module``. Tensors that it shares with itself are shared in the copy.

    Args:
        module: stays as and where it is.
        dtype: of the copy.
        change: gives the value to cast for a tensor of ``module``.
        share: whether tensors that need no cast and no move are not copied: the copy is read only.
    """

    def cast(tensor: Tensor) -> Tensor:
        kept = dtype if tensor.is_floating_point() else tensor.dtype
        return change(tensor).detach().to("cpu", kept, copy=not share)

    # What is in the memo, deepcopy takes in place of a copy of its own.
    copies: dict[int, Any] = {id(buffer): cast(buffer) for buffer in module.buffers()}
    for param in module.parameters():
        copies[id(param)] = nn.Parameter(cast(param), requires_grad=param.requires_grad)
    return copy.deepcopy(module, copies)


def save_half(module: nn.Module, folder: Path) -> None:
    """Write a float16 copy of a network in its library's own format.

    Half the size, and every value that training moved survives. The copy is made in main memory,
    wherever the network is.

    Raises:
        WeightsError: if a weight is not finite or outside float16's range.
    """
    half = cast_copy(module, torch.float16, share=True)
    for name, value in half.state_dict().items():
        if not bool(value.isfinite().all()):
            raise WeightsError(f"{folder}: {name} holds values that float16 cannot")
    half.save_pretrained(folder)  # type: ignore[operator]
