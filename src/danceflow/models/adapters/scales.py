"""How strong a LoRA file is meant to be: every place where writers say it, and no contradiction.

| place | written by |
|---|---|
| ``alpha`` tensors, one per module | Kohya, musubi-tuner, OneTrainer |
| ``adapter_config.json`` beside a file of any name | PEFT |
| ``lora_adapter_metadata`` or other JSON with ``lora_alpha`` in the metadata | diffusers |
| ``lora_alpha``, ``network_alpha``, ``ss_network_alpha`` or ``alpha`` in the metadata | trainers |

A file that says it nowhere means alpha = rank, as in diffusers.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from danceflow.errors import WeightsError
from danceflow.models.adapters.kinds import DORA, LORA
from danceflow.models.weights import read_json

METADATA = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"

_OWN_PREFIXES = ("", "transformer.", "diffusion_model.")  # text encoders have others
_ALPHAS = ("lora_alpha", "network_alpha", "ss_network_alpha", "alpha")
_RANKS = ("r", "rank", "lora_rank", "lora_r", "network_dim", "network_rank", "ss_network_dim")
_KOHYA_ARGUMENTS = "ss_network_args"
# What PEFT trains for the adapter beside B A, or in place of it.
_UNSUPPORTED = (
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "kasa_config",
    "monteclora_config",
)
# These begin by moving a part of the base's own weights into the factors.
_OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNSAID = ("", "none", "null", "dynamic")
_CLOSE = 0.01  # alphas are also written as bfloat16


@dataclass(frozen=True)
class Stated:
    """What one place says of an adapter's scale.

    Attributes:
        place: its name for messages.
        alpha: updates are alpha / rank * B A.
        rank: width of the factors, if it is said.
        alphas: alpha of the modules whose names match a pattern; the first match counts.
        ranks: rank, likewise.
        root: whether updates are alpha / sqrt(rank) * B A.
        varies: whether modules have other alphas of their own, which the place does not list.
        is_pefts: whether the place holds PEFT's settings.
        has_lengths: whether it says that the adapter has DoRA's magnitudes.
    """

    place: str
    alpha: float
    rank: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)
    root: bool = False
    varies: bool = False
    is_pefts: bool = False
    has_lengths: bool = False

    def scale(self, module: str, rank: float | None, path: Path) -> float:
        """Return the scale of a module; raise ``WeightsError`` if its rank is another one."""
        said = _matching(self.ranks, module, self.rank)
        rank = said if rank is None else rank
        if rank is None:
            raise WeightsError(f"{path}: {self.place} says nothing of the rank of {module}")
        if said is not None and said != rank:
            raise WeightsError(
                f"{path}: {self.place} gives {module} the rank {said:g}, but its factors have "
                f"rank {rank:g}: what is said of the scale is about another adapter"
            )
        alpha = _matching(self.alphas, module, self.alpha)
        assert alpha is not None
        return alpha / (math.sqrt(rank) if self.root else rank)


def _matching(patterns: Mapping[str, float], module: str, usual: float | None) -> float | None:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return usual


def module_scale(
    module: str, rank: int | None, own: Tensor | None, stated: Sequence[Stated], path: Path
) -> float:
    """Return the number by which B A of a module is multiplied; 1 where no place says it.

    Args:
        module: its name, for patterns and messages.
        rank: width of its factors, ``None``: it has none, and the places say it.
        own: its ``alpha`` tensor, if it has one.
        stated: what other places say.
        path: of the file.

    Raises:
        WeightsError: if two places contradict each other, or one cannot be understood.
    """
    found: list[tuple[str, float]] = []
    if own is not None and rank is not None:
        name = f"the tensor alpha of {module}"
        if own.numel() != 1:
            raise WeightsError(f"{path}: {name} has shape {tuple(own.shape)}, not one number")
        found.append((name, _number(float(own), name, path) / rank))
    for item in stated:
        if not item.varies:
            found.append((item.place, item.scale(module, rank, path)))
        elif own is None:
            raise WeightsError(
                f"{path}: {item.place} is not the alpha of every module ({_KOHYA_ARGUMENTS} has "
                f"others), and {module} has no alpha of its own"
            )
    if not found:
        return 1.0
    (first, scale), *others = found
    for other, value in others:
        if not math.isclose(scale, value, rel_tol=_CLOSE):
            raise WeightsError(
                f"{path}: {first} makes the scale of {module} {scale:g}, {other} makes it "
                f"{value:g}; take away the one that is wrong"
            )
    return scale


def stated_scales(
    path: Path, metadata: Mapping[str, str], kinds: frozenset[str] = frozenset({LORA})
) -> tuple[Stated, ...]:
    """Return what is said of the scale beside a file and in its metadata, outside its tensors.

    Args:
        path: a safetensors file.
        metadata: of that file.
        kinds: of the adapters that its tensors are.

    Raises:
        WeightsError: if a place cannot be understood, asks for another kind of update, or may be
            about another file.
    """
    found = []
    for key, text in metadata.items():
        if (settings := _object(text)) is not None:
            found += [
                _of_settings(own, prefix, key, path, kinds)
                for prefix, own in _own(settings).items()
                if "lora_alpha" in own or (key == METADATA and own)
            ]
            if key == METADATA and not settings:
                raise WeightsError(f"{path}: {key} in its metadata is empty")
        elif key == METADATA:
            raise WeightsError(f"{path}: {key} in its metadata cannot be read: no JSON object")
    found += _of_entries(metadata, path)
    config = path.parent / PEFT_CONFIG
    if config.is_file() and not _is_anothers(path):
        found.append(_of_settings(read_json(config), "", PEFT_CONFIG, path, kinds))
    return tuple(found)


def require_own_settings(path: Path) -> None:
    """Raise ``WeightsError`` if PEFT's settings lie beside a file, but are another's.

    A file that says nothing of its scale may then be theirs or not.
    """
    if (path.parent / PEFT_CONFIG).is_file() and _is_anothers(path):
        raise WeightsError(
            f"{path}: says nothing of its scale, and {PEFT_CONFIG} beside it may be about "
            f"{PEFT_FILE} alone; put the file into a folder of its own, with that "
            f"{PEFT_CONFIG} if it is its"
        )


def _is_anothers(path: Path) -> bool:
    return path.name != PEFT_FILE and (path.parent / PEFT_FILE).is_file()


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _own(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of the denoiser by the prefix of their names."""
    return {
        prefix: {
            key.removeprefix(prefix): value
            for key, value in settings.items()
            if key.startswith(prefix) and "." not in key.removeprefix(prefix)
        }
        for prefix in _OWN_PREFIXES
    }


