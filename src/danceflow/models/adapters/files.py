"""LoRA files: diffusers', PEFT's and Kohya's spellings read into one, every tensor accounted for.

| written by | a factor of module ``a.b`` is called |
|---|---|
| diffusers | ``transformer.a.b.lora_A.weight`` |
| PEFT | ``base_model.model.a.b.lora_A.weight`` |
| Kohya | ``lora_unet_a_b.lora_down.weight`` |

Scales are read where ``adapter_scales`` tells, and taken into the factors before all else; LoHa
and LoKr are made factors of a LoRA (``kinds``). A file that calls modules by the names of a model's
original code is translated by the family first; a tensor that its translation leaves out is an
error, too.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.models.adapters.kinds import (
    DORA,
    LORA,
    Magnitudes,
    as_lora,
    kinds_of,
    length_keys,
    without_magnitudes,
)
from danceflow.models.adapters.scales import (
    PEFT_FILE,
    Stated,
    module_scale,
    require_own_settings,
    stated_scales,
)
from danceflow.models.weights import read_metadata, read_tensors

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""The name by which stock pipelines find an adapter in a folder."""
PREFIX = "transformer."

_DOTTED = ("", PREFIX, "base_model.model.", "diffusion_model.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
_FACTORS = {"lora_A": "A", "lora_B": "B", "lora_down": "A", "lora_up": "B"}
_KEY = re.compile(
    r"(?P<module>.+?)\.(?:(?P<factor>lora_A|lora_B|lora_down|lora_up)(?:\.\w+)?\.weight|alpha)"
)

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
        source: where alpha was found, nothing if it is said nowhere.
        kind: of its writer: ``LoRA``, or one that was made factors of a LoRA.
        lengths: DoRA's, by module, in the shape in which they multiply the weight: [out, 1, ...]
            for rows, [1, in, ...] for columns.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rank: int
    alpha: float
    layout: str
    source: str = ""
    kind: str = LORA
    lengths: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_wide(self) -> bool:
        """Whether its factors have more numbers than the weights that they change."""
        pairs = self.pairs.values()
        own = sum(down.numel() + up.numel() for down, up in pairs)
        return own > sum(down[0].numel() * len(up) for down, up in pairs)

    @property
    def needs_network(self) -> bool:
        """Whether it is better, or can only be, a network of its own than an adapter on a base."""
        return bool(self.lengths) or (self.kind != LORA and self.is_wide)


def adapter_path(place: Path) -> Path:
    """Return the file of an adapter that may be given as its folder.

    Raises:
        WeightsError: if a folder holds no adapter, or several.
    """
    if not place.is_dir():
        return place
    for name in (ADAPTER_FILE, PEFT_FILE):
        if (place / name).is_file():
            return place / name
    found = sorted(place.glob("*.safetensors"))
    if len(found) > 1:
        raise WeightsError(f"{place}: holds {len(found)} safetensors files; name the adapter's")
    return found[0] if found else place / ADAPTER_FILE


def read_adapter(
    path: Path, modules: Mapping[str, nn.Module], network: str, translate: Translate | None = None
) -> AdapterFile:
    """Return the adapter in ``path`` after every tensor was found to fit.

    Args:
        path: a safetensors file.
        modules: linear and convolution modules by name.
        network: what they belong to, for messages.
        translate: gives the tensors of a file in the original code's names in diffusers' names.

    Raises:
        WeightsError: if the file is missing or damaged, a tensor belongs to no module, is lost in
            translation or has another shape, or the file asks for another kind of update.
    """
    tensors = read_tensors(path)
    kinds = kinds_of(tensors)
    stated = stated_scales(path, read_metadata(path), kinds)
    names = _Names.of(modules)
    tensors, magnitudes = without_magnitudes(tensors, names.find, f"{path}")
    if any(item.has_lengths for item in stated):
        _require_lengths(tensors, magnitudes, path)
    tensors, common, source = _scaled(tensors, stated, names, path)
    lengths = length_keys(magnitudes, tensors, names.find, f"{path}")
    place = f"{path}"
    try:
        file = _fitted(tensors, common, source, names, place, network)
    except WeightsError:
        if translate is None:
            raise
        translated = _translated(tensors, translate, path)
        if translated.keys() == tensors.keys():
            raise
        if stated and (odd := [key for key in tensors if not _KEY.fullmatch(key)]):
            raise WeightsError(
                f"{path}: {odd[0]} has a spelling to which the scale of {stated[0].place} cannot "
                "be given"
            ) from None
        if lengths and not magnitudes.by_row:
            raise WeightsError(
                f"{path}: its magnitudes are columns' of the original code's modules, several of "
                "which are one there and not here; save it with magnitudes of rows"
            ) from None
        place = f"{path} (translated)"
        file = _fitted(translated, common, source, names, place, network)
        lengths = _translated(lengths, translate, path) if lengths else {}
    if lengths:
        fitted = _fitted(lengths, 1.0, "", names, place, network)
        file = replace(file, lengths=_lengths(fitted, by_row=magnitudes.by_row))
    if DORA in kinds:
        kinds -= {LORA}  # on which DoRA is
    return replace(file, kind=" and ".join(sorted(kinds)) or LORA)


def _require_lengths(tensors: Mapping[str, Tensor], magnitudes: Magnitudes, path: Path) -> None:
    """Raise ``WeightsError`` where DoRA is spoken of, and a module has no magnitude."""
    names = {match["module"] for key in tensors if (match := _KEY.fullmatch(key))}
    if lacking := sorted(names - magnitudes.lengths.keys()):
        raise WeightsError(
            f"{path}: its settings say use_dora, but {len(lacking)} of its modules have no "
            f"magnitude, such as {lacking[0]}"
        )


def _lengths(file: AdapterFile, *, by_row: bool) -> dict[str, Tensor]:
    """Return magnitudes by module, in the shape in which they multiply its weight."""
    found = {}
    for module, (down, up) in file.pairs.items():
        ones = [1] * (down.ndim - 2)  # behind rows and columns, of a convolution's kernel
        kept = up.reshape(-1, 1) if by_row else down.reshape(*down.shape[:2], -1)[..., 0]
        found[module] = kept.reshape(*kept.shape, *ones)
    return found


@dataclass(frozen=True)
class _Names:
    """The modules of a network under every name that a file may have for them."""

    modules: Mapping[str, nn.Module]
    flat: Mapping[str, str]

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module]) -> "_Names":
        return cls(modules, {name.replace(".", "_"): name for name in modules})

    def find(self, name: str) -> nn.Module | None:
        """Return the module that a file's ``name`` stands for."""
        module = self.named(name)[0]
        return None if module is None else self.modules[module]

    def named(self, name: str) -> tuple[str | None, str]:
        """Return the name of the module that a file's stands for, and whose spelling that is."""
        for prefix in _DOTTED:
            if name.startswith(prefix) and name.removeprefix(prefix) in self.modules:
                layout = "peft" if prefix.startswith("base_model") else "diffusers"
                return name.removeprefix(prefix), layout
        for prefix in _FLAT:
            if name.startswith(prefix) and name.removeprefix(prefix) in self.flat:
                return self.flat[name.removeprefix(prefix)], "kohya"
        return None, ""


