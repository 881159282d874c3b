"""A student written for others: a network, an adapter, ComfyUI's names, or a whole stock pipeline.

What is written is what the stock classes load; nothing of it needs danceflow.
"""

import inspect
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danceflow.errors import WeightsError
from danceflow.models.adapters.comfy import PREFIX, Original, comfy_tensors
from danceflow.models.adapters.files import ADAPTER_FILE, own_pairs
from danceflow.models.adapters.lora import add_adapter, merge_adapter, read_adapter_for
from danceflow.models.bases import (
    ADAPTER_FOLDER,
    BACKBONE_FOLDER,
    FROZEN_FOLDER,
    BaseName,
    find_base,
)
from danceflow.models.families.pipeline_folder import FROZEN_FILE, PIPELINE_FILE
from danceflow.models.family import ModelFamily, family_class, open_family
from danceflow.models.package import read_manifest
from danceflow.models.steps import on_grid
from danceflow.models.weights import CONFIG_FILE, read_json

COMFYUI_FILE = "comfyui_lora.safetensors"
# Where ComfyUI joins layers under a name of its own, it knows diffusers' names of them by this
# prefix alone.
_PREFIXES = {"qwen_image21": "transformer."}
_STUDENT = "student"
_TOKENIZER, _PREPROCESSOR = "tokenizer_config.json", "preprocessor_config.json"
_SCHEDULER = "scheduler_config.json"


def write_network(package: Path, place: Path) -> None:
    """Write a student's network, its adapter merged into its base, to ``place / "transformer"``.

    It is float16 in diffusers' format.

    Args:
        package: folder of the student.
        place: a folder.

    Raises:
        WeightsError: the student is damaged, or its base is not here.
    """
    meta = read_manifest(package)
    if "base" not in meta:  # it was trained whole, or merged by an earlier version
        shutil.copytree(package / BACKBONE_FOLDER, place / BACKBONE_FOLDER)
        return
    family, network, _ = _merged(package, meta)
    family.save_backbone(network, place / BACKBONE_FOLDER)


def write_adapter(package: Path, place: Path) -> None:
    """Write a student's adapter to ``place``, as stock pipelines load it.

    Args:
        package: folder of the student.
        place: a folder.

    Raises:
        WeightsError: the student is damaged, or was trained whole.
    """
    read_manifest(package)
    shutil.copytree(_adapter_of(package), place, dirs_exist_ok=True)


def write_comfyui(package: Path, place: Path) -> None:
    """Write a student's adapter to ``place / COMFYUI_FILE``, under the names that ComfyUI reads.

    Args:
        package: folder of the student.
        place: a folder.

    Raises:
        WeightsError: the student is damaged, was trained whole, or changes what ComfyUI does not
            know.
    """
    from safetensors.torch import save_file

    meta = read_manifest(package)
    settings = read_json(package / FROZEN_FOLDER / FROZEN_FILE)
    family = meta["family"]
    folder = _adapter_of(package)
    # No pipeline knows the channels of a source that an SD3 model was given.
    folder = folder / "stock" if (folder / "stock").is_dir() else folder
    pairs = own_pairs(folder / ADAPTER_FILE)
    names = family_class(family).comfy_names(settings)
    tensors = comfy_tensors(pairs, zimage_names(pairs) if family == "zimage" else names)
    prefix = _PREFIXES.get(family, PREFIX)
    place.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{prefix}{name.removeprefix(PREFIX)}": value for name, value in tensors.items()},
        place / COMFYUI_FILE,
    )


def zimage_names(modules: Iterable[str]) -> dict[str, Original]:
    """Return the layers of Z-Image's original code that some modules of diffusers are.

    Of its refiner of SigLIP features ComfyUI does not know diffusers' names.
    """
    names: dict[str, Original] = {}
    for module in modules:
        block, _, part = module.rpartition(".attention.")
        if part == "to_out.0":
            names[f"{block}.attention.out"] = Original((module,))
        elif block:
            parts = tuple(f"{block}.attention.to_{part}" for part in "qkv")
            names[f"{block}.attention.qkv"] = Original(parts)
        else:
            names[module] = Original((module,))
    return names


