"""LoRA files: diffusers', PEFT's and Kohya's spellings read into one, every tensor accounted for.

| written by | a factor of module ``a.b`` is called | scale |
|---|---|---|
| diffusers | ``transformer.a.b.lora_A.weight`` | ``lora_adapter_metadata`` in the file |
| PEFT | ``base_model.model.a.b.lora_A.weight`` | ``adapter_config.json`` beside the file |
| Kohya | ``lora_unet_a_b.lora_down.weight`` | ``lora_unet_a_b.alpha`` |

A file that calls modules by the names of a model's original code is translated by the family first;
a tensor that its translation leaves out is an error, too.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.weights import read_json, read_tensors

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name by which stock pipelines find an adapter in a folder."""
PREFIX = "transformer."
METADATA = "lora_adapter_metadata"

_PEFT_FILE, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DOTTED = ("", PREFIX, "base_model.model.", "diffusion_model.")
_FLAT = ("lora_unet_", "lora_transformer_")
_FACTORS = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B"}
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<factor>lora_A|lora_B|lora_down|lora_up)(?:\.\w+)?\.weight|alpha)"
)
_UNSUPPORTED = ("use_dora", "lora_bias")
_DORA = ("dora_scale", "lora_magnitude_vector")

Translate = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class AdapterFile:
    """An adapter whose tensors all fit a network.

    Attributes:
        pairs: A [rank, in, ...] and B [out, rank, ...] by module; where modules have scales of
            their own, B holds the difference to the common one.
        rank: the rank of most modules.
        alpha: updates are alpha / rank * B A, with the same quotient for every module.
        layout: whose spelling the file has.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    alpha: float
    layout: str


def adapter_path(place: Path) -> Path:
    """Returns the file of an adapter that may be given as its folder.

    Raises:
        WeightsError: if a folder holds no adapter, or several.
    """
    if not place.is_dir():
        return place
    for name in (ADAPTER_FILE, _PEFT_FILE):
        if (place / name).is_file():
            return place / name
    found = sorted(place.glob("*.safetensors"))
    if len(found) > 1:
        raise WeightsError(f"{place}: holds {len(found)} safetensors files; name the adapter's")
    return found[0] if found else place / ADAPTER_FILE


def read_adapter(
    path: Path, modules: Mapping[str, nn.Module], network: str, translate: Translate | None = None
) -> AdapterFile:
    """Returns the adapter in ``path`` after every tensor was found to fit.

    Args:
        path: a safetensors file.
        modules: linear and convolution modules by name.
        network: what they belong to, for messages.
        translate: gives the tensors of a file in the original code's names in diffusers' names.

    Raises:
        WeightsError: if the file is missing or damaged, a tensor belongs to no module, is lost in
            translation or has another shape, or the file asks for another kind of update.
    """
    tensors, settings = read_tensors(path), _settings(path)
    if dora := [key for key in tensors if any(part in key for part in _DORA)]:
        raise WeightsError(f"{path}: {dora[0]} is DoRA's; such adapters are not supported")
    try:
        return _fitted(tensors, settings, modules, f"{path}", network)
    except WeightsError:
        if translate is None:
            raise
        translated = _translated(tensors, translate, path)
        if translated.keys() == tensors.keys():
            raise
        return _fitted(translated, settings, modules, f"{path} (translated)", network)


def _translated(
    tensors: Mapping[str, Tensor], translate: Translate, path: Path
) -> dict[str, Tensor]:
    """Returns what ``translate`` makes of a file, if it depends on every tensor of the file.

    Autograd tells: a factor without gradient in everything that came out was left out. A scale is
    used with the factors of its module.

    Raises:
        WeightsError: if the names mean nothing to ``translate``, or a tensor is lost.
    """
    factors = {
        key: value.detach().float().requires_grad_()
        for key, value in tensors.items()
        if not key.endswith(".alpha")
    }
    try:
        with torch.enable_grad():
            translated = translate({**tensors, **factors})
    except Exception as error:
        raise WeightsError(f"{path}: the names of its tensors mean nothing: {error}") from error
    parts = [value for value in translated.values() if value.requires_grad]
    ones = [torch.ones_like(part) for part in parts]
    grads = (
        torch.autograd.grad(parts, list(factors.values()), ones, allow_unused=True)
        if parts
        else [None] * len(factors)
    )
    lost = [key for key, grad in zip(factors, grads, strict=True) if grad is None]
    alphas = sorted(tensors.keys() - factors.keys() - translated.keys())
    lost += [
        key
        for key in alphas
        if not any(factor.startswith(key.removesuffix("alpha")) for factor in factors)
    ]
    if lost:
        raise WeightsError(
            f"{path}: {len(lost)} of its tensors have no place under diffusers' names, such as "
            f"{lost[0]}"
        )
    return {key: value.detach() for key, value in translated.items()}


def _fitted(
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any] | None,
    modules: Mapping[str, nn.Module],
    place: str,
    network: str,
) -> AdapterFile:
    flat = {name.replace(".", "_"): name for name in modules}
    found: dict[str, dict[str, Tensor]] = {}
    layouts: Counter[str] = Counter()
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        module, layout = _module(match["module"], modules, flat) if match else (None, "")
        if match is None or module is None:
            raise WeightsError(f"{place}: {key} belongs to no module of {network}")
        part = _FACTORS[match["factor"]] if match["factor"] else "alpha"
        if part in found.setdefault(module, {}):
            raise WeightsError(f"{place}: {module} has two tensors {part}")
        found[module][part] = value
        layouts[layout] += 1
    if not found:
        raise WeightsError(f"{place}: holds no adapter")
    for module, parts in found.items():
        shapes = {
            letter: tuple(parts[letter].shape) if letter in parts else None for letter in "AB"
        }
        expected = _shapes(modules[module], (shapes["A"] or (0,))[0])
        if shapes != expected:
            raise WeightsError(f"{place}: {module} needs factors {expected}, found {shapes}")
    ranks = {module: len(parts["A"]) for module, parts in found.items()}
    scales = {
        module: float(parts["alpha"]) / ranks[module]
        if "alpha" in parts
        else _scale(module, ranks[module], settings, place)
        for module, parts in found.items()
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    common = Counter(scales.values()).most_common(1)[0][0]
    pairs = {
        module: (
            parts["A"],
            parts["B"] if scales[module] == common else parts["B"] * (scales[module] / common),
        )
        for module, parts in found.items()
    }
    return AdapterFile(pairs, rank, common * rank, layouts.most_common(1)[0][0])


def _module(
    name: str, modules: Mapping[str, nn.Module], flat: Mapping[str, str]
) -> tuple[str | None, str]:
    """Returns the module that a file's ``name`` stands for, and whose spelling that is."""
    for prefix in _DOTTED:
        if name.startswith(prefix) and name.removeprefix(prefix) in modules:
            layout = "peft" if prefix.startswith("base_model") else "diffusers"
            return name.removeprefix(prefix), layout
    for prefix in _FLAT:
        if name.startswith(prefix) and name.removeprefix(prefix) in flat:
            return flat[name.removeprefix(prefix)], "kohya"
    return None, ""