def _scaled(
    tensors: Mapping[str, Tensor], stated: Sequence[Stated], names: _Names, path: Path
) -> tuple[dict[str, Tensor], float, str]:
    """Return tensors whose updates are one number times B A, that number, and who said it.

    Scales belong to the names that the file has, and translations treat them differently or not at
    all: the alphas of factors are used up here.
    """

    def scale_of(name: str, rank: int | None, own: Tensor | None) -> float:
        if own is None and not stated:
            require_own_settings(path)
        module = names.named(name)[0] or _bare(name)
        if rank is None:  # LyCORIS gives two whole matrices no scale, PEFT the quotient it states
            peft = [item for item in stated if item.is_pefts]
            return module_scale(module, None, None, peft, path)
        return module_scale(module, rank, own, stated, path)

    alphas = [key for key in tensors if key.endswith(".alpha")]
    tensors, rewritten = as_lora(tensors, scale_of, names.find, f"{path}")
    keys: dict[str, dict[str, str]] = {}
    for key in tensors:
        if match := _KEY.fullmatch(key):
            part = _FACTORS[match["factor"]] if match["factor"] else "alpha"
            keys.setdefault(match["module"], {}).setdefault(part, key)
    scales: dict[str, float] = {}
    for name, parts in keys.items():
        if not parts.keys() >= {"A", "B"} or not tensors[parts["A"]].numel():
            continue
        own = tensors[parts["alpha"]] if "alpha" in parts else None
        scales[name] = 1.0 if name in rewritten else scale_of(name, len(tensors[parts["A"]]), own)
    common = Counter(scales.values()).most_common(1)[0][0] if scales else 1.0
    used = {keys[name]["alpha"] for name in scales if "alpha" in keys[name]}
    scaled = {key: value for key, value in tensors.items() if key not in used}
    for name, scale in scales.items():
        if scale != common:
            up = keys[name]["B"]
            scaled[up] = scaled[up].float() * (scale / common)
    used |= set(alphas) - tensors.keys()
    sources = ["its alpha tensors"] * bool(used) + [item.place for item in stated]
    return scaled, common, ", ".join(dict.fromkeys(sources))