def _of_entries(metadata: Mapping[str, str], path: Path) -> list[Stated]:
    """Return what single entries of the metadata say, once for every rank that is said."""
    found = []
    for prefix, own in _own(metadata).items():
        ranks: list[float | None] = [
            _number(own[key], f"{prefix}{key} in its metadata", path)
            for key in _RANKS
            if not _is_unsaid(own.get(key))
        ]
        arguments = own.get(_KOHYA_ARGUMENTS, "")
        for key in _ALPHAS:
            value = own.get(key)
            # For Kohya, 0 means the rank.
            if _is_unsaid(value) or (key.startswith("ss_") and value in ("0", "0.0")):
                continue
            place = f"{prefix}{key} in its metadata"
            found += [
                Stated(
                    place=place,
                    alpha=_number(value, place, path),
                    rank=rank,
                    root=str(own.get("use_rslora")).lower() == "true",
                    varies=key.startswith("ss_") and ("alpha" in arguments or "dim" in arguments),
                )
                for rank in ranks or [None]
            ]
    return found


def _of_settings(
    settings: Mapping[str, Any], prefix: str, where: str, path: Path, kinds: frozenset[str]
) -> Stated:
    """Return what arguments of ``peft.LoraConfig``, or LoHa's or LoKr's, say."""
    if unknown := [name for name in _UNSUPPORTED if settings.get(name)]:
        raise WeightsError(f"{path}: adapters with {', '.join(unknown)} are not supported")
    kind = str(settings.get("peft_type") or LORA).upper()
    found = {LORA if item == DORA else item for item in kinds} or {LORA}
    if kind not in {item.upper() for item in found}:
        raise WeightsError(f"{path}: {where} is about a {kind}, not a {' or '.join(sorted(found))}")
    if (has_lengths := bool(settings.get("use_dora"))) and DORA not in kinds:
        raise WeightsError(f"{path}: {where} says use_dora, but the file holds no magnitudes")
    alpha_key = "lora_alpha" if kind == LORA.upper() else "alpha"
    start = str(settings.get("init_lora_weights", "")).lower()
    if start.startswith(_OTHER_BASES):
        raise WeightsError(
            f"{path}: its training began with {start} ({where}), which changes the base: save the "
            "adapter converted to a LoRA of the plain base"
        )

    def number(name: str) -> float:
        return _number(settings.get(name), f"{prefix}{name} of {where}", path)

    def patterns(name: str) -> dict[str, float]:
        what, given = f"{prefix}{name} of {where}", settings.get(name) or {}
        try:
            for pattern in given:
                re.compile(pattern)
            return {pattern: _number(value, what, path) for pattern, value in given.items()}
        except (AttributeError, TypeError, re.error) as error:
            raise WeightsError(f"{path}: {what} cannot be read: {error!r}") from error

    return Stated(
        place=f"{prefix}{alpha_key} of {where}",
        alpha=number(alpha_key),
        rank=next((number(name) for name in _RANKS if name in settings), None),
        alphas=patterns("alpha_pattern"),
        ranks=patterns("rank_pattern"),
        root=bool(settings.get("use_rslora")),
        is_pefts=True,
        has_lengths=has_lengths,
    )


def _is_unsaid(value: object) -> bool:
    return value is None or str(value).strip().lower() in _UNSAID


def _number(value: object, what: str, path: Path) -> float:
    """Return a finite number that is not zero, or raise ``WeightsError``."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise WeightsError(f"{path}: {what} cannot be read as a number other than 0: {value!r}")
    return number
