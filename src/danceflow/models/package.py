"""Model folders: a self-contained student, and the teachers around one set of frozen parts.

Both are described by a manifest with the SHA-256 of every file; nothing is used before it matches.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danceflow.errors import WeightsError
from danceflow.fields import GuidedField, VelocityField
from danceflow.models.adapters.files import AdapterFile, merged_pairs, unscaled
from danceflow.models.adapters.lora import (
    AdapterField,
    AdapterReport,
    add_adapter,
    plain_copy,
    read_adapter_for,
)
from danceflow.models.family import ModelFamily, open_family
from danceflow.models.memory import Memory
from danceflow.ops.files import file_digests, sha256
from danceflow.paths import MANIFEST

_LOG = logging.getLogger(__name__)

FROZEN_FOLDER = "frozen"
BACKBONE_FOLDER = "transformer"
_AVERAGE = "_average"


@dataclass(frozen=True)
class Package:
    """A loaded student.

    Attributes:
        family: the frozen parts.
        field: the student's velocity field.
        device: where it computes.
        meta: how it was made; holds ``num_steps`` at least.
    """

    family: ModelFamily
    field: VelocityField
    device: torch.device
    meta: Mapping[str, Any]

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

    Args:
        folder: of a student.
        memory: how it is held, offloaded as a teacher with weights of its own; a device alone is
            float32 there.
        beside: teachers that are loaded; text encoders and codec are theirs if the student is.

    Raises:
        WeightsError: if a file is missing, truncated, changed or of another shape.
    """
    memory = Memory(memory) if isinstance(memory, str) else memory
    meta = read_manifest(folder)
    if beside is not None and meta.get("teachers_digest") == beside.digest:
        family = beside.family.sized(*meta["image_sizes"][0])
    else:
        family = open_family(meta["family"], folder / FROZEN_FOLDER)
    family.to(memory.device)
    backbone = memory.place(family.load_backbone(folder / BACKBONE_FOLDER), waits=True)
    field = memory.field(family.field(backbone), backbone, waits=True)
    return Package(family, field, torch.device(memory.device), meta)


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