def _bare(name: str) -> str:
    """Return a file's name of a module without the prefix that its writer gives it."""
    for prefix in sorted(_DOTTED, key=len, reverse=True):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    raise AssertionError("every name begins with the empty prefix")


def _translated(
    tensors: Mapping[str, Tensor], translate: Translate, path: Path
) -> dict[str, Tensor]:
    """Return what ``translate`` makes of a file, if it depends on every tensor of the file.

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
    common: float,
    source: str,
    names: _Names,
    place: str,
    network: str,
) -> AdapterFile:
    found: dict[str, dict[str, Tensor]] = {}
    layouts: Counter[str] = Counter()
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        module, layout = names.named(match["module"]) if match else (None, "")
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
        expected = _shapes(names.modules[module], max(1, (shapes["A"] or (0,))[0]))
        if shapes != expected:
            raise WeightsError(f"{place}: {module} needs factors {expected}, found {shapes}")
    ranks = {module: len(parts["A"]) for module, parts in found.items()}
    scales = {
        module: float(parts["alpha"]) / ranks[module] if "alpha" in parts else 1.0
        for module, parts in found.items()
    }
    rank = Counter(ranks.values()).most_common(1)[0][0]
    pairs = {
        module: (
            parts["A"],
            parts["B"] if scales[module] == 1 else parts["B"].float() * scales[module],
        )
        for module, parts in found.items()
    }
    return AdapterFile(pairs, rank, common * rank, layouts.most_common(1)[0][0], source)


def _shapes(module: nn.Module, rank: int) -> dict[str, Sequence[int]]:
    """Return the shapes of A and B for a linear or a convolution module."""
    if isinstance(module, nn.Conv2d):
        down = (rank, module.in_channels // module.groups, *module.kernel_size)
        return {"A": down, "B": (module.out_channels, rank, 1, 1)}
    assert isinstance(module, nn.Linear)
    return {"A": (rank, module.in_features), "B": (module.out_features, rank)}


def own_pairs(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors by module of a file that danceflow wrote; updates are B A as they are.

    Raises:
        WeightsError: if the file is missing or damaged.
    """
    tensors, stated = read_tensors(path), stated_scales(path, read_metadata(path))
    end = ".lora_A.weight"
    pairs = {}
    for key, down in tensors.items():
        if key.endswith(end):
            module = key.removeprefix(PREFIX).removesuffix(end)
            scale = module_scale(module, len(down), None, stated, path)
            up = tensors[f"{key.removesuffix(end)}.lora_B.weight"]
            pairs[module] = (down, up.float() * scale)
    return pairs


def unscaled(pairs: Mapping[str, tuple[Tensor, Tensor]], layout: str) -> AdapterFile:
    """Return an adapter whose updates are B A for the factors of every module, as they are."""
    rank = Counter(len(down) for down, _ in pairs.values()).most_common(1)[0][0]
    return AdapterFile(pairs, rank, float(rank), layout)


def merged_pairs(
    files: Sequence[tuple[AdapterFile, float]], rank: int | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """Return factors of the weighted sum of adapters, at most ``rank`` wide, and what they keep.

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