def write_pipeline(package: Path, place: Path) -> None:
    """Write a student as the folder of a whole stock pipeline to ``place``.

    Args:
        package: folder of the student.
        place: a folder.

    Raises:
        WeightsError: the student is damaged, its base is not here, or there is no such pipeline.
    """
    import diffusers

    meta = read_manifest(package)
    if "base" in meta:
        family, network, frozen = _merged(package, meta)
    else:
        frozen = package / FROZEN_FOLDER
        family = open_family(meta["family"], frozen)
        network = family.load_backbone(package / BACKBONE_FOLDER)
    family = on_grid(family, meta.get("shift"))
    name, network, scheduler = family.for_pipeline(network)
    family.save_backbone(network, place / BACKBONE_FOLDER)
    (place / "scheduler").mkdir()
    _write(place / "scheduler" / _SCHEDULER, scheduler)
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": diffusers.__version__}
    pipeline = getattr(diffusers, name)
    for part, argument in inspect.signature(pipeline.__init__).parameters.items():
        if part == "self":
            continue
        if (frozen / part).is_dir() and part not in (BACKBONE_FOLDER, "scheduler"):
            _copy_part(frozen, part, place)
        if (place / part).is_dir():
            index[part] = _class_of(place / part, argument.annotation)
        elif argument.default is inspect.Parameter.empty or part in pipeline._optional_components:
            index[part] = [None, None]
    _write(place / PIPELINE_FILE, index)


FORMATS: Mapping[str, Callable[[Path, Path], None]] = {
    "diffusers": write_network,
    "lora": write_adapter,
    "comfyui": write_comfyui,
    "pipeline": write_pipeline,
}
"""What writes a package's folder to another one, by the format's name."""


def _merged(package: Path, meta: Mapping[str, Any]) -> tuple[ModelFamily, nn.Module, Path]:
    """Return a family, the base with the student's adapter merged into it, and its frozen parts."""
    name = BaseName.of(meta, package)
    family, found = find_base(name, package, meta["family"])
    network = family.load_backbone(found.network).requires_grad_(False)
    file = read_adapter_for(network, package / ADAPTER_FOLDER, family.translate_adapter)
    add_adapter(network, file, _STUDENT)
    return family, merge_adapter(network, _STUDENT, torch.float16), found.frozen


def _adapter_of(package: Path) -> Path:
    """Return the folder of a student's adapter."""
    folder = package / ADAPTER_FOLDER
    if not (folder / ADAPTER_FILE).is_file():
        raise WeightsError(
            f"{package}: the student was trained whole (distill.student: full) and has no adapter; "
            "--format diffusers writes its network"
        )
    return folder


def _copy_part(frozen: Path, part: str, place: Path) -> None:
    """Copy a frozen part, without the path that its configuration was once read from."""
    shutil.copytree(frozen / part, place / part)
    config = place / part / CONFIG_FILE
    if config.is_file():
        _write(config, {k: v for k, v in read_json(config).items() if k != "_name_or_path"})
    # A processor of texts and pictures reads its tokenizer from its own folder.
    if part == "processor":
        for file in (frozen / "tokenizer").iterdir():
            if not (place / part / file.name).exists():
                shutil.copy2(file, place / part / file.name)


def _class_of(part: Path, annotation: Any) -> list[str]:
    """Return library and class of a part of a pipeline, as ``model_index.json`` names them."""
    if (part / _SCHEDULER).is_file():
        return ["diffusers", read_json(part / _SCHEDULER)["_class_name"]]
    if (part / CONFIG_FILE).is_file():
        config = read_json(part / CONFIG_FILE)
        if "_class_name" in config:
            return ["diffusers", config["_class_name"]]
        return ["transformers", config["architectures"][0]]
    if part.name == "processor":
        return ["transformers", annotation.__name__]
    if (part / _PREPROCESSOR).is_file():
        return ["transformers", read_json(part / _PREPROCESSOR)["image_processor_type"]]
    return ["transformers", read_json(part / _TOKENIZER)["tokenizer_class"]]


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