def _shapes(module: nn.Module, rank: int) -> dict[str, Sequence[int]]:
    """Returns the shapes of A and B for a linear or a convolution module."""
    if isinstance(module, nn.Conv2d):
        down = (rank, module.in_channels // module.groups, *module.kernel_size)
        return {"A": down, "B": (module.out_channels, rank, 1, 1)}
    assert isinstance(module, nn.Linear)
    return {"A": (rank, module.in_features), "B": (module.out_features, rank)}


def _settings(path: Path) -> dict[str, Any] | None:
    """Returns the arguments of ``peft.LoraConfig`` in or beside a file, if there are any.

    Raises:
        WeightsError: if they cannot be read or ask for another kind of update.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(METADATA)
    given: dict[str, Any]
    if text is not None:
        try:
            items = json.loads(text).items()
        except (ValueError, AttributeError) as error:
            raise WeightsError(
                f"{path}: the adapter's settings cannot be read: {error!r}"
            ) from error
        given = {key.removeprefix(PREFIX): value for key, value in items}
    elif path.name == _PEFT_FILE and (path.parent / _PEFT_CONFIG).is_file():
        given = read_json(path.parent / _PEFT_CONFIG)
    else:
        return None
    if unknown := [name for name in _UNSUPPORTED if given.get(name)]:
        raise WeightsError(f"{path}: adapters with {', '.join(unknown)} are not supported")
    return given


def _scale(module: str, rank: int, settings: Mapping[str, Any] | None, place: str) -> float:
    """Returns alpha / rank of a module; without settings it is 1, as in diffusers."""
    if settings is None:
        return 1.0
    try:
        alpha = float(settings["lora_alpha"])
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise WeightsError(f"{place}: the adapter's settings cannot be read: {error!r}") from error
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def unscaled(pairs: Mapping[str, tuple[Tensor, Tensor]], layout: str) -> AdapterFile:
    """Returns an adapter whose updates are B A for the factors of every module, as they are."""
    rank = Counter(len(down) for down, _ in pairs.values()).most_common(1)[0][0]
    return AdapterFile(pairs, rank, float(rank), layout)


def merged_pairs(
    files: Sequence[tuple[AdapterFile, float]], rank: int | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Returns factors of the weighted sum of adapters, at most ``rank`` wide, and what they keep.

    The sum of updates of ranks r_i has rank sum r_i at most: factors side by side are exact, and
    beyond ``rank`` the largest singular values are kept.

    Args:
        files: adapters with their weights.
        rank: width of the result, ``None``: as wide as all of them together; updates are B A,
            without a further scale.

    Returns:
        A and B by module, and the share of the sum's squared norm that they hold, 1 if exact.
    """
    names = dict.fromkeys(name for file, _ in files for name in file.pairs)
    pairs, kept, total = {}, 0.0, 0.0
    for name in names:
        parts = [(f.pairs[name], w * f.alpha / f.rank) for f, w in files if name in f.pairs]
        down = torch.cat([a.float() for (a, _), _ in parts])
        up = torch.cat([b.float() * scale for (_, b), scale in parts], dim=1)
        if rank is None or len(down) <= rank:
            pairs[name] = (down, up)
            continue
        # The update is Qb Rb Ra^T Qa^T, so its singular values are those of a small matrix.
        q_down, r_down = torch.linalg.qr(down.flatten(1).T)
        q_up, r_up = torch.linalg.qr(up.flatten(1))
        u, s, v = torch.linalg.svd(r_up @ r_down.T)
        root = s[:rank].sqrt()
        new_down = (root[:, None] * v[:rank]) @ q_down.T
        new_up = q_up @ (u[:, :rank] * root)
        pairs[name] = (
            new_down.reshape(-1, *down.shape[1:]),
            new_up.reshape(up.shape[0], -1, *up.shape[2:]),
        )
        total += float(s.square().sum())
        kept += float(s[:rank].square().sum())
    return pairs, kept / total if total else 1.0
