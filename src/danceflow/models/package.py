"""Model folders and their manifests, and the student as it is kept.

A folder, of a student or of teachers, is described by a manifest with the SHA-256 of every file;
nothing is used before it matches. A student that was trained whole holds all that it needs:

| folder | holds |
|---|---|
| ``frozen`` | text encoders, codec, settings |
| ``transformer`` | its network |

One that is an adapter names its base, which many students share (``danceflow.models.bases``):

| folder | holds |
|---|---|
| ``adapter`` | the adapter, as stock pipelines load it |
| ``frozen`` | settings; with a base that is packed along, the rest as well |
| ``base`` | the base's network, where it is packed along |
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as attribute
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from danceflow.errors import WeightsError
from danceflow.fields import VelocityField
from danceflow.models.bases import (
    ADAPTER_FOLDER,
    BACKBONE_FOLDER,
    FROZEN_FOLDER,
    SharedBase,
    shared_base,
)
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.memory import Memory
from danceflow.models.steps import on_grid
from danceflow.ops.files import file_digests, sha256
from danceflow.paths import MANIFEST

if TYPE_CHECKING:
    from danceflow.models.teachers import Teachers

__all__ = [
    "ADAPTER_FOLDER",
    "BACKBONE_FOLDER",
    "FROZEN_FOLDER",
    "Package",
    "load_package",
    "read_manifest",
    "save_package",
    "write_manifest",
]


@dataclass(frozen=True)
class Package:
    """A loaded student.

    Attributes:
        family: the frozen parts.
        field: the student's velocity field.
        device: where it computes.
        meta: how it was made; holds ``num_steps`` at least.
        reading: held while prompts are read: a tokenizer keeps how it was asked to pad, and two
            threads would pad each other's prompts. Students with the same frozen parts share it.
    """

    family: ModelFamily
    field: VelocityField
    device: torch.device
    meta: Mapping[str, Any]
    reading: threading.Lock = attribute(default_factory=threading.Lock)

    @property
    def image_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width in pixels of the images it was trained to make, the usual one first."""
        found = self.meta.get("image_sizes", [self.family.image_size])
        return tuple((int(height), int(width)) for height, width in found)


def save_package(
    folder: Path, family: ModelFamily, backbone: nn.Module, meta: Mapping[str, Any]
) -> None:
    """Write a self-contained student to the empty ``folder``."""
    family.save_frozen(folder / FROZEN_FOLDER)
    family.save_backbone(backbone, folder / BACKBONE_FOLDER)
    write_manifest(folder, {**meta, "family": family.name})


def load_package(
    folder: Path, memory: Memory | str = "cpu", beside: "Teachers | None" = None
) -> Package:
    """Return the student in ``folder``, ready to use.

    A network of its own is float32, since another dtype would round off what was learned. An
    adapter is float32 on a base of the memory's dtype.

    Args:
        folder: of a student.
        memory: how it is held, offloaded as a teacher with weights of its own; a device alone is
            there in the dtype that the student was trained with.
        beside: teachers that are loaded; text encoders, codec and base are theirs if the student
            is.

    Raises:
        WeightsError: if a file is missing, truncated, changed or of another shape, or the base is
            not here.
    """
    meta = read_manifest(folder)
    if isinstance(memory, str):
        memory = Memory(memory, dtype=meta.get("dtype", "float32"))
    if beside is not None and meta.get("teachers_digest") != beside.digest:
        beside = None
    if "base" in meta:
        return _on_base(folder, meta, memory, beside)
    if beside is not None:
        family = beside.family.sized(*meta["image_sizes"][0])
    else:
        family = open_family(meta["family"], folder / FROZEN_FOLDER)
    family = on_grid(family, meta.get("shift"))
    family.to(memory.device)
    memory = replace(memory, dtype="float32")
    backbone = memory.place(family.load_backbone(folder / BACKBONE_FOLDER), waits=True)
    field = memory.field(family.field(backbone), backbone, waits=True)
    return Package(family, field, torch.device(memory.device), meta)


def _on_base(
    folder: Path, meta: Mapping[str, Any], memory: Memory, beside: "Teachers | None"
) -> Package:
    """Return a student that is an adapter; its base is the teachers' where they hold it."""
    network = None if beside is None else beside.base_network(meta["base"]["teacher"])
    if beside is not None and network is not None:
        base = SharedBase(beside.family, network)
    else:
        base = shared_base(folder, meta, memory)
    family = on_grid(base.family.sized(*meta["image_sizes"][0]), meta.get("shift"))
    student = base.student(folder / ADAPTER_FOLDER)
    return Package(family, student, torch.device(memory.device), meta, base.reading)


def write_manifest(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: ``meta`` and the SHA-256 of every file below ``folder``."""
    hashes = {name: digest for name, digest in file_digests(folder).items() if name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({**meta, "files": hashes}, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of ``folder`` after every file it lists was found unchanged.

    Raises:
        WeightsError: naming the first file that is missing or differs.
    """
    path = folder / MANIFEST
    try:
        meta: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    missing = [key for key in ("files", "family") if key not in meta]
    if missing:
        raise WeightsError(f"{path}: has no {' and no '.join(missing)}; it is no model's manifest")
    for name, digest in meta["files"].items():
        part = folder / name
        if not part.is_file():
            raise WeightsError(f"{part}: this file of the model is missing")
        if sha256(part) != digest:
            raise WeightsError(f"{part}: the file is truncated or was changed (SHA-256 differs)")
    return meta
