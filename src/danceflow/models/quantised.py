"""Frozen networks whose blocks are held in fewer bits: int8 by torchao, nf4 by bitsandbytes.

The linear layers of the repeated blocks are quantised, weights only, by diffusers' own quantisers
and configurations; what stands before and behind the blocks keeps the dtype of the run. Weights are
read one by one from where they lie, so that no network of full size is made on the way.

``from_pretrained`` would do the same, but for nf4 it asks for a GPU, which the quantiser itself
does not need.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.weights import require_same_tensors

Base = Literal["float", "int8", "nf4"]
_REPACKS = "support_avx512bf16_for_cpu"
PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}


def quantised(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    base: Base,
    dtype: torch.dtype,
    device: str,
    place: Path | str,
) -> nn.Module:
    """Return ``network`` on ``device``, frozen, with weights that are quantised in its blocks.

    Args:
        network: of diffusers, without weights (its parameters are on the ``meta`` device).
        weights: all its tensors.
        base: how they are held.
        dtype: of what is not quantised, and of what the network computes with.
        device: where it computes.
        place: where the weights came from, for messages.

    Raises:
        WeightsError: the package that does it is not installed, the network has no blocks, or the
            weights do not fit.
    """
    require_same_tensors(network.state_dict(), weights, place)
    quantiser = _quantiser(network, base, dtype)
    quantiser.preprocess_model(network, device_map=None)
    rest = {}
    for name, stored in weights.items():
        if quantiser.check_if_quantized_param(network, stored, name, weights):
            value = stored.to(dtype)
            quantiser.create_quantized_param(network, value, name, device, weights, [])
        else:
            rest[name] = stored
    _fill(network, rest, dtype, device)
    quantiser.postprocess_model(network)
    for module in network.modules():
        # On some processors bitsandbytes repacks weights at the first pass without gradient, for
        # bfloat16 alone and for some shapes alone. Passes with gradient would then see others.
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
    network.hf_quantizer = quantiser
    return network.eval().requires_grad_(False)


def filled(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: str,
    place: Path | str,
) -> nn.Module:
    """Return ``network``, which is without weights, with these as ``dtype`` on ``device``.

    Raises:
        WeightsError: the weights do not fit; ``place`` names them.
    """
    require_same_tensors(network.state_dict(), weights, place)
    _fill(network, weights, dtype, device)
    return network


def _fill(
    network: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, device: str
) -> None:
    from accelerate.utils import set_module_tensor_to_device

    for name, stored in weights.items():
        kept = dtype if stored.is_floating_point() else stored.dtype
        set_module_tensor_to_device(network, name, device, value=stored, dtype=kept)


def is_quantised(network: nn.Module) -> bool:
    """Return whether the blocks of ``network`` are quantised."""
    return bool(getattr(network, "is_quantized", False))


def _quantiser(network: nn.Module, base: Base, dtype: torch.dtype) -> Any:
    from importlib.util import find_spec

    from diffusers import BitsAndBytesConfig, TorchAoConfig
    from diffusers.quantizers import DiffusersAutoQuantizer

    if find_spec(PACKAGES[base]) is None:
        raise WeightsError(
            f"run.base: {base} needs {PACKAGES[base]}, which is not installed: "
            "`pip install 'danceflow[quant]'`"
        )
    children = dict(network.named_children())
    kept = [name for name, child in children.items() if not isinstance(child, nn.ModuleList)]
    if len(kept) == len(children):
        raise WeightsError(f"run.base: {base}: {type(network).__name__} has no repeated blocks")
    if base == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=kept,
        )
    return DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
