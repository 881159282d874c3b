"""Model folders: a self-contained student, and the teachers around one set of frozen parts.

Both are described by a manifest with the SHA-256 of every file; nothing is used before it matches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import GuidedField, VelocityField
from danceflow.models.family import ModelFamily, open_family
from danceflow.ops.files import sha256

MANIFEST = "manifest.json"
FROZEN_FOLDER = "frozen"
BACKBONE_FOLDER = "transformer"


@dataclass(frozen=True)
class Package:
    """A loaded student.

    Attributes:
        family: the frozen parts.
        field: the student's velocity field.
        device: where it computes.
        meta: how it was made; holds ``image_size`` (pixels) and ``num_steps`` at least.
    """

    family: ModelFamily
    field: VelocityField
    device: torch.device
    meta: Mapping[str, Any]


def save_package(
    folder: Path, family: ModelFamily, backbone: nn.Module, meta: Mapping[str, Any]
) -> None:
    """Writes a self-contained student to the empty ``folder``."""
    family.save_frozen(folder / FROZEN_FOLDER)
    family.save_backbone(backbone, folder / BACKBONE_FOLDER)
    write_manifest(folder, {**meta, "family": family.name})


def load_package(folder: Path, device: str = "cpu") -> Package:
    """Returns the student in ``folder``, ready to use on ``device``.

    Raises:
        WeightsError: if a file is missing, truncated, changed or of another shape.
    """
    meta = read_manifest(folder)
    family = open_family(meta["family"], folder / FROZEN_FOLDER)
    family.to(device)
    backbone = family.load_backbone(folder / BACKBONE_FOLDER)
    backbone.to(device).eval().requires_grad_(False)
    return Package(family, family.field(backbone), torch.device(device), meta)


def write_manifest(folder: Path, meta: Mapping[str, Any]) -> None:
    """Writes ``manifest.json``: ``meta`` and the SHA-256 of every file below ``folder``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {p.relative_to(folder).as_posix(): sha256(p) for p in files}
    (folder / MANIFEST).write_text(json.dumps({**meta, "files": hashes}, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of ``folder`` after every file it lists was found unchanged.

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


class Teachers:
    """The frozen teachers of a run: one family, one backbone per teacher."""

    def __init__(self, folder: Path, family_name: str, names: Sequence[str], device: str) -> None:
        """Loads the teachers ``names`` from ``folder`` to ``device``.

        Raises:
            WeightsError: if a teacher is missing or its files are not the recorded ones.
        """
        self.meta = read_manifest(folder)
        if self.meta["family"] != family_name:
            raise WeightsError(
                f"{folder}: the teachers are of family {self.meta['family']!r}, "
                f"params.yaml asks for {family_name!r}"
            )
        self.family = open_family(family_name, folder / FROZEN_FOLDER)
        self.family.to(device)
        self.backbones: dict[str, nn.Module] = {}
        for name in names:
            if name not in self.meta["teachers"]:
                known = ", ".join(self.meta["teachers"])
                raise WeightsError(f"{folder}: there is no teacher {name!r}; known: {known}")
            backbone = self.family.load_backbone(folder / name)
            self.backbones[name] = backbone.to(device).eval().requires_grad_(False)

    def field(self, name: str, guidance: float) -> GuidedField:
        """Returns the teacher's field with classifier-free guidance of scale ``guidance``."""
        field = self.family.field(self.backbones[name])
        return GuidedField(field, self.family.null, guidance)

    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Returns the weighted average of teachers' parameters, a state dict.

        Args:
            weights: share of each teacher; they are normalised to sum to 1.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        total = sum(weights.values())
        if total <= 0 or not set(weights) <= set(self.backbones):
            raise WeightsError(f"merge weights {dict(weights)} do not fit {list(self.backbones)}")
        states = {name: self.backbones[name].state_dict() for name in weights}
        return {
            key: torch.stack([states[n][key] * (w / total) for n, w in weights.items()]).sum(0)
            for key in next(iter(states.values()))
        }