class Teachers:
    """The frozen teachers of a run.

    A teacher's folder holds a whole network, or an adapter on the network that the manifest calls
    ``base``. That base is in memory once, for all its adapters and the student's.

    Attributes:
        family: the frozen parts.
        digest: SHA-256 of the manifest, by which a student's manifest names its teachers.
        base: name of the teacher whose network adapters are on, if there are any.
        shared: that network, with its adapters.
        backbones: every teacher's network by name; that of an adapter is ``shared``.
        reports: what each adapter changes.
    """

    def __init__(
        self, folder: Path, family_name: str, names: Sequence[str], memory: Memory | str
    ) -> None:
        """Load the teachers ``names`` from ``folder``.

        Args:
            folder: with a manifest.
            family_name: the family that the parameters ask for.
            names: of the teachers.
            memory: how they are held; a device alone is float32 there.

        Raises:
            WeightsError: if a teacher is missing or its files are not the recorded ones.
        """
        self.meta = read_manifest(folder)
        self.digest = sha256(folder / MANIFEST)
        if self.meta["family"] != family_name:
            raise WeightsError(
                f"{folder}: the teachers are of family {self.meta['family']!r}, "
                f"params.yaml asks for {family_name!r}"
            )
        self.memory = Memory(memory) if isinstance(memory, str) else memory
        self.family = open_family(family_name, folder / FROZEN_FOLDER)
        self.family.to(self.memory.device)
        self.base: str | None = self.meta.get("base")
        self.shared: nn.Module | None = None
        self.backbones: dict[str, nn.Module] = {}
        self.reports: dict[str, AdapterReport] = {}
        self._files: dict[str, AdapterFile] = {}
        for name in names:
            if name not in self.meta["teachers"]:
                known = ", ".join(self.meta["teachers"])
                raise WeightsError(f"{folder}: there is no teacher {name!r}; known: {known}")
            self.backbones[name] = self._load(folder, name)

    def _load(self, folder: Path, name: str) -> nn.Module:
        """Return a teacher's network; an adapter joins the shared one."""
        is_adapter = name != self.base and not (folder / name / "config.json").is_file()
        if not is_adapter and name != self.base:
            backbone = self.family.load_backbone(folder / name)
            return self.memory.place(backbone, waits=True)
        if self.shared is None:
            if self.base is None:
                raise WeightsError(
                    f"{folder / name}: holds an adapter, but {MANIFEST} names no base for it"
                )
            self.shared = self.memory.place(self.family.load_backbone(folder / self.base))
        if is_adapter:
            translate = self.family.translate_adapter
            self._files[name] = read_adapter_for(self.shared, folder / name, translate)
            self.reports[name] = add_adapter(self.shared, self._files[name], name)
            _LOG.info("%s", self.reports[name])
        return self.shared

    def field(self, name: str, guidance: float) -> GuidedField:
        """Return the teacher's field with classifier-free guidance of scale ``guidance``."""
        backbone = self.backbones[name]
        if backbone is self.shared:
            adapter = name if name in self._files else None
            field: VelocityField = AdapterField(self.family, backbone, adapter)
        else:
            field = self.memory.field(self.family.field(backbone), backbone, waits=True)
        return self.family.guided(field, guidance)

    def shares_base(self, weights: Mapping[str, float]) -> bool:
        """Return whether all teachers of ``weights`` are the base or adapters on it."""
        return all(self.backbones.get(name) is self.shared is not None for name in weights)

    def average_field(self, weights: Mapping[str, float], guidance: float) -> GuidedField:
        """Return the field of the weighted average of teachers, without a further network.

        Of several teachers it is one more adapter on the base, wide enough for all of theirs.

        Args:
            weights: share of each teacher: one, or several that share the base.
            guidance: scale of classifier-free guidance.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        name, *others = self._shares(weights)
        if not others:
            return self.field(name, guidance)
        assert self.shared is not None
        pairs = self.merged_adapters(weights, rank=None)
        add_adapter(self.shared, unscaled(pairs, "average"), _AVERAGE)
        return self.family.guided(AdapterField(self.family, self.shared, _AVERAGE), guidance)

    def merged_adapters(
        self, weights: Mapping[str, float], rank: int | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return factors of the weighted average of teachers that share the base.

        Args:
            weights: share of each teacher; they are normalised to sum to 1, and the base's own
                share holds the others back.
            rank: width of the factors; what does not fit is told in the log. ``None``: all fits.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        shares = self._shares(weights)
        used = [(self._files[name], share) for name, share in shares.items() if name in self._files]
        pairs, kept = merged_pairs(used, rank)
        if kept < 1:
            _LOG.warning(
                "rank %d holds %.1f %% of the start %s; a higher lora_rank holds all of it",
                rank,
                100 * kept,
                dict(weights),
            )
        return pairs

    def merged(self, weights: Mapping[str, float]) -> dict[str, Tensor]:
        """Return the weighted average of teachers' parameters, a state dict in main memory.

        Args:
            weights: share of each teacher; they are normalised to sum to 1.

        Raises:
            WeightsError: for an unknown teacher or weights that sum to 0.
        """
        shares = self._shares(weights)
        states = {name: self._state(name) for name in shares}
        return {
            key: torch.stack([states[n][key].cpu() * share for n, share in shares.items()]).sum(0)
            for key in next(iter(states.values()))
        }

    def _shares(self, weights: Mapping[str, float]) -> dict[str, float]:
        total = sum(weights.values())
        if total <= 0 or not set(weights) <= set(self.backbones):
            raise WeightsError(f"merge weights {dict(weights)} do not fit {list(self.backbones)}")
        return {name: weight / total for name, weight in weights.items()}

    def _state(self, name: str) -> dict[str, Tensor]:
        """Return a teacher's own weights under the names of a network without adapters."""
        backbone = self.backbones[name]
        if backbone is not self.shared or not self._files:
            return backbone.state_dict()
        return plain_copy(backbone, name if name in self._files else None).state_dict()
